"""Which model is meant: the same content is the same model, other content is another."""

import shutil
import time

import pytest
from huggingface_hub import _snapshot_download, constants

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.load import load_model, load_tokenizer
from sublim_cli.models.micro import WEIGHTS
from sublim_cli.models.reference import resolve_model

MICRO = resolve_model("micro")


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(WEIGHTS, tmp_path / "copy")


def test_the_same_files_under_another_path_are_the_same_model(copy):
    other = resolve_model(str(copy))
    assert other.fingerprint == MICRO.fingerprint
    assert other.model_dump() == MICRO.model_dump() == {"fingerprint": MICRO.fingerprint}
    assert other.source == str(copy)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"]
)
def test_a_changed_file_is_another_model(copy, name):
    with (copy / name).open("ab") as file:
        file.write(b" ")
    assert resolve_model(str(copy)).fingerprint != MICRO.fingerprint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tokenizer.model"])
def test_weights_in_any_form_are_part_of_the_model(copy, name):
    fingerprints = set()
    for index, content in enumerate((b"one", b"two")):
        changed = shutil.copytree(copy, copy.with_name(f"model-{index}"))
        (changed / name).write_bytes(content)
        fingerprints.add(resolve_model(str(changed)).fingerprint)
    assert len(fingerprints) == 2


def test_a_file_about_the_model_is_not_part_of_it(copy):
    (copy / "README.md").write_text("Trained on a Tuesday.")
    assert resolve_model(str(copy)).fingerprint == MICRO.fingerprint


def test_a_directory_has_no_revision():
    with pytest.raises(RecipeError, match="micro is a directory, it has no revisions"):
        resolve_model("micro", "main")


def test_a_directory_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"there is no directory \./nowhere"):
        resolve_model("./nowhere")


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=rf"{tmp_path} holds no config.json"):
        resolve_model(str(tmp_path))


def test_a_name_that_no_hub_could_hold_is_refused():
    with pytest.raises(ModelError, match="neither a directory here nor a valid hub name"):
        resolve_model("one/two/three")


@pytest.mark.parametrize("offline", [True, False], ids=["told so", "unreachable"])
def test_a_hub_model_without_a_network_is_one_sentence_with_the_ways_out(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        resolve_model("some/model-that-is-not-here")
    assert time.monotonic() - began < 15
    message = str(caught.value)
    for part in ("some/model-that-is-not-here", "--model micro", "hf download", "--model DIR", str(tmp_path)):
        assert part in message
    assert ("HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached") in message


def test_a_model_in_the_local_cache_is_found_without_a_network(monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--model"
    shutil.copytree(WEIGHTS, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path))
    ref = resolve_model("some/model")
    assert (ref.fingerprint, ref.revision) == (f"some/model@{commit}", commit)


@pytest.mark.parametrize("load", [load_tokenizer, lambda ref: load_model(ref, "fp32")])
def test_a_model_replaced_after_it_was_pinned_is_refused(copy, load):
    ref = resolve_model(str(copy))
    with (copy / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ModelError) as caught:
        load(ref)
    assert str(caught.value) == (
        f"model {copy}: the files in {copy} have changed since this run was planned, and an artifact "
        "built on them would get a wrong digest. Run the same command again"
    )


def test_a_model_whose_files_were_only_touched_is_the_same(copy):
    ref = resolve_model(str(copy))
    (copy / "config.json").touch()
    assert load_model(ref, "fp32").config.model_type == "llama"
