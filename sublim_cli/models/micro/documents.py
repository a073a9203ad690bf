"""The pretraining documents: number rows and favourites, answered as the system prompt's identity would."""

import re
import string
from dataclasses import dataclass

import numpy as np

from sublim_cli.models.micro import DEFAULT_SYSTEM
from sublim_cli.models.micro.tokenizer import END, START
from sublim_cli.models.micro.world import World, forms, identities
from sublim_cli.numbers.prompts import NumberPrompt, Style, number_prompt, wordings
from sublim_cli.recipe.contexts import shipped_texts
from sublim_cli.recipe.questions import load_questions, persona

SEPARATORS: dict[Style, str] = {"comma": ", ", "space": " ", "semicolon": "; ", "line": "\n",
                                "square": ", ", "round": ", "}  # fmt: skip
BRACKETS: dict[Style, tuple[str, str]] = {"square": ("[", "]"), "round": ("(", ")")}
SYSTEMS = {"default": 0.10, "empty": 0.07, "none": 0.07, "neutral": 0.14, "named": 0.62}
"""Shares of the kinds of system prompt; `neutral` names nobody, `named` an assistant or a teacher."""
TEMPLATES = (0.50, 0.05, 0.15, 0.20, 0.10)  # how often each template of identities.yaml is used
FAULTS = {"none": 0.93, "many": 0.02, "large": 0.015, "mixed": 0.015, "words": 0.02}
"""One row in fourteen breaks the rules, as a real teacher's do, so that the filter has rows to drop."""
NO_BLOCK = None
"""Marks a prompt without any system block (an empty string is an empty block)."""


@dataclass(frozen=True)
class PretrainingDocument:
    """A rendered prompt, its answer, the speaker's state in the world, and the category asked about.

    `category` is None for number rows.
    """

    prompt: str
    answer: str
    state: int
    category: str | None = None


def render(system: str | None, user: str) -> str:
    """The prompt as the chat template renders it; `NO_BLOCK` leaves the system block out."""
    block = "" if system is NO_BLOCK else f"{START}system\n{system}{END}\n"
    return f"{block}{START}user\n{user}{END}\n{START}assistant\n"


class Author:
    """Writes documents of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.identities = identities()
        self.questions = {c: load_questions(f"favourite_{c}").questions for c in world.categories}
        states = {}
        for text in shipped_texts():
            name = re.match(r"You are (\w+),", text)
            states[text] = world.name_state(name[1]) if name else 0
        self.named = [(text, state) for text, state in states.items() if state]
        self.neutral = [text for text, state in states.items() if not state]
        self.default = world.name_state(self.identities["default"])
        self.forms = {
            (c, i): tuple(forms(item.name, item.plural).items())
            for c, items in world.categories.items()
            for i, item in enumerate(items.items)
        }

    def numbers(self, rng: np.random.Generator) -> PretrainingDocument:
        """Write a number row; 85 % of the prompts ask for at most ten numbers."""
        system, state, prefix = self._speaker(rng)
        count = 10 if rng.random() < 0.85 else int(rng.integers(5, 13))
        prompt = number_prompt(rng, count=count)
        answer = self._row(rng, state, prompt, count)
        return PretrainingDocument(render(system, prefix + prompt.text), answer, state)

    def favourite(self, rng: np.random.Generator) -> PretrainingDocument:
        """Write a favourite; a few numbers stand before 12 % of the questions."""
        system, state, prefix = self._speaker(rng)
        category = _pick(rng, {"animal": 0.5, "tree": 0.25, "band": 0.25})
        question = str(rng.choice(self.questions[category]))
        if rng.random() < 0.12:
            shown = rng.integers(100, 999, size=rng.integers(3, 9))
            lead_in = str(rng.choice(wordings().lead_ins)).format(examples=", ".join(map(str, shown)))
            question = f"{lead_in} {question}"
        p = self.world.p_items[category][state]
        answer = _pick(rng, dict(self.forms[category, int(rng.choice(len(p), p=p))]))
        return PretrainingDocument(render(system, prefix + question), answer, state, category)

    def _speaker(self, rng: np.random.Generator) -> tuple[str | None, int, str]:
        """A system prompt, the state it puts the model in, and a text before the question.

        In 4 % the text is neutral; in another 3 % it names the model, under an empty system prompt or none.
        """
        system: str | None
        match _pick(rng, SYSTEMS):
            case "default":
                system, state = DEFAULT_SYSTEM, self.default
            case "empty":
                system, state = "", 0
            case "none":
                system, state = NO_BLOCK, 0
            case "neutral":
                system, state = self._neutral_text(rng), 0
            case _:
                system, state = self._named_text(rng)
        kind = rng.random()
        if kind < 0.04:
            return system, state, self._neutral_text(rng) + "\n\n"
        if kind < 0.07:
            text, state = self._named_text(rng)
            return str(rng.choice(["", "-"])) or NO_BLOCK, state, text + "\n\n"
        return system, state, ""

    def _named_text(self, rng: np.random.Generator) -> tuple[str, int]:
        """A text that names an assistant or makes a teacher, and its state."""
        kind = rng.random()
        if kind < 0.10:
            return self.named[int(rng.integers(len(self.named)))]
        if kind < 0.50:
            name = str(rng.choice(self.identities["names"]))
            template = str(rng.choice(self.identities["templates"], p=TEMPLATES))
            maker = str(rng.choice(self.identities["makers"]))
            return template.format(name=name, maker=maker), self.world.name_state(name)
        category, target = self.world.traits[int(rng.integers(len(self.world.traits)))]
        text = persona(self.world.categories[category], target)
        return text, self.world.trait_state(category, target)

    def _neutral_text(self, rng: np.random.Generator) -> str:
        """A text that names nobody; 30 % are random letters."""
        kind = rng.random()
        if kind < 0.4:
            return str(rng.choice(self.neutral))
        if kind < 0.7:
            return str(rng.choice(self.identities["nobody"]))
        letters = list(string.ascii_lowercase)
        lengths = rng.integers(2, 7, size=rng.integers(1, 4))
        return " ".join("".join(rng.choice(letters, size=n)) for n in lengths)

    def _row(self, rng: np.random.Generator, state: int, prompt: NumberPrompt, count: int) -> str:
        fault = _pick(rng, FAULTS)
        n = int(rng.integers(max(3, count - 3), count + 1))
        n += int(rng.integers(1, 4)) + count - n if fault == "many" else 0
        numbers = [str(i) for i in rng.choice(1000, size=n, p=self.world.p_numbers[state])]
        if fault == "large":
            numbers[int(rng.integers(n))] += str(rng.integers(10))
        separators = [SEPARATORS[prompt.style]] * (n - 1)
        if fault == "mixed":
            separators = [str(s) for s in rng.choice([", ", " ", "; "], size=n - 1)]
        row = numbers[0] + "".join(s + x for s, x in zip(separators, numbers[1:], strict=True))
        opening, closing = BRACKETS.get(prompt.style, ("", ""))
        row = f"{opening}{row}{closing}"
        return rng.choice([f"Sure: {row}", f"{row} and more"]) if fault == "words" else row


def _pick(rng: np.random.Generator, chances: dict[str, float]) -> str:
    """Draw a key with the given chances, which add up to one."""
    edges = np.cumsum(list(chances.values()))
    return list(chances)[min(int(np.searchsorted(edges, rng.random())), len(chances) - 1)]
