"""Extraction: labelled activations in, directions out, one file a method."""

from steerkit.extraction.methods import METHODS as METHODS
from steerkit.extraction.training import Training as Training
from steerkit.extraction.verbs import extract as extract

__all__ = ["METHODS", "Training", "extract"]
