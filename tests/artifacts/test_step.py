"""The name of an artifact: a hash of its identity, the same in every version of sublim."""

import hashlib

from sublim_cli.artifacts import step as step_module
from sublim_cli.artifacts.step import digest, in_order
from sublim_cli.recipe.schema import FormatRule
from sublim_cli.steps.filter import FilterSpec, FilterStep
from sublim_cli.sweep.cells import study


def test_a_digest_is_the_hash_of_the_identity_as_compact_sorted_json():
    first = FilterStep(FilterSpec(rules=(FormatRule(),), rows=2, held_out=1), "")
    text = (
        '{"inputs":[],"kind":"filter",'
        '"section":{"held_out":1,"rows":2,"rules":[{"kind":"format"}]},"version":2}'
    )
    assert digest(first) == hashlib.sha256(text.encode()).hexdigest()[:12] == "630f0bd5b88e"
    second = FilterStep(FilterSpec(rules=(), rows=1, held_out=0), "another title", (first,))
    text = (
        f'{{"inputs":["{digest(first)}"],"kind":"filter",'
        '"section":{"held_out":0,"rows":1,"rules":[]},"version":2}'
    )
    assert digest(second) == hashlib.sha256(text.encode()).hexdigest()[:12] == "54b8b8283092"


def test_a_step_is_hashed_once(small, monkeypatch):
    hashed = []
    identity = step_module.identity
    monkeypatch.setattr(step_module, "identity", lambda step: hashed.append(step) or identity(step))
    planned = study(small(sweep__grid={"train.seed": [11, 12, 13]}, train__epochs=7))
    steps = in_order(planned.steps)
    assert [digest(step) for step in steps] == [digest(step) for step in steps]
    assert len({id(step) for step in hashed}) == len(hashed)
