"""A job's spec changes with everything its result depends on, and with nothing else."""

import pytest
import torch

from steerkit.batch import Positions
from steerkit.captures import Pooling, Span
from steerkit.captures.job import Job, choose_sites, describe, table_sha256
from steerkit.program import Gate, Group, Latch, Opcode, Program, ProgramTable
from steerkit.prompts import Contrast, Prompt
from steerkit.site import Site

TEXTS = ["a b c", "d e", "f"]


def job(model, prompts=TEXTS, **changes):
    options = {
        "sites": (Site(0), Site(1)),
        "pooling": Pooling(),
        "before": False,
        "token_budget": 64,
        **changes,
    }
    return Job.plan(model, prompts, **options)


def table(value=1.0, site=None, positions="all", slots=1, gate=None, pooled=None):
    rows = torch.full((1, 8), value, dtype=torch.float64)
    group = Group(
        (Opcode.CONSTANT,),
        rows,
        torch.zeros(1, dtype=torch.float64),
        rows,
        torch.ones(1, 3, dtype=torch.float64),
        (Positions.of(positions),),
        (gate,) if gate else (),
    )
    latches = (Latch("name", gate, pooled),) if pooled else ()
    return ProgramTable(({site or Site(1): Program((group,), latches)},) * slots)


def gate(axis=0, threshold=0.5, **fields):
    return Gate(torch.eye(8, dtype=torch.float64)[axis], threshold, **fields)


def test_equal_jobs_have_equal_specs_whatever_form_the_prompts_take(make_fake):
    model = make_fake()
    assert job(model).spec == job(model, [Prompt(t) for t in TEXTS]).spec
    assert job(model).spec == job(model, [{"text": t} for t in TEXTS]).spec


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": TEXTS[::-1]},
        {"prompts": [Prompt("a b c", group="g"), *TEXTS[1:]]},
        {"prompts": Contrast.of(TEXTS[:1], TEXTS[1:])},
        {"sites": (Site(0),)},
        {"sites": (Site(0), Site(1, "attn_out"))},
        {"pooling": Pooling("mean_prompt")},
        {"pooling": Pooling(exclude_bos=True)},
        {"pooling": Pooling(sink_ratio=10.0)},
        {"pooling": Pooling(0)},
        {"before": True},
        {"token_budget": 63},
    ],
)
def test_every_option_is_in_the_spec(make_fake, changes):
    model = make_fake()
    assert job(model).spec != job(model, **changes).spec


def test_spans_differ_by_occurrence_too(make_fake):
    texts = ["x a x", "a x x"]
    specs = [
        job(make_fake(), texts, pooling=Pooling(span)).spec
        for span in (Span("x"), Span("x", "first"), Span(("x", "x")))
    ]
    assert specs[0] != specs[1] and specs[0] != specs[2]


def test_the_same_words_under_another_tokenizer_are_another_capture(make_fake):
    other = make_fake()
    other.words.append("shifted")
    assert job(make_fake()).spec != job(other).spec


def test_programs_are_told_apart_by_value_site_slots_and_positions():
    tables = [
        None,
        table(),
        table(2.0),
        table(site=Site(2)),
        table(positions="prompt"),
        table(positions=[0]),
        table(positions=[-1]),
        table(positions=torch.tensor([[True, False]])),
        table(positions=torch.tensor([[False, True]])),
        table(slots=2),
        table(gate=gate()),
        table(gate=gate(1)),
        table(gate=gate(threshold=0.6)),
        table(gate=gate(measure="cosine")),
        table(gate=gate(above=False)),
        table(gate=gate(latch="name"), pooled="last_prompt"),
        table(gate=gate(latch="name"), pooled="mean_prompt"),
    ]
    assert len({table_sha256(t) for t in tables}) == len(tables)
    assert table_sha256(table()) == table_sha256(table())


def test_a_steered_model_is_described_by_its_own_words_or_by_its_sites(make_fake):
    assert describe(make_fake()) == ()
    assert describe(make_fake(table=table(site=Site(2)))) == ("program at resid_post@2",)


def test_sites_are_chosen_by_streams_and_layers_or_named(fake):
    every = choose_sites(fake, "resid_post", None, None)
    assert every == (Site(0), Site(1), Site(2))
    assert choose_sites(fake, ("resid_post", "attn_out"), 1, None) == (
        Site(1, "attn_out"),
        Site(1),
    )
    named = choose_sites(fake, "resid_post", None, ["mlp_out@2", 0, Site(0)])
    assert named == (Site(0), Site(2, "mlp_out"))
    assert choose_sites(fake, "resid_post", None, "mlp_out@2") == (Site(2, "mlp_out"),)


def test_planning_runs_nothing(make_fake):
    model = make_fake()
    planned = job(model)
    assert planned.counts.tolist() == [1, 1, 1] and not model.runs
    assert job(model, pooling=Pooling("all")).counts.tolist() == [4, 3, 2]
