"""Models behind one protocol: Hugging Face and TransformerLens, plain and steered."""

from steerkit.models.loading import load as load
from steerkit.models.loading import wrap as wrap
from steerkit.models.view import LanguageModel as LanguageModel

__all__ = ["LanguageModel", "load", "wrap"]
