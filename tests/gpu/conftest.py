"""What the tests on a GPU share: a small model of Qwen2.5's build, made here from random weights."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu_training.py"


@pytest.fixture(scope="session")
def qwen_shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a two-layer Qwen2 model with heads as wide as the real ones."""
    path = tmp_path_factory.mktemp("qwen")
    code = (
        "import sys, importlib.util, pathlib\n"
        "spec = importlib.util.spec_from_file_location('gpu_training', sys.argv[1])\n"
        "sys.modules['gpu_training'] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.make_model('tiny', pathlib.Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(BENCHMARK), str(path)], check=True)
    return path
