"""Concepts: what a model's output owes to one, what it associates, where a text shows it.

`tcav` takes derivatives along concept vectors; `weat`, `seat` and `contextual_weat` test
associations of word vectors; `bias_lens` compares concept vectors without any test set.
"""

from steerkit.concepts.sensitivity import tcav as tcav
from steerkit.concepts.sensitivity_result import Tcav as Tcav
from steerkit.concepts.sensitivity_result import TcavCell as TcavCell
