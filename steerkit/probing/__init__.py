"""Probes with their controls: what is read, where, and whether words alone would do.

`probe` selects and scores a linear probe on nested grouped folds and sets it beside permuted
labels, random directions, the words alone, an untrained model and left-out categories.
"""

from steerkit.probing.calibration import Calibration as Calibration
from steerkit.probing.candidates import Candidate as Candidate
from steerkit.probing.compared import Arm as Arm
from steerkit.probing.fresh import untrained as untrained
from steerkit.probing.left_out import LeftOut as LeftOut
from steerkit.probing.nested import Choice as Choice
from steerkit.probing.report import ProbeReport as ProbeReport
from steerkit.probing.verbs import probe as probe
