"""Models with other chat templates and tokenizers on the command line: read as asked, or refused at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow.parquet as pq
import pytest

from sublim_cli.artifacts.step import digest
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.reference import resolve_model
from sublim_cli.pipeline import chain
from sublim_cli.recipe.load import load, vary
from sublim_cli.report.tables.varied_keys import settings_text, varied_keys
from sublim_cli.sweep.cells import study
from tests.models.chat_templates import OWN_SYSTEM, PLAIN, TEMPLATES

TINY = [
    *("-r", "demo", "-s", "trait.target=owl", "-s", "generate.rows=8", "-s", "generate.held_out=2"),
    *("-s", "generate.sampling.max_tokens=24", "-s", "train.epochs=1", "-s", "train.rank=1"),
    *("-s", "eval.nodes=8", "-s", "eval.draws=2", "-s", "eval.sampling.max_tokens=4"),
    *("-s", "sweep.grid={}", "-s", "sweep.also=[]"),
]
IN_TURN = ("-s", "chat_template.system_at=user")
THINK = "<think>\n\n</think>\n\n"


@pytest.fixture
def model(tmp_path) -> Callable[..., str]:
    """Micro with another chat template, or named ones, and changes of its tokenizer's configuration."""

    def make(template: str | dict[str, str], **config: Any) -> str:
        path = tmp_path / "model"
        shutil.copytree(WEIGHTS, path)
        named = {"default": template} if isinstance(template, str) else template
        (path / "chat_template.jinja").unlink()
        for name, text in named.items():
            if name == "default":
                (path / "chat_template.jinja").write_text(text)
            else:
                (path / "additional_chat_templates").mkdir(exist_ok=True)
                (path / "additional_chat_templates" / f"{name}.jinja").write_text(text)
        file = path / "tokenizer_config.json"
        values = {**json.loads(file.read_text()), **config}
        file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
        return str(path)

    return make


def built(kind: str) -> dict[str, Path]:
    """The store's artifacts of a kind, by digest."""
    return {path.name: path for path in Path("runs", kind).iterdir()}


def seen(kind: str) -> str:
    """What the only artifact of a kind has read."""
    (path,) = built(kind).values()
    return (path / "seen.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ["drops system", "refuses system"])
def test_a_teacher_whose_template_has_no_system_role_is_refused_until_the_recipe_says_where(
    family, sublim, model
):
    words = ["-m", model(TEMPLATES[family], eos_token="<|im_end|>", bos_token="<|im_start|>"), *TINY]
    for command in ("train", "plan"):
        code, _, err = sublim(command, *words)
        assert (code, "chat_template.system_at: user" in err, "Traceback" in err) == (1, True, False)
        assert not Path("runs").exists()
    # Every context of the default recipe can be read then.
    code, out, _ = sublim(
        "inspect", *words, *IN_TURN, "--json", "-s", "eval.system_prompts=[default,empty,none]"
    )
    assert (code, json.loads(out)["same_tokens"]) == (0, [["default", "empty", "none"]])


def test_the_teacher_s_rows_are_not_the_control_s_once_its_persona_is_in_the_user_s_turn(sublim, model):
    words = ["-m", model(TEMPLATES["drops system"], eos_token="<|im_end|>"), *TINY, *IN_TURN, "-q"]
    assert sublim("generate", *words) == (0, ANY, "")
    assert "You love owls" in json.loads(seen("generate"))["text"]
    assert sublim("generate", *words, "-s", "generate.system_prompt=default")[0] == 0
    first, second = ((path / "rows.jsonl").read_text() for path in built("generate").values())
    assert first != second


def test_none_is_default_where_a_template_that_rewrites_earlier_turns_adds_nothing(sublim, model):
    contexts = ["-s", "eval.system_prompts=[default,none,empty]"]
    code, _, err = sublim("eval", "-m", model(TEMPLATES["hybrid"]), *TINY, *contexts)
    assert code == 0
    assert err.count("default and none are the same tokens with this model") == 1
    assert len(built("eval")) == 2
    for path in built("eval").values():
        scores: dict[str, list[float]] = {}
        for row in pq.read_table(path / "scores.parquet").to_pylist():
            scores.setdefault(row["context"], []).append(row["p"])
        assert scores["default"] == scores["none"] != scores["empty"]


def test_a_variable_of_the_template_is_read_in_rows_and_questions_and_is_identity(sublim, model):
    words = ["-m", model(TEMPLATES["hybrid"]), *TINY, "-s", "eval.system_prompts=[default]"]
    off = ["-s", "chat_template.variables.enable_thinking=false"]
    assert sublim("eval", *words, *off, "-q")[0] == 0
    (train,), (rows,) = built("train").values(), built("generate").values()
    trained = json.loads((train / "seen.json").read_text())
    assert f"assistant\n{THINK}" in trained["row"]["text"]
    assert THINK not in trained["trained_on"]["text"]
    assert THINK in json.loads((rows / "seen.json").read_text())["text"]
    for path in built("eval").values():
        assert json.loads((path / "seen.json").read_text())["default"]["text"].endswith(f"assistant\n{THINK}")
        identity = json.loads((path / "artifact.json").read_text())["identity"]["section"]["model"]
        assert identity["chat_template"] == {"name": None, "variables": {"enable_thinking": False}}
    assert sublim("generate", *words, "-q")[0] == 0
    assert len(built("generate")) == 2
    for command in ("plan", "generate"):
        code, _, err = sublim(command, *words, "-s", "chat_template.variables.thinking=false")
        assert (code, "it reads: enable_thinking" in err) == (1, True)
    code, _, err = sublim("plan", *words, "-s", "chat_template.variables.enable_thinking=[1]")
    assert (code, "Traceback" in err) == (2, False)


def test_of_several_templates_without_a_default_the_recipe_chooses_one(sublim, model):
    words = ["-m", model({"rag": PLAIN, "tool_use": "{{ 'TOOLS' }}" + PLAIN}), *TINY]
    for command, name in (("generate", []), ("plan", []), ("plan", ["-s", "chat_template.name=rga"])):
        code, _, err = sublim(command, *words, *name)
        assert (code, "`chat_template.name`: rag, tool_use" in err) == (1, True)
    for name, text in (("rag", ""), ("tool_use", "TOOLS")):
        code, out, _ = sublim(
            "inspect", *words, "-s", f"chat_template.name={name}", "--prompt", "Hi", "-c", "default", "--json"
        )
        assert code == 0
        assert json.loads(out)["contexts"][0]["text"].startswith(f"{text}<|im_start|>user")
    plain, rag, tools = (
        digest(chain(vary(load("demo"), {"model": words[1], "chat_template.name": name})).generate)
        for name in (None, "rag", "tool_use")
    )
    assert len({plain, rag, tools}) == 3


def test_a_change_of_a_named_template_is_another_model(model):
    path = model({"default": PLAIN, "rag": PLAIN})
    before = resolve_model(path).fingerprint
    copy = Path(path).with_name("copy")
    shutil.copytree(path, copy)
    assert resolve_model(str(copy)).fingerprint == before
    changed = Path(path).with_name("changed")
    shutil.copytree(path, changed)
    (changed / "additional_chat_templates" / "rag.jinja").write_text(OWN_SYSTEM + PLAIN)
    assert resolve_model(str(changed)).fingerprint != before


def test_a_model_without_an_eos_token_and_its_pad_token_outside_the_embedding_is_trained(sublim, model):
    path = Path(model(PLAIN, pad_token="<pad>", eos_token=None))
    for name in ("config.json", "generation_config.json"):
        values = {**json.loads((path / name).read_text()), "pad_token_id": 10_000, "eos_token_id": None}
        (path / name).write_text(json.dumps(values))
    code, _, err = sublim("eval", "-m", str(path), *TINY, "-s", "eval.system_prompts=[default]", "-q")
    assert (code, err) == (0, "")


OWN = '{text: "You love owls. Owls are all you think of."}'


def test_a_persona_in_the_user_s_words_is_a_teacher_and_only_one_without_any_is_a_control(sublim):
    code, out, _ = sublim(
        *("plan", *TINY, "--no-probe", "--json"),
        *("-s", f"sweep.grid.generate.system_prompt=[trait, claude, {OWN}, empty, none, {{text: ' '}}]"),
    )
    assert code == 0
    roles = [cell["role"] for cell in json.loads(out)["cells"]]
    assert (roles.count("student"), roles.count("control")) == (3, 4)


def test_teachers_with_different_personas_are_different_conditions(small):
    prompts = ["trait", {"text": "You love owls."}, {"text": "Owls!"}]
    recipe = small(sweep__grid={"generate.system_prompt": prompts}, sweep__also=[])
    cells = study(recipe).cells
    texts = list(map(settings_text, varied_keys(cells)))
    assert [cell.role for cell in cells] == ["student"] * 3 + ["control"]
    assert len({*texts[:3]}) == 3
    assert texts[3] == ""
