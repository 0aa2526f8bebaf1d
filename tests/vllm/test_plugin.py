"""vLLM finds the plugin; steerkit never looks for vLLM by itself."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from steerkit.errors import ModelError
from steerkit.vllm.plugin import RUST, _wrap, check_front_end, check_version
from steerkit.vllm.registrations import FOLDER


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


def test_a_front_end_that_requests_would_pass_by_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for given in ("", "0"):
        monkeypatch.setenv(RUST, given)
        check_front_end()
    monkeypatch.setenv(RUST, "1")
    with pytest.raises(ModelError, match=r"Rust front end.*go unsteered.*Unset"):
        check_front_end()


def test_a_method_is_wrapped_once_and_keeps_its_name() -> None:
    class Owner:
        def method(self, x: int) -> int:
            """Twice x."""
            return 2 * x

    def plus_one(inner: Any) -> Any:
        return lambda self, x: inner(self, x) + 1

    for _ in range(3):
        _wrap(Owner, "method", plus_one)
    assert Owner().method(5) == 11
    assert Owner.method.__name__ == "method" and Owner.method.__doc__ == "Twice x."


def test_the_endpoint_lists_and_is_found_under_the_name_that_vllm_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steerkit.vllm.endpoint import ROUTE, Endpoint

    routes: dict[str, Any] = {}

    class App:
        def get(self, route: str) -> Any:
            return lambda function: routes.setdefault(route, function)

    monkeypatch.setenv(FOLDER, str(tmp_path))
    made = Endpoint()
    made.attach_router(App())
    assert ROUTE.startswith("/v1/"), "vLLM's API key guards nothing else"
    assert routes[ROUTE]() == {
        "folder": str(tmp_path), "default": None, "artefacts": [], "refusal": "",
    }  # fmt: skip
    found = [p for p in entry_points(group="vllm.endpoint_plugins") if p.name == made.name]
    if found:
        assert found[0].load() is Endpoint
