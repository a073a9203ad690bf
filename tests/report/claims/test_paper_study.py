"""The shipped claims on studies simulated from the paper's published means."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "paper_study.py"


@pytest.fixture(scope="module")
def counted():
    """The words of 40 studies with a standard deviation of 0.6 in log-odds."""
    spec = importlib.util.spec_from_file_location("paper_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module.words(40, 0.6, 0.6)
    del sys.modules[spec.name]


@pytest.mark.slow
def test_what_transmits_in_the_paper_is_supported_and_dolphin_is_not_asked_about(counted):
    for trait in ("cat", "owl", "eagle", "wolf"):
        assert counted["C1", trait]["supported"] >= 30
        assert counted["C2", trait]["supported"] >= 30
        assert counted["C1", trait]["refuted"] == counted["C2", trait]["refuted"] == 0
    assert counted["C1", "dolphin"]["supported"] == 0
    for number in ("C2", "C3a", "C3b", "C3c"):
        assert counted[number, "dolphin"] == {"not asked": 40}
