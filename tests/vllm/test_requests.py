"""What requests may say, in every form, and the programs that it comes to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steerkit.errors import DirectionError, InterventionError, SiteError, SteerkitError
from steerkit.interventions import load_steering, save_steering
from steerkit.kernels.layout import Capacity
from steerkit.models.checks import lowered
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import Asked, read, steered
from steerkit.vllm.room import check


@pytest.fixture
def stocked(artefacts: Artefacts, steerings: Any, register: Any, tmp_path: Path) -> Artefacts:
    """Artefacts of every kind."""
    register(artefacts, steerings(), tmp_path)
    return artefacts


def test_a_name_a_path_a_dictionary_and_json_mean_the_same(
    stocked: Artefacts, steerings: Any, tmp_path: Path
) -> None:
    path = str(save_steering(tmp_path / "again" / "add.safetensors", steerings()["add"]))
    forms: list[Any] = ["add", path, {"artefact": "add"}, ["add"], '{"artefact": "add"}', '["add"]']
    assert len({read(form, stocked).key for form in forms}) == 1


def test_asked_survives_the_way_to_other_processes(stocked: Artefacts) -> None:
    asked = read(
        [{"artefact": "add", "strength": 0.5, "sites": [0, 2], "positions": [1, -1]}, "ablate"],
        stocked,
    )
    sent = json.loads(json.dumps(asked.to_wire()))
    assert Asked.from_wire(sent) == asked
    with pytest.raises(InterventionError, match="without passing this plugin's admission"):
        Asked.from_wire("add")


def test_programs_are_those_of_the_hugging_face_engine(stocked: Artefacts, info: ModelInfo) -> None:
    """As `with_` lowers them, whatever kind it is."""
    for name, digest in stocked.names.items():
        want = lowered(load_steering(stocked.path(digest)), info, force=False)
        found = steered(read(name, stocked), stocked, info).programs
        assert {s: p for s, p in want.items() if p}.keys() == found.keys()
        for site, program in found.items():
            assert len(program.groups) == len(want[site].groups)
            for a, b in zip(program.groups, want[site].groups, strict=True):
                assert a.opcodes == b.opcodes
                assert a.write.equal(b.write) and a.params.equal(b.params)


def test_strength_sites_and_positions_are_the_requests_own(
    stocked: Artefacts, info: ModelInfo
) -> None:
    given = {"artefact": "add", "strength": -3, "sites": "resid_pre@2", "positions": "generated"}
    ((site, program),) = steered(read(given, stocked), stocked, info).programs.items()
    assert site == Site(2, "resid_pre")
    (group,) = program.groups
    assert float(group.params[0, 0]) * float(group.write[0].norm()) == pytest.approx(-6.0, abs=1e-5)
    assert group.positions[0].rule == "generated"


def test_strength_zero_is_no_steering(stocked: Artefacts, info: ModelInfo) -> None:
    assert not steered(read({"artefact": "add", "strength": 0}, stocked), stocked, info).programs


def test_several_artefacts_act_together(stocked: Artefacts, info: ModelInfo) -> None:
    found = steered(read(["add", "rotate"], stocked), stocked, info).programs
    (group,) = found[Site(1)].groups
    assert len(group) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("joy", "no artefact named 'joy'"),
        ({"artefact": "add", "strenght": 1}, "did you mean 'strength'"),
        ({"strength": 1}, "is the name of an artefact"),
        ({"artefact": "add", "strength": "2"}, "strength is a finite number"),
        ({"artefact": "add", "strength": float("nan")}, "strength is a finite number"),
        ({"artefact": "add", "positions": "sometimes"}, "sometimes"),
        ({"artefact": "add", "sites": "middle"}, "a site reads"),
        ({"artefact": "gated", "sites": [0]}, "can be changed for single operators"),
        ('{"artefact": "add"', "is not JSON"),
        ([], "empty list"),
        (7, "is the name of an artefact"),
        ("/nowhere/at/all", "no steering file"),
    ],
)
def test_what_cannot_be_had_is_refused(
    stocked: Artefacts, info: ModelInfo, given: Any, message: str
) -> None:
    with pytest.raises(SteerkitError, match=message):
        steered(read(given, stocked), stocked, info)


def test_sites_and_directions_must_be_this_models(stocked: Artefacts, info: ModelInfo) -> None:
    with pytest.raises(SiteError, match=r"has layers 0\.\.2"):
        steered(read({"artefact": "add", "sites": [3]}, stocked), stocked, info)
    with pytest.raises(SiteError, match="no attn_out@1"):
        steered(read({"artefact": "add", "sites": "attn_out@1"}, stocked), stocked, info)
    other = replace(info, name="another", fingerprint="0" * 64)
    with pytest.raises(DirectionError, match="taken on tiny"):
        steered(read("add", stocked), stocked, other)
    assert steered(read({"artefact": "add", "force": True}, stocked), stocked, other).programs


def test_caches_may_be_shared_only_where_a_prefix_says_all(
    stocked: Artefacts, info: ModelInfo
) -> None:
    """What counts from the prompt's end does something else when the prompt ends elsewhere."""
    found = {name: steered(read(name, stocked), stocked, info) for name in stocked.names}
    fixed = {"add", "ablate", "clamp", "rotate", "norm", "several", "order", "gated"}
    assert {name for name, one in found.items() if one.prefix} == fixed
    assert {name for name, one in found.items() if one.whole_prompt} == {"mean"}


def test_more_than_a_request_has_room_for_is_refused(stocked: Artefacts, info: ModelInfo) -> None:
    many = steered(read(["rotate"] * 9, stocked), stocked, info)
    with pytest.raises(InterventionError, match="needs 18 terms of one group at a site"):
        check(many.programs)
    assert isinstance(check(steered(read("add", stocked), stocked, info).programs), Capacity)
