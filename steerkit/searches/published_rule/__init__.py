"""The refusal-direction paper's selection rule, and the evaluation records that it works on."""

from steerkit.searches.published_rule.record import Record as Record
from steerkit.searches.published_rule.records import candidate_directions as candidate_directions
from steerkit.searches.published_rule.records import measure_records as measure_records
from steerkit.searches.published_rule.rule import Selection as Selection
from steerkit.searches.published_rule.rule import select_direction as select_direction
