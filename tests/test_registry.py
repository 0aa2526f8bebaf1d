"""Registries: filled by files, clear about typos."""

import sys
from pathlib import Path

import pytest

from steerkit.errors import InterventionError, MethodError
from steerkit.registry import Registry, suggest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose two modules each register one entry when imported."""
    folder = tmp_path / "planted_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from steerkit.registry import Registry\nMETHODS = Registry('method', __name__)\n"
    )
    for name in ("mean_difference", "pca"):
        (folder / f"{name}.py").write_text(
            f"from planted_methods import METHODS\n\n@METHODS.register('{name}')\n"
            f"def fit():\n    return '{name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m.startswith("planted_methods")]:
        monkeypatch.delitem(sys.modules, module)
    return "planted_methods"


def test_a_file_in_the_folder_is_enough(package: str) -> None:
    import importlib

    methods = importlib.import_module(package).METHODS
    assert methods.names() == tuple(methods) == ("mean_difference", "pca")
    assert methods["pca"]() == "pca"
    assert "pca" in methods and "lda" not in methods


def test_typos_are_answered_with_what_was_meant(package: str) -> None:
    import importlib

    methods = importlib.import_module(package).METHODS
    with pytest.raises(
        MethodError, match="no method named 'Mean-Diference'; did you mean 'mean_difference'"
    ):
        methods["Mean-Diference"]
    with pytest.raises(MethodError, match="no method named 'zzz'; Known: mean_difference, pca"):
        methods["zzz"]


def test_names_are_unique_and_errors_are_of_the_registrys_kind() -> None:
    registry: Registry[object] = Registry("check", "steerkit", InterventionError)
    thing = object()
    assert registry.register("one")(thing) is thing
    with pytest.raises(InterventionError, match="check 'one' is registered twice; rename one"):
        registry.register("one")(object())


def test_suggest() -> None:
    assert suggest("resid-post", ["resid_post", "mlp_out"]).startswith("did you mean 'resid_post'?")
    assert suggest("x", ["b", "a"]) == "Known: a, b"
