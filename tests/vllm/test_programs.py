"""Programs as files: every number, gate and rule comes back, and requests run exactly them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.batch import Positions
from steerkit.captures.job import table_sha256
from steerkit.errors import InterventionError, OutputError, SiteError
from steerkit.models.checks import lowered
from steerkit.program import Program, ProgramTable
from steerkit.protocols import ModelInfo
from steerkit.site import Site
from steerkit.vllm import programs as kept
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import Asked, read, steered
from steerkit.vllm.room import check


@pytest.fixture(scope="module")
def made(steerings: Any, info: ModelInfo) -> dict[str, dict[Site, Program]]:
    """Programs of every kind, and stacked ones."""
    found = {name: lowered(ops, info, force=False) for name, ops in steerings().items()}
    found["stacked"] = {
        site: found["several"].get(site, Program()).then(found["mean"].get(site, Program()))
        for site in {*found["several"], *found["mean"]}
    }
    return found


def fingerprint(programs: Mapping[Site, Program]) -> str:
    """Everything that programs hold, hashed by the code that captures use."""
    return table_sha256(ProgramTable((programs,)))


def test_everything_comes_back(made: dict[str, dict[Site, Program]], artefacts: Artefacts) -> None:
    seen = set()
    for name, programs in made.items():
        digest = kept.keep(programs, artefacts)
        found = kept.opened(digest, artefacts)
        assert fingerprint(found) == fingerprint(programs), name
        assert {group.read.dtype for p in found.values() for group in p.groups} <= {torch.float64}
        seen.add(digest)
        assert kept.keep(found, artefacts) == digest
    assert len(seen) == len(made)


def test_numbers_that_text_would_lose_and_masks_come_back(
    artefacts: Artefacts, info: ModelInfo, direction: Any
) -> None:
    third = 1 / 3
    gated = sk.Add(direction(), third).when(sk.When(direction(seed=1), above=third, on="token"))
    open_ended = sk.Clamp(direction(seed=2), low=None, high=third)
    mask = torch.eye(3, dtype=torch.bool)
    programs = lowered(
        (gated, open_ended, sk.Add(direction(seed=3), 1.0, positions=mask)), info, force=False
    )
    found = kept.opened(kept.keep(programs, artefacts), artefacts)
    assert fingerprint(found) == fingerprint(programs)
    (group,) = found[Site(1)].groups
    assert any(rule.mask is not None and rule.mask.equal(mask) for rule in group.positions)
    with pytest.raises(InterventionError, match="a mask of positions at resid_post@1"):
        check(found)


def test_two_owners_keep_two_files_and_forget_their_own(
    made: dict[str, dict[Site, Program]], artefacts: Artefacts
) -> None:
    mine, others = (kept.keep(made["add"], artefacts, owner=name) for name in ("a", "b"))
    assert mine != others
    kept.forget(mine, artefacts)
    kept.forget(mine, artefacts)
    assert kept.opened(others, artefacts)
    with pytest.raises(OutputError, match="cannot read"):
        kept.opened(mine, artefacts)


def test_a_file_that_was_changed_is_refused(
    made: dict[str, dict[Site, Program]], artefacts: Artefacts
) -> None:
    digest = kept.keep(made["clamp"], artefacts)
    path = kept.path_of(digest, artefacts)
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(OutputError, match="not the file of programs that was kept"):
        kept.opened(digest, artefacts)
    with pytest.raises(OutputError, match="is not the hash"):
        kept.path_of("../names/joy", artefacts)


def test_requests_run_the_programs_that_they_name(
    made: dict[str, dict[Site, Program]], artefacts: Artefacts, info: ModelInfo
) -> None:
    for name, programs in made.items():
        asked = read({"steering": {"programs": kept.keep(programs, artefacts)}}, artefacts, info)
        assert Asked.from_wire(asked.to_wire()) == asked
        found = steered(asked, artefacts, info).programs
        acting = {site: program for site, program in programs.items() if program}
        assert fingerprint(found) == fingerprint(acting), name


def test_programs_of_another_model_are_refused(
    made: dict[str, dict[Site, Program]], artefacts: Artefacts, info: ModelInfo
) -> None:
    asked = read({"programs": kept.keep(made["ablate"], artefacts)}, artefacts)
    with pytest.raises(InterventionError, match="programs of width 16 at"):
        steered(asked, artefacts, replace(info, d_model=32))
    with pytest.raises(SiteError, match="no resid_post@2"):
        steered(asked, artefacts, replace(info, n_layers=2))


def test_rules_that_hold_one_mask_hold_one_mask_afterwards(
    artefacts: Artefacts, info: ModelInfo, direction: Any
) -> None:
    """Terms that turn together must have the same rule, and masks are compared by identity."""
    rule = Positions.of(torch.eye(3, dtype=torch.bool))
    turn = sk.Rotate((direction(), direction(seed=3)), by=0.9, positions=rule)
    programs = lowered((turn,), info, force=False)
    found = kept.opened(kept.keep(programs, artefacts), artefacts)
    assert fingerprint(found) == fingerprint(programs)
