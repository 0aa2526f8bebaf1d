"""Concepts: what a model's output owes to one, what it associates, where a text shows it.

`tcav` takes derivatives along concept vectors; `weat`, `seat` and `contextual_weat` test
associations of word vectors; `bias_lens` compares concept vectors without any test set.
"""

from steerkit.concepts.agreement import spearman as spearman
from steerkit.concepts.association import weat as weat
from steerkit.concepts.association_result import Association as Association
from steerkit.concepts.association_result import ContextualAssociation as ContextualAssociation
from steerkit.concepts.awareness import awareness_scores as awareness_scores
from steerkit.concepts.awareness import fit_awareness as fit_awareness
from steerkit.concepts.awareness_controls import FormatControls as FormatControls
from steerkit.concepts.awareness_controls import format_controls as format_controls
from steerkit.concepts.awareness_result import AwarenessProbe as AwarenessProbe
from steerkit.concepts.awareness_result import AwarenessScores as AwarenessScores
from steerkit.concepts.awareness_rewrites import RewriteEffect as RewriteEffect
from steerkit.concepts.awareness_rewrites import rewrite_effect as rewrite_effect
from steerkit.concepts.behaviour import answer_gaps as answer_gaps
from steerkit.concepts.bias_result import BiasLens as BiasLens
from steerkit.concepts.bias_result import TargetBias as TargetBias
from steerkit.concepts.biases import bias_lens as bias_lens
from steerkit.concepts.contextual import contextual_weat as contextual_weat
from steerkit.concepts.embedding import embed_words as embed_words
from steerkit.concepts.embedding import seat as seat
from steerkit.concepts.monitor import Monitor as Monitor
from steerkit.concepts.monitor import evaluate_monitor as evaluate_monitor
from steerkit.concepts.monitor_result import MonitorReport as MonitorReport
from steerkit.concepts.sae_codes import SaeCodes as SaeCodes
from steerkit.concepts.scored_text import TokenScores as TokenScores
from steerkit.concepts.scored_text import token_scores as token_scores
from steerkit.concepts.sensitivity import tcav as tcav
from steerkit.concepts.sensitivity_result import Tcav as Tcav
from steerkit.concepts.sensitivity_result import TcavCell as TcavCell
from steerkit.concepts.watching import Watch as Watch
from steerkit.concepts.watching import Watched as Watched
from steerkit.concepts.watching import watch as watch
