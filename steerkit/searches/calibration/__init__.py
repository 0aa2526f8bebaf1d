"""Strengths at equal damage or equal effect: found, reported on held-out prompts, verified."""

from steerkit.searches.calibration.finding import calibrate as calibrate
from steerkit.searches.calibration.results import Calibration as Calibration
from steerkit.searches.calibration.results import Calibrations as Calibrations
from steerkit.searches.calibration.results import Verified as Verified
from steerkit.searches.calibration.verifying import verify as verify
