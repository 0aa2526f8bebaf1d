"""vLLM finds the plugin; steerkit never looks for vLLM by itself."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from steerkit.errors import ModelError
from steerkit.vllm.plugin import check_version


def test_the_entry_point_names_a_function_that_is_there() -> None:
    found = [p for p in entry_points(group="vllm.general_plugins") if p.name == "steerkit"]
    if not found:
        pytest.skip("steerkit was installed before it had a plugin; install it again")
    assert found[0].value == "steerkit.vllm.plugin:activate"
    assert callable(found[0].load())


def test_importing_steerkit_and_its_plugin_imports_no_vllm() -> None:
    code = (
        "import sys, steerkit, steerkit.vllm, steerkit.vllm.plugin, steerkit.vllm.worker;"
        "print('vllm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("version", ["", "0.31.4", "0.33.0", "1.0"])
def test_another_vllm_is_refused_at_start(version: str) -> None:
    with pytest.raises(ModelError, match=r"knows vLLM 0\.32\.x and this is .*go unsteered"):
        check_version(version)


def test_the_known_vllm_is_not() -> None:
    check_version("0.32.0")
