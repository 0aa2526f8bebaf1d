"""Capture: run prompts through a model and keep what its streams hold."""

from steerkit.captures.pooling import Pooling as Pooling
from steerkit.captures.pooling import Span as Span
from steerkit.captures.several import capture_positions as capture_positions
from steerkit.captures.several import last_tokens as last_tokens
from steerkit.captures.verbs import capture as capture
from steerkit.captures.verbs import open_capture as open_capture
from steerkit.captures.verbs import stream as stream
