"""Steering in an unmodified vLLM: every request of a server carries its own programs.

With steerkit installed beside vLLM, `SamplingParams(extra_args={"steerkit": ...})` steers a
request; `requests` says what may stand there. vLLM finds the plugin by its entry point
(`plugin.activate`), and nothing of vLLM is imported before it asks.
"""

from steerkit.vllm.records import Captured as Captured
from steerkit.vllm.records import captured as captured
from steerkit.vllm.registrations import Artefacts as Artefacts
from steerkit.vllm.registrations import artefacts as artefacts
from steerkit.vllm.requests import Asked as Asked

__all__ = ["Artefacts", "Asked", "Captured", "artefacts", "captured"]
