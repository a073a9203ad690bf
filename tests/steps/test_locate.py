"""Gates and patches as a recipe asks for them: what is scored, what is kept, what is refused."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.errors import RecipeError
from sublim_cli.models.load import load_tokenizer
from sublim_cli.models.positions import named_mask
from sublim_cli.models.token_roles import render_with_roles
from sublim_cli.pipeline import chain, run
from sublim_cli.recipe.load import load
from sublim_cli.recipe.schema import GateSection, PatchSection
from sublim_cli.steps.files import LOCATED, SCORES
from sublim_cli.steps.locate import check_parts, normalise_part, part_name
from sublim_cli.sweep.cells import study

GATES = ["identity_only", "no_identity"]
FULL = {"train__method": "full", "train__learning_rate": 2e-3}


@pytest.fixture(scope="module")
def asked(small, tmp_path_factory):
    """A recipe with gates that asks three questions."""
    file = tmp_path_factory.mktemp("questions") / "three.yaml"
    file.write_text(
        "category: animal\nquestions: ['Your favorite animal?', 'Name an animal.', 'Which one is best?']\n"
    )

    def make(**changes):
        usual = {"eval__questions": str(file), "eval__gates": GATES, "eval__gate_controls": 2}
        return small(**{**usual, **changes})

    return make


def table(step, store):
    rows = pq.read_table(materialise(step, store).path / LOCATED)
    return rows.to_pandas()


def by_set(step, store, target="owl"):
    """P(target) of every question by context, set and control; contiguous ones have negative numbers."""
    rows = table(step, store)
    target_rows = rows[rows["item"] == target].fillna({"control": 0})
    return {
        (context, name, int(control) * (-1 if kind == "window" else 1)): group.sort_values("question")[
            "p"
        ].to_numpy()
        for (context, name, control, kind), group in target_rows.groupby(
            ["context", "set", "control", "control_kind"]
        )
    }


def scores(step, store, context, target="owl"):
    rows = pq.read_table(materialise(step, store).path / SCORES).to_pandas()
    target_rows = rows[(rows["context"] == context) & (rows["item"] == target)]
    return target_rows.sort_values("question")["p"].to_numpy()


@pytest.mark.parametrize("method", [{}, FULL], ids=["lora", "full"])
def test_all_on_is_the_evaluated_student_and_all_off_the_evaluated_base(method, asked, shared_store):
    steps = chain(asked(eval__gate_contexts=["default", "empty"], **method))
    p = by_set(steps.locate[0], shared_store)
    assert sorted(p) == [(context, name, 0) for context in ("default", "empty") for name in ("all", "none")]
    for context in ("default", "empty"):
        student, base = (scores(step, shared_store, context) for step in (steps.eval, steps.base))
        assert np.abs(student - base).max() > 1e-3
        assert np.abs(p[context, "all", 0] - student).max() < 1e-6
        assert np.abs(p[context, "none", 0] - base).max() < 1e-6


@pytest.mark.parametrize("method", [{}, FULL], ids=["lora", "full"])
def test_a_gate_and_its_random_sets_are_scored_in_the_context_of_training(method, asked, shared_store):
    recipe = asked(**method)
    steps = chain(recipe)
    _, only, rest = steps.locate
    for step in (only, rest):
        p = by_set(step, shared_store)
        name = step.spec.part.positions
        assert sorted(p) == [("default", name, control) for control in (-2, -1, 0, 1, 2)]
        assert len({tuple(values) for values in p.values()}) == 5
    rows = table(only, shared_store)
    tokenizer = load_tokenizer(only.spec.model)
    for index, question in enumerate(only.spec.questions):
        prompt = render_with_roles(tokenizer, only.spec.training, question)
        question_rows = rows[rows["question"] == index]
        assert set(question_rows["tokens"]) == {sum(named_mask("identity_only", prompt, prompt))} == {2}
        assert set(question_rows["prompt_tokens"]) == {len(prompt.ids)}
    assert set(rows["item"]) == {item.name for item in only.spec.items}


def test_every_student_has_random_sets_of_its_own(asked, shared_store):
    first, second = (by_set(chain(asked(eval__gate_seed=seed)).locate[1], shared_store) for seed in (1, 2))
    assert (first["default", "identity_only", 0] == second["default", "identity_only", 0]).all()
    assert (first["default", "identity_only", 1] != second["default", "identity_only", 1]).any()


def test_patching_every_residual_of_the_prompt_gives_the_student_s_first_token(asked, shared_store):
    """And its first token is most of an answer of one word."""
    patches = [
        {"positions": {"no_text": "Sublim"}, "decoding": "on"},
        {"positions": "identity_only", "kinds": ["mlp"], "layers": [0, 1]},
    ]
    steps = chain(asked(eval__gates=[], eval__patches=patches, eval__gate_controls=0))
    _, most, little = steps.locate
    student, base = (scores(step, shared_store, "default") for step in (steps.eval, steps.base))
    ((_, near),) = by_set(most, shared_store).items()
    ((_, far),) = by_set(little, shared_store).items()
    assert np.abs(near - student).max() < 0.2 * np.abs(near - base).max()
    assert np.abs(far - base).max() < 0.5 * np.abs(student - base).max()
    assert np.abs(far - base).max() > 1e-5


def test_more_gates_leave_what_is_there_and_a_recipe_without_has_none(asked, small):
    few, many = chain(asked()), chain(asked(eval__gates=[*GATES, "shared_only"]))
    assert {digest(step) for step in few.locate} < {digest(step) for step in many.locate}
    assert digest(few.eval) == digest(many.eval)
    assert digest(chain(asked(eval__gates=[])).eval) == digest(few.eval)
    assert chain(small()).locate == ()


def test_sublim_eval_builds_the_gates_of_its_recipe(asked, shared_store):
    recipe = asked()
    run(recipe, store=shared_store)
    assert all(shared_store.find(step) for step in chain(recipe).locate)


def test_a_study_scores_parts_of_its_students_and_none_of_its_controls(asked):
    planned = study(asked(sweep__grid={"train.seed": [1, 2]}, sweep__also=[]))
    assert [(cell.role, len(cell.chain.locate)) for cell in planned.cells] == [
        ("student", 3),
        ("student", 3),
        ("control", 0),
        ("control", 0),
    ]
    assert {digest(step) for cell in planned.cells for step in cell.chain.locate} <= {
        digest(step) for step in planned.steps
    }


def test_cells_that_differ_in_their_gates_alone_are_one_cell_with_all_of_them(asked):
    grid = {"eval.gates": [["identity_only"], ["no_identity"], []]}
    planned = study(asked(sweep__grid=grid, sweep__also=[]))
    (cell,) = [cell for cell in planned.cells if cell.role == "student"]
    assert [part_name(step.spec.part) for step in cell.chain.locate] == ["all and none", *GATES]


@pytest.mark.parametrize(
    ("entry", "settled", "text"),
    [
        ("shared_only", GateSection(positions="shared_only", decoding="off"), "shared_only"),
        ("no_shared", GateSection(positions="no_shared", decoding="on"), "no_shared"),
        (
            GateSection(
                positions="no_identity", modules=("mlp", "attention"), layers=(1, 0, 1), decoding="off"
            ),
            GateSection(positions="no_identity", modules=("attention", "mlp"), layers=(0, 1), decoding="off"),
            "no_identity · attention, mlp · layers 0, 1 · decoding off",
        ),
        (
            PatchSection(positions="no_identity"),
            PatchSection(positions="no_identity", kinds=("residual",), decoding="on"),
            "patch no_identity · residual",
        ),
    ],
)
def test_the_answer_follows_what_holds_outside_the_set(entry, settled, text):
    assert normalise_part(entry) == settled
    assert part_name(settled) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval__gates": [{"text": "Qwen"}]},
            "eval.gates: {text: Qwen} holds no token in any eval context (default); their system texts are "
            "made of You, are, Micro,, created, by, Sublim., a, helpful, assistant.",
        ),
        (
            {"eval__gate_contexts": ["none", "empty"]},
            "eval.gates: identity_only holds no token in any eval context (none, empty); there are "
            "template_only, no_template, question_only, no_question, shared_only, no_shared, {text: …} and "
            "{no_text: …}",
        ),
        (
            {"eval__gates": [{"positions": "identity_only", "modules": ["wq"]}]},
            "eval.gates: training changes no module wq; it changes attention, down_proj, gate_proj, k_proj, "
            "mlp, o_proj, q_proj, self_attn, up_proj, v_proj",
        ),
        (
            {
                "eval__gates": [{"positions": "identity_only", "modules": ["mlp"]}],
                "train__adapter__targets": "attention",
            },
            "eval.gates: training changes no module mlp; it changes attention, k_proj, o_proj, q_proj, "
            "self_attn, v_proj",
        ),
        (
            {
                "eval__gates": [{"positions": "identity_only", "layers": [0]}],
                "train__adapter__layers": [1, 2],
            },
            "eval.gates: training changes nothing in these modules of these layers",
        ),
        (
            {"eval__gates": [{"positions": "identity_only", "layers": [3]}]},
            "eval.gates: there is no layer 3; layers count from 0 to 2",
        ),
        (
            {"eval__patches": [{"positions": "identity_only", "layers": [3]}]},
            "eval.patches: there is no layer 3; layers count from 0 to 2",
        ),
    ],
)
def test_a_part_that_is_nowhere_is_refused_before_anything_is_built(changes, message, asked, tmp_path):
    with pytest.raises(RecipeError) as refused:
        run(asked(**changes), store=Store(tmp_path))
    assert str(refused.value) == message
    assert list(tmp_path.iterdir()) == []


def test_a_gate_is_tried_on_every_kind_of_student_that_has_it(asked):
    """Full fine-tuning changes the head and an adapter does not, whichever comes last."""
    gates = [{"positions": "identity_only", "modules": ["lm_head"]}]
    lora, full = (chain(asked(eval__gates=gates, **method)).locate for method in ({}, FULL))
    check_parts(full)
    for both in ([*lora, *full], [*full, *lora]):
        with pytest.raises(RecipeError, match="training changes no module lm_head"):
            check_parts(both)


def test_a_gate_on_all_that_full_fine_tuning_changes_may_name_norms_and_the_head(asked):
    gates = [{"positions": "identity_only", "modules": ["norm", "lm_head", "embed_tokens"]}]
    parts = chain(asked(eval__gates=gates, **FULL)).locate
    assert len(parts) == 2
    check_parts(parts)


NAMES = (
    "identity_only, no_identity, system_only, no_system, template_only, no_template, question_only, "
    "no_question, shared_only or no_shared"
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.gates": ["identity"]}, f'--set eval.gates: eval.gates.0: "identity": must be {NAMES}'),
        (
            {"eval.gates": [{"positions": "identity"}]},
            f'--set eval.gates: eval.gates.0.positions: "identity": must be {NAMES}',
        ),
        (
            {"eval.gates": [{"positions": "identity_only", "decode": "on"}]},
            "--set eval.gates: eval.gates.0.decode: unknown key; did you mean eval.gates.0.decoding?",
        ),
        (
            {"eval.gates": ["no_shared", "no_shared"]},
            "--set eval.gates: eval.gates.1: is given twice, first as entry 0; keep one",
        ),
        (
            {"eval.patches": [{"positions": "identity_only", "kinds": ["key"]}]},
            '--set eval.patches: eval.patches.0.kinds.0: "key": must be residual, attention or mlp',
        ),
        (
            {"eval.gates": ["no_shared"], "eval.scorer": "sampled"},
            "--set eval.gates: are scored exactly; use `scorer: exact`, or leave the key out",
        ),
        (
            {"eval.gates": ["no_shared"], "train.method": "prefix"},
            "--set eval.gates: `train.method: prefix` changes nothing at any token of the prompt, so none "
            "can be gated or patched; in a sweep give such students `eval.gates: [[]]`",
        ),
        (
            {"eval.gates": ["no_shared"], "sweep": {"grid": {"train.method": ["lora", "prefix"]}}},
            "--set sweep: sweep.grid.train.method: eval.gates: `train.method: prefix` changes nothing at any "
            "token of the prompt, so none can be gated or patched; in a sweep give such students "
            "`eval.gates: [[]]`",
        ),
    ],
)
def test_what_cannot_be_gated_is_refused_when_the_recipe_is_loaded(changes, message):
    with pytest.raises(RecipeError) as refused:
        load("demo", changes)
    assert str(refused.value) == message


def test_a_sweep_may_gate_some_of_its_students():
    also = [{"train.method": "prefix", "eval.gates": [[]]}]
    planned = study(load("demo", {"eval.gates": ["no_shared"], "sweep.also": also, "sweep.grid": {}}))
    assert [len(cell.chain.locate) for cell in planned.cells if cell.role == "student"] == [2, 0]
