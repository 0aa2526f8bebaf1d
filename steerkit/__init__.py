"""steerkit: find, apply and audit directions in the residual stream of language models.

Verbs: `load`, `wrap`, `capture`, `extract`, `search`, `calibrate`, `audit`; a model's own verbs are
`run`, `generate` and `with_`. Names are imported when first used, so `import steerkit`
is fast and imports none of torch, transformers or plotly.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.activations import Activations as Activations
    from steerkit.audits import Report as Report
    from steerkit.batch import Positions as Positions
    from steerkit.captures import capture as capture
    from steerkit.captures import capture_positions as capture_positions
    from steerkit.comparisons import measure_representation_shift as measure_representation_shift
    from steerkit.comparisons import measure_token_shift as measure_token_shift
    from steerkit.comparisons import membership_scores as membership_scores
    from steerkit.comparisons import representational_similarity as representational_similarity
    from steerkit.comparisons import transfer_directions as transfer_directions
    from steerkit.concepts import awareness_scores as awareness_scores
    from steerkit.concepts import bias_lens as bias_lens
    from steerkit.concepts import evaluate_monitor as evaluate_monitor
    from steerkit.concepts import fit_awareness as fit_awareness
    from steerkit.concepts import tcav as tcav
    from steerkit.concepts import token_scores as token_scores
    from steerkit.concepts import watch as watch
    from steerkit.concepts import weat as weat
    from steerkit.direction import Direction as Direction
    from steerkit.direction import Directions as Directions
    from steerkit.edits import find_orthogonalized as find_orthogonalized
    from steerkit.edits import orthogonalize as orthogonalize
    from steerkit.errors import SteerkitError as SteerkitError
    from steerkit.evaluations import alignment_quality as alignment_quality
    from steerkit.evaluations import answering_parity as answering_parity
    from steerkit.evaluations import branching_factor as branching_factor
    from steerkit.evaluations import decoding_robustness as decoding_robustness
    from steerkit.evaluations import three_way_outcomes as three_way_outcomes
    from steerkit.evaluations import validate_judge as validate_judge
    from steerkit.extraction import Eraser as Eraser
    from steerkit.extraction import Subspace as Subspace
    from steerkit.extraction import check_erasure as check_erasure
    from steerkit.extraction import extract as extract
    from steerkit.extraction import extract_from_moments as extract_from_moments
    from steerkit.extraction import extract_subspace as extract_subspace
    from steerkit.formats import read_steering as read_steering
    from steerkit.formats import read_vectors as read_vectors
    from steerkit.formats import write_vectors as write_vectors
    from steerkit.gradients import gradient_direction as gradient_direction
    from steerkit.gradients import train_direction as train_direction
    from steerkit.interventions import Ablate as Ablate
    from steerkit.interventions import Add as Add
    from steerkit.interventions import AddKeepingNorm as AddKeepingNorm
    from steerkit.interventions import Affine as Affine
    from steerkit.interventions import Clamp as Clamp
    from steerkit.interventions import InOrder as InOrder
    from steerkit.interventions import LowRank as LowRank
    from steerkit.interventions import Rotate as Rotate
    from steerkit.interventions import SetFeatures as SetFeatures
    from steerkit.interventions import When as When
    from steerkit.lenses import activation_patching as activation_patching
    from steerkit.lenses import attribution_patching as attribution_patching
    from steerkit.lenses import direct_logit_attribution as direct_logit_attribution
    from steerkit.lenses import logit_lens as logit_lens
    from steerkit.models import load as load
    from steerkit.models import wrap as wrap
    from steerkit.probing import probe as probe
    from steerkit.probing import untrained as untrained
    from steerkit.prompts import Contrast as Contrast
    from steerkit.prompts import Prompt as Prompt
    from steerkit.redteam import activation_attack as activation_attack
    from steerkit.redteam import fit_detector as fit_detector
    from steerkit.sae import find_features as find_features
    from steerkit.sae import load_sae as load_sae
    from steerkit.sae import train_sae as train_sae
    from steerkit.searches import Sweep as Sweep
    from steerkit.searches import calibrate as calibrate
    from steerkit.searches import compare_criteria as compare_criteria
    from steerkit.searches import search as search
    from steerkit.searches import search_condition as search_condition
    from steerkit.searches import select_direction as select_direction
    from steerkit.site import Site as Site
    from steerkit.stores import ActivationStore as ActivationStore
    from steerkit.stores import capture_dataset as capture_dataset
    from steerkit.stores import dataset_moments as dataset_moments
    from steerkit.suites import audit as audit
    from steerkit.suites import examine as examine

__version__ = "0.1.0"

_HOME = {
    "Activations": "activations",
    "Report": "audits",
    "audit": "suites",
    "Positions": "batch",
    "capture": "captures",
    "capture_positions": "captures",
    "measure_representation_shift": "comparisons",
    "measure_token_shift": "comparisons",
    "membership_scores": "comparisons",
    "representational_similarity": "comparisons",
    "transfer_directions": "comparisons",
    "awareness_scores": "concepts",
    "bias_lens": "concepts",
    "evaluate_monitor": "concepts",
    "fit_awareness": "concepts",
    "tcav": "concepts",
    "token_scores": "concepts",
    "watch": "concepts",
    "weat": "concepts",
    "Direction": "direction",
    "Directions": "direction",
    "find_orthogonalized": "edits",
    "orthogonalize": "edits",
    "SteerkitError": "errors",
    "alignment_quality": "evaluations",
    "answering_parity": "evaluations",
    "branching_factor": "evaluations",
    "decoding_robustness": "evaluations",
    "three_way_outcomes": "evaluations",
    "validate_judge": "evaluations",
    "Eraser": "extraction",
    "Subspace": "extraction",
    "check_erasure": "extraction",
    "extract": "extraction",
    "extract_from_moments": "extraction",
    "extract_subspace": "extraction",
    "read_steering": "formats",
    "read_vectors": "formats",
    "write_vectors": "formats",
    "gradient_direction": "gradients",
    "train_direction": "gradients",
    "Ablate": "interventions",
    "Add": "interventions",
    "Affine": "interventions",
    "Clamp": "interventions",
    "AddKeepingNorm": "interventions",
    "InOrder": "interventions",
    "LowRank": "interventions",
    "Rotate": "interventions",
    "SetFeatures": "interventions",
    "When": "interventions",
    "activation_patching": "lenses",
    "attribution_patching": "lenses",
    "direct_logit_attribution": "lenses",
    "logit_lens": "lenses",
    "load": "models",
    "wrap": "models",
    "probe": "probing",
    "untrained": "probing",
    "Contrast": "prompts",
    "Prompt": "prompts",
    "activation_attack": "redteam",
    "fit_detector": "redteam",
    "find_features": "sae",
    "load_sae": "sae",
    "train_sae": "sae",
    "Sweep": "searches",
    "calibrate": "searches",
    "compare_criteria": "searches",
    "search_condition": "searches",
    "search": "searches",
    "select_direction": "searches",
    "Site": "site",
    "ActivationStore": "stores",
    "capture_dataset": "stores",
    "dataset_moments": "stores",
    "examine": "suites",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 (names, spread from the table)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steerkit' has no attribute '{name}'")
    return getattr(importlib.import_module(f"steerkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
