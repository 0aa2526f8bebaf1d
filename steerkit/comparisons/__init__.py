"""Two models compared, such as one before and after fine-tuning: what moved, and where."""

from steerkit.comparisons.concept_shifts import shift_of_states as shift_of_states
from steerkit.comparisons.consistency import ConsistencyRecovery as ConsistencyRecovery
from steerkit.comparisons.consistency import consistency_recovery as consistency_recovery
from steerkit.comparisons.geometry import biased_linear_cka as biased_linear_cka
from steerkit.comparisons.geometry import linear_cka as linear_cka
from steerkit.comparisons.geometry import procrustes as procrustes
from steerkit.comparisons.geometry import rsa as rsa
from steerkit.comparisons.membership import Membership as Membership
from steerkit.comparisons.membership import membership_scores as membership_scores
from steerkit.comparisons.membership import min_k as min_k
from steerkit.comparisons.membership import zlib_ratio as zlib_ratio
from steerkit.comparisons.ranks import RankCorrelation as RankCorrelation
from steerkit.comparisons.ranks import rank_correlation as rank_correlation
from steerkit.comparisons.representation_shift import (
    measure_representation_shift as measure_representation_shift,
)
from steerkit.comparisons.representation_shift import (
    representation_shifts as representation_shifts,
)
from steerkit.comparisons.representation_shift_result import (
    RepresentationShift as RepresentationShift,
)
from steerkit.comparisons.shift_steering import steer_by_shift as steer_by_shift
from steerkit.comparisons.shift_steering_result import ShiftSteering as ShiftSteering
from steerkit.comparisons.similarity import compare_activations as compare_activations
from steerkit.comparisons.similarity import (
    representational_similarity as representational_similarity,
)
from steerkit.comparisons.similarity_result import Similarity as Similarity
from steerkit.comparisons.token_shift import measure_token_shift as measure_token_shift
from steerkit.comparisons.token_shift_result import TokenShift as TokenShift
from steerkit.comparisons.transfer import answer_log_prob as answer_log_prob
from steerkit.comparisons.transfer import refused as refused
from steerkit.comparisons.transfer import transfer_directions as transfer_directions
from steerkit.comparisons.transfer_result import TransferMatrix as TransferMatrix
