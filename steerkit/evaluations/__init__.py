"""Evaluations of one model, apart from what steering does to it.

Each is one function and one frozen result with intervals, nulls, units and its paper.
"""

from steerkit.evaluations.beyond_auc import index_beyond_auc as index_beyond_auc
from steerkit.evaluations.cluster_indices import aqi_original as aqi_original
from steerkit.evaluations.cluster_indices import aqi_released as aqi_released
from steerkit.evaluations.geometry import alignment_quality as alignment_quality
from steerkit.evaluations.geometry_result import AlignmentQuality as AlignmentQuality
