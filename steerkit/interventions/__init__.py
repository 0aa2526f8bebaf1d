"""What to change in a stream: each file is one operator, lowered to a `Program`."""

from steerkit.interventions.ablate import Ablate as Ablate
from steerkit.interventions.add import Add as Add
from steerkit.interventions.affine import Affine as Affine
from steerkit.interventions.artefact import load_steering as load_steering
from steerkit.interventions.artefact import save_steering as save_steering
from steerkit.interventions.clamp import Clamp as Clamp
from steerkit.interventions.operator import OPERATORS as OPERATORS
from steerkit.interventions.operator import Operator as Operator

__all__ = [
    "OPERATORS",
    "Ablate",
    "Add",
    "Affine",
    "Clamp",
    "Operator",
    "load_steering",
    "save_steering",
]
