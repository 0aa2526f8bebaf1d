"""Evaluation harnesses on a steered model through `as_hf`; skipped where they are not installed."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import steerkit as sk

QUESTIONS = ("the cat was", "she is very", "the big red dog was not", "food was")
CHOICES = ("happy", "very sad")


@pytest.fixture
def steered(tiny_model, direction) -> Any:
    return tiny_model.with_(sk.Add(direction(tiny_model.info, 1), strength=2.0))


@pytest.fixture
def lm_eval(monkeypatch) -> Any:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    return pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A folder with two tasks of the harness's own kind over a local file."""
    rows = [{"text": q, "choices": CHOICES, "label": 0} for q in QUESTIONS]
    (tmp_path / "mood.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  cache_dir: {tmp_path}\n  data_files:\n"
        f"    test: {tmp_path / 'mood.jsonl'}\n"
        "test_split: test\ndoc_to_text: '{{text}}'\ndoc_to_target: label\n"
    )
    (tmp_path / "mood.yaml").write_text(
        f"task: mood\n{common}output_type: multiple_choice\ndoc_to_choice: choices\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (tmp_path / "free.yaml").write_text(
        f"task: free\n{common}output_type: generate_until\n"
        "generation_kwargs:\n  max_gen_toks: 5\n  until: ['zzz']\n  do_sample: false\n"
        "metric_list:\n  - metric: bypass\n    aggregation: bypass\n    higher_is_better: false\n"
    )
    return tmp_path


def by_hand(model: Any, question: str, answer: str) -> float:
    """Log-probability of an answer, from the model's own logits."""
    tokens = model.tokenizer(f"{question} {answer}", return_tensors="pt")["input_ids"]
    n = len(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    item = sk.batch.Tokenized(tuple(tokens[0].tolist()))
    logits = model.run(sk.batch.Batch.collate([item], pad_id=0)).logits[0]
    rows = logits[-n - 1 : -1].log_softmax(-1)
    return float(rows.gather(1, tokens[0, -n:, None]).sum())


@pytest.mark.filterwarnings("ignore")
def test_lm_evaluation_harness_measures_the_steered_model(lm_eval, steered, tiny_model, task):
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(task), include_defaults=False)

    def measured(model: Any) -> dict[str, list[Any]]:
        with model.as_hf() as hf:
            held = lm_eval.simple_evaluate(
                HFLM(pretrained=hf, tokenizer=model.tokenizer, batch_size=3, max_length=64),
                tasks=["mood", "free"],
                task_manager=manager,
                log_samples=True,
                bootstrap_iters=0,
            )
        ordered = {k: sorted(v, key=lambda s: s["doc_id"]) for k, v in held["samples"].items()}
        return {k: [s["resps"] for s in v] for k, v in ordered.items()}

    found, plain = measured(steered), measured(tiny_model)
    for model, measured_ in ((steered, found), (tiny_model, plain)):
        expected = torch.tensor([[by_hand(model, q, a) for a in CHOICES] for q in QUESTIONS])
        scores = torch.tensor([[float(r[0][0]) for r in row] for row in measured_["mood"]])
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
        answers = [r.text for r in model.generate(
            [sk.Prompt(q, template="raw") for q in QUESTIONS], max_new_tokens=5
        )]  # fmt: skip
        assert [row[0][0].split() for row in measured_["free"]] == [a.split() for a in answers]
    assert found["mood"] != plain["mood"] and found["free"] != plain["free"]


@pytest.mark.filterwarnings("ignore")
def test_inspect_measures_the_steered_model(steered, tiny_model, tiny_folder, tmp_path):
    inspect_ai = pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate

    task = inspect_ai.Task(
        dataset=[Sample(input=q, target="happy") for q in QUESTIONS],
        solver=generate(),
        scorer=includes(),
        config=GenerateConfig(max_tokens=5),
    )
    said = []
    for model in (steered, tiny_model):
        with model.as_hf() as hf:
            judged = get_model(
                "hf/tiny",
                model_path=str(tiny_folder),
                device="cpu",
                do_sample=False,
                memoize=False,
                # The chat template has written the first token already.
                tokenizer_call_args={"add_special_tokens": False},
            )
            judged.api.model = hf
            (log,) = inspect_ai.eval(
                task, model=judged, log_dir=str(tmp_path), display="none", log_format="json"
            )
        assert log.status == "success"
        answers = {s.input: s.output.completion.split() for s in log.samples}
        prompts = [sk.Prompt(q, template="chat") for q in QUESTIONS]
        expected = {
            q: r.text.split()
            for q, r in zip(QUESTIONS, model.generate(prompts, max_new_tokens=5), strict=True)
        }
        assert answers == expected
        said.append(answers)
    assert said[0] != said[1]
    gc.collect()  # what it leaves unclosed is warned of here, where that does not matter
