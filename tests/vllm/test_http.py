"""A real server and clients of every kind, the bad ones among them: nobody is steered wrongly."""

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest.importorskip(
    "vllm", reason="needs vLLM, which tests/vllm/environment.sh installs beside steerkit"
)

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_two_hundred_requests_with_faults_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of `benchmarks/vllm_load.py`, which sends ten times as many from 32 clients.

    Its 2,000 requests take minutes on two cores; what differs is how often each kind meets each
    other one, and how long memory is looked at.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = import_module("vllm_load")
    found = module.load(200, 8, parts=2)
    assert not found["wrong"]
    assert found["alive_at_the_end"] and not found["engine_errors"]
    assert found["unfinished_at_the_end"] == 0
    assert found["growth_mib"] <= module.GROWTH
    assert found["answered"] > 120 and found["refused"] > 10 and found["left"] > 3
    # Most answers were steered into something else, and most say under what.
    assert found["steered otherwise than plain"] > found["answered"] / 4
    assert found["either side of a change"] < found["answered"] / 3
    if entry_points(group="vllm.endpoint_plugins", name="steerkit"):
        # Not so where steerkit was installed before it had an endpoint.
        status, names = found["listing"]
        assert status == 200 and {"add", "live", "foreign", "damaged"} <= set(names)
