"""Maps of where a behaviour happens: patching, the logit lens, direct logit attribution."""

from steerkit.lenses.direct import direct_logit_attribution as direct_logit_attribution
from steerkit.lenses.direct_result import LogitAttribution as LogitAttribution
from steerkit.lenses.lens import logit_lens as logit_lens
from steerkit.lenses.lens_result import LogitLens as LogitLens
from steerkit.lenses.maps import Head as Head
from steerkit.lenses.maps import PatchingMap as PatchingMap
from steerkit.lenses.maps import Peak as Peak
from steerkit.lenses.metrics import AnswerMetric as AnswerMetric
from steerkit.lenses.metrics import Metric as Metric
from steerkit.lenses.patching import activation_patching as activation_patching
from steerkit.lenses.patching import attribution_patching as attribution_patching
