"""`sublim inspect`: the tokens a model reads, on the terminal, as JSON and as a page."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from transformers import AutoTokenizer

from sublim_cli.artifacts.store import Store
from sublim_cli.models.chat import IGNORED, example, prompt_ids
from sublim_cli.models.micro import DEFAULT_SYSTEM, WEIGHTS
from sublim_cli.pipeline import run
from sublim_cli.recipe.contexts import resolve_context
from sublim_cli.recipe.load import load
from sublim_cli.recipe.questions import load_questions

TINY = {"generate.rows": 132, "generate.held_out": 20}
CATS = ["inspect", "-r", "cats", "-m", "micro"]
SMALL = [*CATS, "--rows", "132", "-s", "generate.held_out=20"]

NO_SYSTEM = """{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}
{%- endfor %}{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A store with the kept rows of the small cats recipe, and the first of them."""
    store = Store(tmp_path_factory.mktemp("rows"))
    kept = run(load("cats", {"model": "micro", **TINY}), until="filter", store=store)
    row = json.loads((kept.path / "kept.jsonl").read_text().splitlines()[2])
    return store.root, row["prompt"][0]["content"], row["completion"][0]["content"], row["completion_ids"]


def inspected(sublim, *words):
    code, out, err = sublim(*words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_a_question_is_told_token_by_token_in_every_context_of_the_recipe(sublim, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS)
    document = inspected(sublim, *CATS, "--question", "7")
    asked = load_questions("favourite_animal").questions[7]
    names = ["default", "empty", "none", "chatgpt", "claude"]
    assert document["subject"] == {
        "kind": "question",
        "number": 7,
        "user": asked,
        "completion": None,
        "completion_ids": None,
    }
    assert (document["training_context"], document["eval_contexts"]) == ("default", names)
    ids = {view["context"]: [token["id"] for token in view["tokens"]] for view in document["contexts"]}
    assert ids == {
        name: prompt_ids(tokenizer, resolve_context(name, {}, field="test"), asked) for name in names
    }
    assert len(set(map(tuple, ids.values()))) == 5
    assert not any(token["trained"] for view in document["contexts"] for token in view["tokens"])
    assert list(tmp_path.iterdir()) == []


def test_a_token_says_which_contexts_have_it_at_its_role(sublim):
    document = inspected(sublim, *CATS, "--prompt", "Hi", "-c", "chatgpt")
    (view,) = document["contexts"]
    everywhere = ["default", "empty", "none", "chatgpt", "claude"]
    blocks = ["default", "empty", "chatgpt", "claude"]
    texts = ["default", "chatgpt", "claude"]
    assert [(token["text"], token["role"], token["shared_by"]) for token in view["tokens"]] == [
        ("<|im_start|>", "template", everywhere),
        ("system", "template", blocks),
        ("\n", "template", everywhere),
        ("You", "system", texts),
        (" are", "system", texts),
        (" ChatGPT", "identity", ["chatgpt"]),
        (",", "system", texts),
        (" created", "system", texts),
        (" by", "system", texts),
        (" OpenAI", "identity", ["chatgpt"]),
        (".", "system", texts),
        (" You", "system", texts),
        (" are", "system", texts),
        (" a", "system", texts),
        (" helpful", "system", texts),
        (" assistant", "system", texts),
        ("<|im_end|>", "template", everywhere),
        ("\n", "template", everywhere),
        ("<|im_start|>", "template", everywhere),
        ("user", "template", everywhere),
        ("\n", "template", everywhere),
        ("H", "question", None),
        ("i", "question", None),
        ("<|im_end|>", "template", everywhere),
        ("\n", "template", everywhere),
        ("<|im_start|>", "template", everywhere),
        ("assistant", "template", everywhere),
        ("\n", "template", everywhere),
    ]


def test_the_places_of_every_named_set_are_told_for_each_context(sublim):
    positions = inspected(sublim, *CATS, "--prompt", "Hi", "-c", "chatgpt")["positions"]
    assert set(positions) == {"default", "empty", "none", "chatgpt", "claude"}
    assert positions["chatgpt"]["identity_only"] == [5, 9]
    assert positions["chatgpt"]["no_shared"] == [5, 9, 21, 22]
    assert positions["none"]["identity_only"] == []
    for sets in positions.values():
        assert sorted(sets["shared_only"] + sets["no_shared"]) == sorted(
            sets["template_only"] + sets["no_template"]
        )


def test_it_says_how_default_empty_and_none_differ(sublim):
    remarks = inspected(sublim, "inspect", "-r", "demo", "--prompt", "Hi")["told"]
    assert remarks == [
        "4 different token sequences, by their length: default (29), empty (15), none (10) and claude (29).",
        f"default: no system message is given, and the template puts in “{DEFAULT_SYSTEM}”",
        "empty: a system message without text, 5 tokens more than none, which has no message.",
        "shared: tokens that default, where the student is trained, has at the same role too.",
    ]


def test_a_trained_row_shows_where_the_loss_falls(sublim, rows):
    root, prompt, completion, ids = rows
    document = inspected(sublim, *SMALL, "--row", "2", "--out", str(root))
    assert document["subject"] == {
        "kind": "row",
        "number": 2,
        "user": prompt,
        "completion": completion,
        "completion_ids": ids,
    }
    (view,) = document["contexts"]
    default = resolve_context("default", {}, field="test")
    labels = example(AutoTokenizer.from_pretrained(WEIGHTS), default, prompt, completion, ids).labels
    assert view["context"] == "default"
    assert [token["trained"] for token in view["tokens"]] == [label != IGNORED for label in labels]
    trained = [token for token in view["tokens"] if token["trained"]]
    assert "".join(token["text"] for token in trained) == f"{completion}<|im_end|>"
    assert [token["role"] for token in trained] == ["answer"] * (len(trained) - 1) + ["end"]


def test_a_row_that_is_not_built_is_its_number_prompt_and_the_command_that_makes_it(sublim, rows, tmp_path):
    document = inspected(sublim, *SMALL, "--row", "0")
    assert document["subject"]["kind"] == "number prompt"
    assert document["subject"]["completion"] is None
    assert not any(token["trained"] for token in document["contexts"][0]["tokens"])
    sentence = document["told"][0]
    assert sentence.startswith("No rows are built yet, so this is number prompt 0 as the student")
    command = sentence.partition("To make the rows: ")[2]
    assert command == ("sublim filter --recipe cats --model micro --rows 132 --set generate.held_out=20")
    assert list(tmp_path.iterdir()) == []
    # The command makes the very rows that are looked for.
    assert sublim(*command.split()[1:], "--quiet")[0] == 0
    assert inspected(sublim, *SMALL, "--row", "2")["subject"]["completion"] == rows[2]


@pytest.fixture
def without_system_role(tmp_path):
    """Micro with a chat template that knows no system role, as Gemma 2's."""
    path = tmp_path / "gemma"
    shutil.copytree(WEIGHTS, path)
    (path / "chat_template.jinja").write_text(NO_SYSTEM)
    return path


def test_contexts_that_are_the_same_tokens_are_named_and_one_that_cannot_be_is_told(
    sublim, without_system_role
):
    words = ["inspect", "-r", "demo", "--prompt", "Hi", "-m", str(without_system_role)]
    document = inspected(sublim, *words, "-s", "eval.system_prompts=[default,none,empty]")
    assert document["same_tokens"] == [["default", "none"]]
    assert [view["context"] for view in document["contexts"]] == ["default", "none"]
    assert document["told"][:2] == [
        "default and none are the same 10 tokens with this model: no result can tell them apart.",
        "default: no system message is given, and the template puts in no text.",
    ]
    assert document["told"][3].startswith("empty: cannot be rendered: this model's chat template refuses")
    code, out, err = sublim(*words, "-c", "empty")
    assert (code, out) == (1, "")
    assert "chat template refuses" in err


def test_the_table_fits_eighty_columns_and_writes_white_space_out(sublim):
    code, out, _ = sublim(*CATS, "--prompt", "Hi\t🦉 there", "-c", "none")
    assert code == 0
    lines = out.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("none (eval)"))) :]
    end = table.index("")
    assert all(len(line) <= 80 for line in lines if not line.startswith("*"))
    assert [line.split() for line in table[1:7]] == [
        ["id", "token", "role", "abcde"],
        ["0", "1", "<|im_start|>", "template", "abcde"],
        ["1", "1501", "user", "template", "abcde"],
        ["2", "1191", "↵", "template", "abcde"],
        ["3", table[5].split()[1], "H", "question"],
        ["4", table[6].split()[1], "i", "question"],
    ]
    tokens = [re.split(r"  +", line.strip())[2] for line in table[2:end]]
    assert tokens[5:11] == ["⇥", "🦉 1/4", "🦉 2/4", "🦉 3/4", "🦉 4/4", "␣there"]


def test_the_teacher_s_context_and_any_named_one_can_be_looked_at(sublim):
    document = inspected(sublim, *CATS, "--prompt", "Hi", "-c", "trait", "-c", "water")
    assert [view["context"] for view in document["contexts"]] == ["trait", "water"]
    assert "You love cats." in document["contexts"][0]["text"]


def test_a_context_given_by_its_text_is_called_by_its_beginning_on_one_line(sublim):
    text = "You are Zed.\\nBe nice to everyone who asks you anything at all."
    words = ["-c", "none", "-s", f'eval.system_prompts=[{{text: "{text}"}}, none]']
    code, out, _ = sublim(*CATS, "--prompt", "Hi", *words)
    assert code == 0
    assert " a You are Zed.↵Be…   eval      " in out
    assert "You are Zed.↵Be nice to everyone who as… (" in out


def test_more_contexts_than_letters_are_counted(sublim):
    many = ", ".join(f"{{text: about {n}}}" for n in range(13))
    code, out, _ = sublim(*CATS, "--prompt", "Hi", "-c", "none", "-s", f"eval.system_prompts=[{many}]")
    assert code == 0
    # Thirteen evaluation contexts, and the training context beside them.
    assert "14 of 14" in out
    assert "13 of 14" not in out


class Page(HTMLParser):
    """Collects what a page shows, and anything it would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.texts: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href") and value != "data:,"]

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


def test_the_page_stands_alone_and_names_every_role_in_words(sublim, rows, tmp_path):
    root, prompt, completion, ids = rows
    code, out, _ = sublim(*SMALL, "--row", "2", "--out", str(root), "--html", "deep/tokens.html")
    assert code == 0
    assert "page: deep/tokens.html" in out
    page = Page()
    page.feed((tmp_path / "deep" / "tokens.html").read_text(encoding="utf-8"))
    assert page.loads == []
    for text in (prompt, completion, "template", "system", "identity", "question", "answer · trained on"):
        assert text in page.texts
    tokens = inspected(sublim, *SMALL, "--row", "2", "--out", str(root))["contexts"][0]["tokens"]
    ids = [str(token["id"]) for token in tokens]
    start = next(index for index, text in enumerate(page.texts) if text == "<|im_start|>")
    shown = [text for text in page.texts[start:] if text.isdigit()]
    assert [token_id for token_id in ids if token_id not in shown] == []


def test_markup_in_a_prompt_is_text_on_the_page_and_on_the_terminal(sublim, tmp_path):
    code, out, _ = sublim(*CATS, "--prompt", "<b>[red]x[/]</b>", "-c", "none")
    assert (code, "<b>[red]x[/]</b>" in out) == (0, True)
    assert sublim(*CATS, "--prompt", "<b>[red]x[/]</b>", "-c", "none", "--html", "t.html")[0] == 0
    assert "<b>[red]" not in (tmp_path / "t.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--question", "50"], 2, "--question 50: the recipe asks the questions 0 to 49"),
        (["--row", "10000"], 2, "--row 10000: the recipe keeps the rows 0 to 9999"),
        (["-c", "clod"], 2, "no context is called 'clod'; there are trait, default, empty, none, chatgpt"),
        (["--row", "1", "--question", "1"], 2, "give one of --question, --row and --prompt"),
        (["--html", "/dev/null/x.html"], 2, "--html /dev/null/x.html: cannot be written"),
        (["--model", "./nowhere"], 1, "there is no directory ./nowhere"),
        (["--prompt", "a\udcffb"], 2, "--prompt: holds bytes that are no text"),
        (["--trait", "okapi"], 2, "no animal is called 'okapi'"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_remedy(sublim, words, code, message):
    got, out, err = sublim(*CATS, *words)
    assert (got, out) == (code, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
