"""Extraction: labelled activations in, directions out, one file a method."""

from steerkit.extraction.eraser import Eraser as Eraser
from steerkit.extraction.erasure import Erasure as Erasure
from steerkit.extraction.erasure import check_erasure as check_erasure
from steerkit.extraction.methods import METHODS as METHODS
from steerkit.extraction.polarity import Polarity as Polarity
from steerkit.extraction.training import Training as Training
from steerkit.extraction.verbs import extract as extract

__all__ = [
    "METHODS",
    "Eraser",
    "Erasure",
    "Polarity",
    "Training",
    "check_erasure",
    "extract",
]
