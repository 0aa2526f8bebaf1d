"""Maps of where a behaviour happens: patching, the logit lens, direct logit attribution."""

from steerkit.lenses.maps import Head as Head
from steerkit.lenses.maps import PatchingMap as PatchingMap
from steerkit.lenses.maps import Peak as Peak
from steerkit.lenses.metrics import AnswerMetric as AnswerMetric
from steerkit.lenses.metrics import Metric as Metric
from steerkit.lenses.patching import activation_patching as activation_patching
from steerkit.lenses.patching import attribution_patching as attribution_patching
