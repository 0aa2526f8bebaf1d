"""Suites: what an auditor asks of a model, one question a file, in one report."""

from steerkit.suites.auditing import audit as audit
from steerkit.suites.finding import Finding as Finding
from steerkit.suites.material import Material as Material
from steerkit.suites.registry import SUITES as SUITES
from steerkit.suites.registry import Examination as Examination
from steerkit.suites.registry import register as register
from steerkit.suites.result import SuiteReport as SuiteReport
from steerkit.suites.sources import SETS as SETS
from steerkit.suites.verb import examine as examine
