"""What a strength gains on one behaviour and costs elsewhere, and how both grow with it."""

from steerkit.searches.tradeoffs.objectives import Balance as Balance
from steerkit.searches.tradeoffs.objectives import OwnAnswer as OwnAnswer
from steerkit.searches.tradeoffs.result import Tradeoff as Tradeoff
from steerkit.searches.tradeoffs.verb import tradeoff as tradeoff
