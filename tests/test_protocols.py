"""The contracts: what is known about a model survives a file; structure is what counts."""

import json
from dataclasses import dataclass, replace

from steerkit.batch import Positions
from steerkit.program import Program
from steerkit.protocols import Intervention, ModelInfo
from steerkit.site import STREAMS, Site

INFO = ModelInfo("m", "llama", 4, 8, 100, 64, STREAMS, "float32", "cpu", "f" * 64)


def test_model_info_round_trips_through_json() -> None:
    odd = replace(INFO, streams=("resid_pre", "resid_post"), processing="folded", chat=True)
    for info in (INFO, odd):
        assert ModelInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_any_object_with_the_right_members_is_an_intervention() -> None:
    @dataclass(frozen=True)
    class Foreign:
        sites: tuple[Site, ...] = (Site(0),)
        strength: float = 1.0
        fingerprint: str | None = None

        @property
        def positions(self) -> Positions:
            return Positions()

        def lower(self, site: Site) -> Program:
            return Program()

    @dataclass(frozen=True)
    class Unfinished:
        sites: tuple[Site, ...] = ()

    assert isinstance(Foreign(), Intervention)
    assert not isinstance(Unfinished(), Intervention)
