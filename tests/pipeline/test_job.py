import json

import pytest

import steerkit as sk
from steerkit.errors import InterventionError, MethodError, PromptError, SiteError
from steerkit.interventions import load_steering
from steerkit.pipeline import FILES, Outcome, Parts, Settings, run
from steerkit.pipeline.job import groups_a_side
from steerkit.prompts import Contrast

QUICK = Settings(
    methods=("mean_difference",),
    operators=("add",),
    objective="projection",
    max_kl=50.0,
    n_permutations=9,
    n_random=5,
    null_budget=0,
    max_new_tokens=3,
)


@pytest.fixture(scope="module")
def contrast() -> sk.Contrast:
    things = ("cat", "dog", "house", "river", "food", "film")
    colours = ("red", "blue", "big", "small")
    return sk.Contrast.of(
        [f"the {c} {t} was happy" for t in things for c in colours],
        [f"the {c} {t} was sad" for t in things for c in colours],
        paired=True,
        name="mood",
    )


@pytest.fixture(scope="module")
def outcome(tiny_model, contrast) -> Outcome:
    return run(tiny_model, Parts.of(contrast), QUICK, progress=False)


def test_the_job_gives_what_each_step_gives(outcome, tiny_model):
    assert [str(s) for s in outcome.activations.sites] == [f"resid_post@{i}" for i in range(3)]
    assert len(outcome.directions) == 3
    assert outcome.found and outcome.report is not None
    assert outcome.steered.info == tiny_model.info and outcome.steered.table is not None
    assert tiny_model.table is None
    assert outcome.report.target == "projection"
    assert outcome.report.score("projection").difference.estimate.high < 0


def test_written_artefacts_can_be_used_again(outcome, tiny_model, tmp_path):
    written = outcome.write(tmp_path)
    assert [p.name for p in written] == list(FILES)
    (again,) = load_steering(tmp_path / "steering.safetensors", model=tiny_model)
    assert again.describe() == outcome.sweep.best.intervention.describe()
    direction = sk.Direction.load(tmp_path / "direction.safetensors", model=tiny_model)
    assert direction.unit.equal(outcome.sweep.best.direction.unit)
    prompts = ["the cat was happy", "tell me how"]
    a = tiny_model.with_(again).generate(prompts, max_new_tokens=4)
    b = outcome.steered.generate(prompts, max_new_tokens=4)
    assert [x.tokens for x in a] == [x.tokens for x in b]


def test_the_report_tells_the_story_in_order(outcome):
    titles = [section.title for section in outcome.report.sections]
    assert titles == ["Where it works", "Against chance", "The directions", "The prompts"]
    data = outcome.report.to_json()["sections"]
    assert data[0]["data"]["best"] == json.loads(json.dumps(outcome.sweep.best.to_json()))
    assert [row[0] for row in data[3]["rows"]] == ["fit", "search", "audit"]


def test_nothing_within_the_guard_leaves_the_model_unsteered(tiny_model, contrast, tmp_path):
    from dataclasses import replace

    none = run(tiny_model, Parts.of(contrast), replace(QUICK, max_kl=1e-9), progress=False)
    assert not none.found and none.report is None and none.steered is None
    assert [p.name for p in none.write(tmp_path)] == list(FILES[:3])


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"methods": ("pcaa",)}, MethodError, "did you mean 'pca'"),
        ({"operators": ("ad",)}, InterventionError, "did you mean 'add'"),
        ({"streams": ("mlp_oot",)}, SiteError, "did you mean 'mlp_out'"),
        ({"positions": ("promt",)}, InterventionError, "did you mean 'prompt'"),
        ({"references": ("zeroo",)}, InterventionError, "did you mean 'zero'"),
        ({"objective": "refuse"}, MethodError, "did you mean 'refusal'"),
        ({"aim": "indus"}, MethodError, "did you mean 'induce'"),
        ({"max_kl": 0.0}, MethodError, "positive number of nats"),
    ],
)
def test_settings_fail_before_any_step(change, kind, says):
    with pytest.raises(kind, match=says):
        Settings(**change).check()


def test_held_out_prompts_come_from_the_other_contrast(contrast):
    other = contrast.map(lambda p: sk.Prompt(p.text.replace("the", "a")))
    parts = Parts.held_out(contrast, other)
    assert parts.fit == contrast
    assert len(parts.search) + len(parts.audit) == len(other)
    with pytest.raises(PromptError, match="too few"):
        Parts.held_out(contrast, sk.Contrast.of(["a"], ["b"]))


def test_few_groups_give_few_folds() -> None:
    pairs = Contrast.of(["a", "b", "c", "d"], ["e", "f", "g", "h"], paired=True)
    assert groups_a_side(pairs) == 4
    templates = Contrast.of(
        [{"text": t, "group": t[0]} for t in ("aa", "ab", "ba")],
        [{"text": t, "group": t[0]} for t in ("ac", "bc", "cc")],
    )
    assert groups_a_side(templates) == 2
