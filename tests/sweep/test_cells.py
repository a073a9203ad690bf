"""A sweep's cells: the grid, its additions, its controls; each identity once."""

from itertools import product

import pytest

from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.pipeline import chain
from sublim_cli.recipe.load import vary
from sublim_cli.recipe.schema import SweepSection
from sublim_cli.report.tables.varied_keys import varied_keys
from sublim_cli.sweep.cells import study


def labels(planned) -> list[tuple[str, str]]:
    return [(cell.role, cell.chain.train.title) for cell in planned.cells]


def test_the_demo_holds_its_grid_full_fine_tuning_and_controls(small):
    assert labels(study(small())) == [
        ("student", "owl lora r1 lr 2e-3 seed 1"),
        ("student", "owl lora r1 lr 2e-3 seed 2"),
        ("student", "owl lora r8 lr 2e-3 seed 1"),
        ("student", "owl lora r8 lr 2e-3 seed 2"),
        ("student", "owl lora r64 lr 2e-3 seed 1"),
        ("student", "owl lora r64 lr 2e-3 seed 2"),
        ("student", "owl full lr 2e-4 seed 1"),
        ("student", "owl full lr 2e-4 seed 2"),
        ("control", "default teacher lora r8 lr 2e-3 seed 1"),
        ("control", "default teacher lora r8 lr 2e-3 seed 2"),
    ]


def test_shared_steps_are_planned_once(small):
    kinds = [step.kind for step in in_order(study(small()).steps)]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {"teacher": 1, "generate": 2, "filter": 2, "train": 10, "eval": 11, "leak": 1}


def test_a_recipe_without_a_sweep_is_one_student_and_its_control(small):
    planned = study(small(sweep__grid={}, sweep__also=[]))
    assert [role for role, _ in labels(planned)] == ["student", "control"]


def test_every_trait_has_its_control_but_the_control_is_trained_once(small):
    grid = {"trait.target": ["owl", "cat"], "train.seed": [1]}
    planned = study(small(sweep__grid=grid, sweep__also=[]))
    controls = [cell for cell in planned.cells if cell.role == "control"]
    assert [cell.recipe.trait.target for cell in controls] == ["owl", "cat"]
    assert len({digest(cell.chain.train) for cell in controls}) == 1
    assert len({digest(cell.chain.eval) for cell in controls}) == 1


def test_controls_cross_training_contexts_and_data_seeds_but_not_ranks(small):
    grid = {
        "train.rank": [1, 8],
        "train.system_prompt": ["default", "empty"],
        "generate.sampling.seed": [1, 2],
    }
    planned = study(small(sweep__grid=grid, sweep__also=[]))
    controls = [cell for cell in planned.cells if cell.role == "control"]
    assert len(controls) == 4
    assert {cell.recipe.train.rank for cell in controls} == {8}
    assert len(planned.leaks) == 2


def test_a_training_context_of_an_addition_has_its_control_at_the_recipes_rank(small):
    also = [{"train.system_prompt": ["empty", "claude"], "train.rank": 64}]
    planned = study(small(sweep__grid={"train.seed": [1, 2]}, sweep__also=also))
    control = "default teacher lora r8 lr 2e-3"
    assert labels(planned)[-6:] == [
        ("control", f"{control} seed 1"),
        ("control", f"{control} seed 2"),
        ("control", f"{control} in empty seed 1"),
        ("control", f"{control} in claude seed 1"),
        ("control", f"{control} in empty seed 2"),
        ("control", f"{control} in claude seed 2"),
    ]


def test_a_replicate_draws_data_and_training_anew(small):
    grid = {"train.rank": [1, 8]}
    planned = study(small(sweep__grid=grid, sweep__also=[], sweep__replicates=[3, 5]))
    assert labels(planned) == [
        ("student", "owl lora r1 lr 2e-3 seed 3"),
        ("student", "owl lora r8 lr 2e-3 seed 3"),
        ("control", "default teacher lora r8 lr 2e-3 seed 3"),
        ("student", "owl lora r1 lr 2e-3 seed 5"),
        ("student", "owl lora r8 lr 2e-3 seed 5"),
        ("control", "default teacher lora r8 lr 2e-3 seed 5"),
    ]
    assert [cell.chain.generate.spec.sampling.seed for cell in planned.cells] == [3, 3, 3, 5, 5, 5]
    assert len(planned.leaks) == 2


def test_a_new_rank_keeps_every_old_digest(small):
    old = {digest(step) for step in study(small()).steps}
    grid = {"train.rank": [1, 8, 16, 64], "train.seed": [1, 2]}
    new = {digest(step) for step in study(small(sweep__grid=grid)).steps}
    assert old < new
    assert len(new - old) == 2


def test_a_claim_is_part_of_no_artifact_and_of_no_setting(small):
    without, stated = (
        study(small(claims=[])),
        study(small(claims=[{"kind": "inverted_u", "margin_odds_ratio": 2.0}])),
    )
    assert [digest(step) for step in in_order(stated.steps)] == [
        digest(step) for step in in_order(without.steps)
    ]
    assert varied_keys([*without.cells, *stated.cells]) == varied_keys([*without.cells, *without.cells])


@pytest.mark.parametrize(
    "also",
    [
        [{"train.method": "full", "train.seed": 2}, {"train.method": "full"}],
        [
            {"train.seed": [2, 3]},
            {"generate.sampling.seed": [2, 3]},
            {"train.method": "full", "train.seed": [2, 3]},
            {"train.method": "full", "generate.sampling.seed": [2, 3]},
        ],
        [{"train.seed": [2, 3]}, {"train.seed": [2, 3], "train": [{"rank": 4, "seed": 5}]}],
        [{"train": [{"method": "full", "learning_rate": 1e-4}]}],
    ],
)
def test_a_cell_is_what_its_own_changes_make_of_the_recipe(small, also):
    """Whatever was resolved before it: a seed that is not named is the recipe's, a section may set one."""
    recipe = small(sweep__grid={"train.rank": [8]}, sweep__also=also)
    scored = {digest(cell.chain.eval) for cell in study(recipe).cells if cell.role == "student"}
    alone = recipe.model_copy(update={"sweep": SweepSection()})
    lists = [
        {key: value if isinstance(value, list) else [value] for key, value in entry.items()} for entry in also
    ]
    wanted = [
        {"train.rank": 8, **dict(zip(entry, values, strict=True))}
        for entry in [{}, *lists]
        for values in product(*entry.values())
    ]
    assert scored == {digest(chain(vary(alone, changes)).eval) for changes in wanted}


def test_a_key_that_some_cells_leave_out_tells_them_apart(small):
    planned = study(small(sweep__grid={"generate.sampling.grammar": [None, "rows"], "train.rank": [1]}))
    values = {keys.get("generate.sampling.grammar", "null") for keys in varied_keys(planned.cells)}
    assert values == {"null", "rows"}


def test_adapters_beside_full_fine_tuning_are_told_apart_by_their_scale_only_where_it_varies(small):
    assert varied_keys(study(small()).cells) == [{}] * 10  # the demo: adapters and full fine-tuning
    scales = {"train.alpha": ["rank", "sqrt"], "train.rank": [8], "train.seed": [1]}
    keys = varied_keys(study(small(sweep__grid=scales)).cells)
    assert [key.get("train.alpha") for key in keys if key] == ["rank", "sqrt"]
