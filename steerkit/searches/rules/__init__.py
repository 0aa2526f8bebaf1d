"""Written rules as vectors: extracted, compared with the rule in the prompt, chosen per request."""

from steerkit.searches.rules.arms import RuleArms as RuleArms
from steerkit.searches.rules.arms import compare_rule as compare_rule
from steerkit.searches.rules.book import RuleBook as RuleBook
from steerkit.searches.rules.vector import Rule as Rule
from steerkit.searches.rules.vector import RuleVector as RuleVector
from steerkit.searches.rules.vector import rule_vector as rule_vector
