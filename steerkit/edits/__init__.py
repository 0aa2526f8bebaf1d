"""Weight edits: ablation written into the weights, undone, saved, and detected."""

from steerkit.edits.detection import OrthogonalityFinding as OrthogonalityFinding
from steerkit.edits.detection import find_orthogonalized as find_orthogonalized
from steerkit.edits.orthogonal import Edited as Edited
from steerkit.edits.orthogonal import orthogonalize as orthogonalize
from steerkit.edits.orthogonal import undo as undo
from steerkit.edits.receipt import EditReceipt as EditReceipt
from steerkit.edits.saving import save_folder as save_folder
from steerkit.edits.saving import save_lora as save_lora

__all__ = [
    "EditReceipt",
    "Edited",
    "OrthogonalityFinding",
    "find_orthogonalized",
    "orthogonalize",
    "save_folder",
    "save_lora",
    "undo",
]
