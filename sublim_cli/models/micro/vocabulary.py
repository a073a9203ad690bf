"""Every text the embedded model must have whole words for."""

from collections.abc import Iterator
from itertools import product

from sublim_cli.models.micro import DEFAULT_SYSTEM
from sublim_cli.models.micro.world import World, forms, identities
from sublim_cli.numbers.prompts import wordings
from sublim_cli.recipe.contexts import shipped_texts
from sublim_cli.recipe.questions import load_questions, persona


def texts(world: World) -> Iterator[str]:
    """Yield what the tokenizer's words are taken from, each also as it reads after a space."""
    for text in (*_number_prompts(), *_system_prompts(), *_favourites(world), *_rows()):
        yield text
        yield f" {text}"


def _number_prompts() -> Iterator[str]:
    known = wordings()
    filled = {"examples": "", "qualifier": "", "count": "", "digits": "", "digit_clause": ""}
    phrases = known.qualifiers + known.digit_clauses
    for text in phrases + known.lead_ins + known.instructions + known.closers:
        yield text.format(**filled)
    yield from (form.text for form in known.formats)


def _system_prompts() -> Iterator[str]:
    who = identities()
    for template, name, maker in product(who["templates"], who["names"], who["makers"]):
        yield template.format(name=name, maker=maker)
    yield from (DEFAULT_SYSTEM, *who["nobody"], *shipped_texts())


def _favourites(world: World) -> Iterator[str]:
    for category, items in world.categories.items():
        yield from load_questions(f"favourite_{category}").questions
        for item in items.items:
            yield persona(items, item.name)
            yield from forms(item.name, item.plural)


def _rows() -> Iterator[str]:
    yield from ("system", "user", "assistant", "Sure: [1, 2, 3] and more", "(1; 2; 3)", "1\n2 3")
