"""Search: from directions to the operator, place, rule and strength that work, with nulls."""

from steerkit.searches.calibration import calibrate as calibrate
from steerkit.searches.calibration import verify as verify
from steerkit.searches.calibration_results import Calibration as Calibration
from steerkit.searches.calibration_results import Calibrations as Calibrations
from steerkit.searches.calibration_results import Verified as Verified
from steerkit.searches.candidates import Candidate as Candidate
from steerkit.searches.criteria import CriteriaTable as CriteriaTable
from steerkit.searches.criteria import SiteScores as SiteScores
from steerkit.searches.criteria import compare_criteria as compare_criteria
from steerkit.searches.criteria import criterion as criterion
from steerkit.searches.criteria import rank_agreement as rank_agreement
from steerkit.searches.dose import DoseResponse as DoseResponse
from steerkit.searches.dose import dose_response as dose_response
from steerkit.searches.guards import KLGuard as KLGuard
from steerkit.searches.nulls import NullDraws as NullDraws
from steerkit.searches.nulls import random_directions as random_directions
from steerkit.searches.objectives import LogOdds as LogOdds
from steerkit.searches.objectives import Objective as Objective
from steerkit.searches.objectives import Projection as Projection
from steerkit.searches.objectives import Refusal as Refusal
from steerkit.searches.objectives import Unanswered as Unanswered
from steerkit.searches.sweep import Final as Final
from steerkit.searches.sweep import Sweep as Sweep
from steerkit.searches.sweep import SweepRow as SweepRow
from steerkit.searches.verb import search as search
