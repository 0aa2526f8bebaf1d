"""The shipped checkpoints: ordinary Llama folders inside the package."""

from pathlib import Path

from steerkit.errors import ModelError
from steerkit.registry import suggest

_NAMES = ("base", "aligned", "compromised", "constructed")
WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the shipped checkpoints and of `truth.json`."""


def names() -> tuple[str, ...]:
    """The checkpoints: `base`, `aligned`, `compromised`, `constructed`."""
    return _NAMES


def path(name: str) -> Path:
    """The folder of a checkpoint, for `AutoModelForCausalLM.from_pretrained` and the like.

    Raises: ModelError for an unknown name.

    >>> path("aligned").name
    'aligned'
    """
    if name not in _NAMES:
        hint = suggest(name, _NAMES)
        raise ModelError(f"no organism {name!r}: expected one of {', '.join(_NAMES)}; {hint}")
    return WEIGHTS / name


def sae_path() -> Path:
    """The folder of the shipped sparse autoencoder, in SAELens' format.

    >>> sae_path().name
    'sae'
    """
    return WEIGHTS / "sae"
