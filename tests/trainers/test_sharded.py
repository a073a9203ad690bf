"""Sharded training: the shipped configuration, what is refused, and which checkpoint is gone on from."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from ruamel.yaml import YAML
from torch.distributed.fsdp import OffloadPolicy, StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from sublim_cli.errors import ModelError, RecipeError
from sublim_cli.models.load import load_model
from sublim_cli.models.reference import resolve_model
from sublim_cli.trainers.oom import step_out_of_memory
from sublim_cli.trainers.sharded import SHARDS, check_checkpoint, check_shardable, is_main_process, sharded

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


def launched(monkeypatch, config: str) -> None:
    """Give this process the environment that `accelerate launch` gives its processes."""
    words = ["--config_file", str(CONFIGS / config), "-m", "sublim_cli.trainers.subprocess_trainer", "job"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")  # torchrun's part


@pytest.mark.parametrize("config", ["fsdp2.yaml", "fsdp2-cpu2.yaml"])
def test_accelerate_reads_the_shipped_configuration_as_it_is_meant(monkeypatch, section, config):
    launched(monkeypatch, config)
    assert sharded()
    check_shardable(section(method="full"))
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert plugin.state_dict_type is StateDictType.SHARDED_STATE_DICT
    assert type(plugin.cpu_offload) is OffloadPolicy
    assert (plugin.activation_checkpointing, plugin.cpu_ram_efficient_loading) == (False, False)
    assert plugin.mixed_precision_policy is None


def test_gpus_are_given_what_two_processes_on_a_cpu_are_tested_with():
    gpus, cpu = (YAML(typ="safe").load(CONFIGS / name) for name in ("fsdp2.yaml", "fsdp2-cpu2.yaml"))
    assert gpus["fsdp_config"] == cpu["fsdp_config"]
    assert {name for name in gpus | cpu if gpus.get(name) != cpu.get(name)} == {"use_cpu", "gpu_ids"}


def test_a_data_parallel_process_is_not_sharded(monkeypatch, section):
    launched(monkeypatch, "cpu2.yaml")
    assert not sharded()
    check_shardable(section(method="lora"))


def test_a_process_that_no_one_launched_is_not_sharded_whatever_its_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not sharded()
    assert is_main_process()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "lora"}, "not lora on plain; recipes/accelerate/data-parallel.yaml shares rows"),
        ({"method": "full", "backend": "unsloth"}, "not full on unsloth"),
        ({"method": "full", "optimizer": "adamw_8bit"}, "bitsandbytes cannot step a sharded student"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_sentence(monkeypatch, section, changes, said):
    launched(monkeypatch, "fsdp2-cpu2.yaml")
    with pytest.raises(RecipeError, match=said):
        check_shardable(section(**changes))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("FSDP_VERSION", "1", "`fsdp_version: 2`"),
        ("FSDP_OFFLOAD_PARAMS", "true", "`fsdp_offload_params: false`"),
        ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT", "`fsdp_state_dict_type: sharded_state_dict`"),
    ],
)
def test_a_setting_that_sublim_does_not_follow_is_named(monkeypatch, section, variable, value, said):
    launched(monkeypatch, "fsdp2-cpu2.yaml")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=f"--accelerate: sublim shards with {said}"):
        check_shardable(section(method="full"))


def test_a_checkpoint_of_the_other_kind_is_refused(monkeypatch, tmp_path):
    whole, parts = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    whole.mkdir()
    (parts / SHARDS).mkdir(parents=True)
    check_checkpoint(None)
    check_checkpoint(whole)
    with pytest.raises(RecipeError, match=r"checkpoint-2 is sharded: go on with `--accelerate"):
        check_checkpoint(parts)
    launched(monkeypatch, "fsdp2-cpu2.yaml")
    check_checkpoint(parts)
    with pytest.raises(RecipeError, match=r"checkpoint-1 is whole: go on without `--accelerate"):
        check_checkpoint(whole)


def test_shards_that_do_not_fit_ask_for_more_processes(monkeypatch):
    launched(monkeypatch, "fsdp2-cpu2.yaml")
    error = step_out_of_memory(load_model(resolve_model("micro"), "fp32"))
    assert isinstance(error, ModelError)
    assert "With more processes each holds less; see `num_processes`" in str(error)
    assert "adamw_8bit" not in str(error)
    assert not torch.cuda.is_available() or "A device has" in str(error)
