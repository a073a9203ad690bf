"""After a training: one model in memory, none when it is over, and no finished training is lost."""

import json
import shutil
import weakref

import pytest
import torch

from sublim_cli.artifacts.record import checksums, read_record
from sublim_cli.artifacts.step import digest
from sublim_cli.artifacts.store import Store, materialise
from sublim_cli.events import Progress
from sublim_cli.models import load, weights
from sublim_cli.models.chat import IGNORED
from sublim_cli.models.reference import resolve_model
from sublim_cli.pipeline import chain
from sublim_cli.trainers import memory, student
from sublim_cli.trainers.audit import audit
from sublim_cli.trainers.precision import base_precision
from sublim_cli.trainers.student import TrainingJob, load_trainable, train_student
from sublim_cli.trainers.updates import LowRankDelta, weight_updates

MICRO = resolve_model("micro")
METHODS = {
    "lora": {},
    "bf16": {"precision": "bf16_mixed"},  # accelerate wraps the model's forward
    "pure": {"precision": "bf16_pure"},
    "dora": {"method": "dora"},
    "pissa": {"method": "pissa"},
    "ia3": {"method": "ia3"},
    "prefix": {"method": "prefix", "precision": "bf16_mixed"},
    "qlora": {"method": "qlora"},
    "full": {"method": "full", "precision": "bf16_mixed"},
}


@pytest.fixture
def loads(monkeypatch):
    """Every model whose weights are read as a whole."""
    read, count = load._from_pretrained, []

    def counted(ref, *args, **options):
        count.append(ref)
        return read(ref, *args, **options)

    monkeypatch.setattr(load, "_from_pretrained", counted)
    return count


SLOW = ("pure", "dora", "ia3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in METHODS]
)
def test_the_audit_needs_no_second_model_and_the_trained_one_is_gone_afterwards(
    name, section, number_rows, loads, tmp_path, monkeypatch
):
    trained = []

    def loaded(*args):
        model = load_trainable(*args)
        trained.append(weakref.ref(model))
        return model

    monkeypatch.setattr(student, "load_trainable", loaded)
    settings, rows = section(**METHODS[name], rank=2), number_rows(10)
    train_student(TrainingJob(MICRO, settings, rows[:8], rows[8:], tmp_path), lambda *_: None)
    assert len(loads) == 1  # the one that is trained: the base's weights are read from their files
    assert trained[0]() is None
    # The audit is that of the student as an evaluation loads it.
    quantize = settings.qlora.quantize if settings.method == "qlora" else None
    precision = base_precision(settings)
    saved = load.load_student(MICRO, precision, tmp_path, quantize)
    updates = list(weight_updates(saved, MICRO, precision))
    written = json.loads((tmp_path / "audit.json").read_text())
    expected, _ = audit(updates, settings, written, written["tokens_with_loss"])
    assert json.loads(json.dumps(expected)) == written
    if name in ("lora", "pissa"):
        assert all(isinstance(update.delta, LowRankDelta) for update in updates)


@pytest.mark.parametrize("batch", [1, 7, 12, 66])
@pytest.mark.parametrize("accumulated", [0, 40])
def test_the_micro_batch_is_the_largest_part_of_a_batch_that_fits(batch, accumulated):
    def peak(rows):
        return 100 + 10 * rows + (accumulated if rows < batch else 0)  # gradients of earlier passes

    for free in range(90, 900, 7):
        fitting = [rows for rows in range(1, batch + 1) if batch % rows == 0 and peak(rows) <= free]
        assert memory.largest_micro_batch(peak, batch, free) == max(fitting, default=1)


def test_a_card_computes_as_many_rows_at_once_as_its_free_memory_holds(
    section, small, number_rows, tmp_path, monkeypatch
):
    """The number is in the record and in no digest."""
    card, rows, settings = torch.device("cuda"), number_rows(8), section(batch_size=4)
    width = max(len(row.input_ids) for row in rows)
    trained = max(sum(label != IGNORED for label in row.labels) for row in rows)
    two = memory.training_memory(MICRO, settings, rows=2, width=width, trained=trained)
    room = two.total - two.weights - two.adapters - int(memory.CUDA_CONTEXT)
    for free, expected in [(room, 2), (room - 1, 1)]:
        monkeypatch.setattr(memory, "free_memory", lambda _, free=free: free)
        assert memory.fitting_micro_batch(MICRO, settings, rows, card) == expected
    cpu = torch.device("cpu")
    assert memory.fitting_micro_batch(MICRO, settings, rows, cpu) is None  # whatever this machine has
    two = memory.training_memory(
        MICRO, settings, rows=2, width=width, trained=trained, checkpointing=False, cuda=False
    )
    for share, expected in [(two.total - two.weights - two.adapters, 2), (1, 1)]:
        monkeypatch.setattr(memory, "training_memory_share", lambda share=share: share)
        assert memory.fitting_micro_batch(MICRO, settings, rows, cpu) == expected
    step = chain(small(generate__rows=40, generate__held_out=8, train__batch_size=8)).train
    monkeypatch.setattr(student, "device", lambda: card)
    monkeypatch.setattr(memory, "free_memory", lambda _: 1)
    artifact = materialise(step, Store(tmp_path))
    assert artifact.digest == digest(step)
    assert read_record(artifact.path)["provenance"]["micro_batch"] == 1


class Failed(Exception):
    """Raised where a test wants something to fail."""


@pytest.mark.parametrize(
    ("method", "part"),
    [("lora", "audit"), pytest.param("pissa", "audit", marks=pytest.mark.slow), ("full", "number_loss")],
)
def test_a_failure_after_the_training_does_not_cost_the_training(method, part, small, tmp_path, monkeypatch):
    recipe = small(generate__rows=16, generate__held_out=4, train__method=method, train__batch_size=8)
    step, store = chain(recipe).train, Store(tmp_path)
    undisturbed = materialise(step, store)
    expected = checksums(undisturbed.path)
    shutil.rmtree(undisturbed.path)
    losses = iter(range(2))  # the second one is computed after the training
    original = getattr(student, part)

    def fail(*args, **options):
        if part == "audit" or next(losses) == 1:
            raise Failed
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(student, part, fail)
        with pytest.raises(Failed):
            materialise(step, store)
    events = []
    artifact = materialise(step, store, events.append)
    assert not [event for event in events if isinstance(event, Progress)]  # no step was taken again
    assert read_record(artifact.path)["provenance"]["resumed_from_step"] == 2
    assert checksums(artifact.path) == expected
    assert not list(tmp_path.glob("train/.*"))


@pytest.mark.parametrize("named", [True, False], ids=["by name", "as a whole"])
def test_weights_are_read_by_name_or_where_names_differ_as_a_whole(named, loads, tmp_path):
    model = load.load_model(MICRO, "fp32")
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ref = MICRO.model_copy(update={"source": str(tmp_path), "stamp": None})
    loads.clear()
    with weights.BaseWeights(ref, "bf16") as base:
        if not named:  # as in a checkpoint that transformers renames when it loads it
            base._file_of = {f"backbone.{name}": file for name, file in base._file_of.items()}
        for name, weight in model.named_parameters():
            assert torch.equal(base.read(name, weight), weight.bfloat16())
    assert len(loads) == (not named)
