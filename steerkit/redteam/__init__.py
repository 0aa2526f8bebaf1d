"""Red-team measurements of steering, each with its countermeasure beside it.

`activation_attack` measures how well a model withstands an added vector; `fit_detector` tells
from a model's states on known prompts that it is being steered. For auditing models that you
are allowed to test.
"""

from steerkit.redteam.attacking import activation_attack as activation_attack
from steerkit.redteam.detector import Detector as Detector
from steerkit.redteam.faults import PublishedFaults as PublishedFaults
from steerkit.redteam.finding import DetectorScores as DetectorScores
from steerkit.redteam.finding import Finding as Finding
from steerkit.redteam.fitting import fit_detector as fit_detector
from steerkit.redteam.judges import JudgedSuccess as JudgedSuccess
from steerkit.redteam.judges import Lexicon as Lexicon
from steerkit.redteam.judges import Preference as Preference
from steerkit.redteam.paired import McNemar as McNemar
from steerkit.redteam.paired import mcnemar as mcnemar
from steerkit.redteam.places import Known as Known
from steerkit.redteam.places import known_prompts as known_prompts
from steerkit.redteam.power import DetectionPower as DetectionPower
from steerkit.redteam.power import PowerRow as PowerRow
from steerkit.redteam.power import attack_families as attack_families
from steerkit.redteam.power import detection_power as detection_power
from steerkit.redteam.power import random_direction as random_direction
from steerkit.redteam.result import ActivationAttack as ActivationAttack
from steerkit.redteam.result import AttackRow as AttackRow
