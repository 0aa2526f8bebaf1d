"""Continuous batching: many requests in one packed stream, each with its own program."""

from steerkit.serving.batching import serve as serve

__all__ = ["serve"]
