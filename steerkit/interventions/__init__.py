"""What to change in a stream: each file is one operator, lowered to a `Program`."""

from steerkit.interventions.ablate import Ablate as Ablate
from steerkit.interventions.add import Add as Add
from steerkit.interventions.add_keeping_norm import AddKeepingNorm as AddKeepingNorm
from steerkit.interventions.affine import Affine as Affine
from steerkit.interventions.artefact import load_steering as load_steering
from steerkit.interventions.artefact import rebuilt as rebuilt
from steerkit.interventions.artefact import save_steering as save_steering
from steerkit.interventions.clamp import Clamp as Clamp
from steerkit.interventions.gated import Gated as Gated
from steerkit.interventions.in_order import InOrder as InOrder
from steerkit.interventions.low_rank import LowRank as LowRank
from steerkit.interventions.operator import OPERATORS as OPERATORS
from steerkit.interventions.operator import Operator as Operator
from steerkit.interventions.rotate import Rotate as Rotate
from steerkit.interventions.set_features import SetFeatures as SetFeatures
from steerkit.interventions.when import When as When

__all__ = [
    "OPERATORS",
    "Ablate",
    "Add",
    "AddKeepingNorm",
    "Affine",
    "Clamp",
    "Gated",
    "InOrder",
    "LowRank",
    "Operator",
    "Rotate",
    "SetFeatures",
    "When",
    "load_steering",
    "rebuilt",
    "save_steering",
]
