"""Audits: what steering did, with intervals, nulls and prompting baselines beside it.

Importing this package needs no torch: stored items can be judged again without a model.
"""

from steerkit.audits.arms import PromptTransform as PromptTransform
from steerkit.audits.auditing import audit as audit
from steerkit.audits.checks import ItemCheck as ItemCheck
from steerkit.audits.checks import registry as checks_registry
from steerkit.audits.evidence import Evidence as Evidence
from steerkit.audits.evidence import Item as Item
from steerkit.audits.evidence import read_items as read_items
from steerkit.audits.report import Report as Report
from steerkit.audits.scores import Score as Score
from steerkit.audits.section import Section as Section

check_names = checks_registry.names
