"""When to steer: conditions on the prompt, fitted, chosen and reported on disjoint prompts."""

from steerkit.searches.conditions.result import FoundCondition as FoundCondition
from steerkit.searches.conditions.search import search_condition as search_condition
