"""Cheap criteria that rank sites and positions from activations alone, before anything is steered.

A criterion is one file that registers a function of `Rows`; `compare_criteria` sets all of them
side by side. A criterion is not a causal claim: compare it with a search.
"""

from steerkit.searches.criteria.comparison import compare_criteria as compare_criteria
from steerkit.searches.criteria.divergence import js as js
from steerkit.searches.criteria.divergence import js_repo as js_repo
from steerkit.searches.criteria.rows import CRITERIA as CRITERIA
from steerkit.searches.criteria.rows import Criterion as Criterion
from steerkit.searches.criteria.scores import SiteScores as SiteScores
from steerkit.searches.criteria.scores import criterion as criterion
from steerkit.searches.criteria.scores import rank_agreement as rank_agreement
from steerkit.searches.criteria.spread import gap as gap
from steerkit.searches.criteria.table import Column as Column
from steerkit.searches.criteria.table import CriteriaTable as CriteriaTable
from steerkit.searches.criteria.table import Place as Place
