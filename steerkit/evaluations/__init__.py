"""Evaluations of one model, apart from what steering does to it.

Each is one function and one frozen result with intervals, nulls, units and its paper.
"""

from steerkit.evaluations.any_of import pass_at_k as pass_at_k
from steerkit.evaluations.beyond_auc import index_beyond_auc as index_beyond_auc
from steerkit.evaluations.branching import bf_released as bf_released
from steerkit.evaluations.branching import branching_factor as branching_factor
from steerkit.evaluations.branching import branching_statistics as branching_statistics
from steerkit.evaluations.branching_result import BranchingFactor as BranchingFactor
from steerkit.evaluations.cluster_indices import aqi_original as aqi_original
from steerkit.evaluations.cluster_indices import aqi_released as aqi_released
from steerkit.evaluations.decoding import Decoding as Decoding
from steerkit.evaluations.decoding import coarse_sweep as coarse_sweep
from steerkit.evaluations.decoding import decoding_robustness as decoding_robustness
from steerkit.evaluations.decoding import published_sweep as published_sweep
from steerkit.evaluations.decoding_result import DecodingRobustness as DecodingRobustness
from steerkit.evaluations.geometry import alignment_quality as alignment_quality
from steerkit.evaluations.geometry_result import AlignmentQuality as AlignmentQuality
from steerkit.evaluations.judge_validation import JudgeValidation as JudgeValidation
from steerkit.evaluations.judge_validation import LabelledAnswer as LabelledAnswer
from steerkit.evaluations.judge_validation import validate_judge as validate_judge
from steerkit.evaluations.outcomes import ThreeWay as ThreeWay
from steerkit.evaluations.outcomes import three_way_outcomes as three_way_outcomes
from steerkit.evaluations.parity import answering_parity as answering_parity
from steerkit.evaluations.parity import filled as filled
from steerkit.evaluations.parity import parity_of as parity_of
from steerkit.evaluations.parity_result import Parity as Parity
from steerkit.evaluations.rate_correction import CorrectedRate as CorrectedRate
from steerkit.evaluations.rate_correction import corrected_rate as corrected_rate
