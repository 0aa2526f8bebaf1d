"""Extraction: labelled activations in, directions out, one file a method."""

from steerkit.extraction.cleaning import clean_direction as clean_direction
from steerkit.extraction.cleaning import concept_atoms as concept_atoms
from steerkit.extraction.cleaning import without_atoms as without_atoms
from steerkit.extraction.eraser import Eraser as Eraser
from steerkit.extraction.erasure import Erasure as Erasure
from steerkit.extraction.erasure import check_erasure as check_erasure
from steerkit.extraction.group_moments import GroupMoments as GroupMoments
from steerkit.extraction.methods import METHODS as METHODS
from steerkit.extraction.moments import Moments as Moments
from steerkit.extraction.polarity import Polarity as Polarity
from steerkit.extraction.spans import SPANS as SPANS
from steerkit.extraction.streaming import extract_from_moments as extract_from_moments
from steerkit.extraction.subspace import Subspace as Subspace
from steerkit.extraction.subspace import Subspaces as Subspaces
from steerkit.extraction.subspaces import extract_subspace as extract_subspace
from steerkit.extraction.subspaces import spanning as spanning
from steerkit.extraction.training import Training as Training
from steerkit.extraction.verbs import extract as extract

__all__ = [
    "METHODS",
    "SPANS",
    "Eraser",
    "Erasure",
    "GroupMoments",
    "Moments",
    "Polarity",
    "Subspace",
    "Subspaces",
    "Training",
    "check_erasure",
    "clean_direction",
    "concept_atoms",
    "extract",
    "extract_from_moments",
    "extract_subspace",
    "spanning",
    "without_atoms",
]
