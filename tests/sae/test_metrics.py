"""Quality measures at their ends, and against the same numbers computed by hand."""

from typing import Any

import pytest
import torch

import steerkit as sk
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Prompt
from steerkit.sae import evaluate_sae, load_sae
from steerkit.scoring import answer_log_probs

TEXTS = ["the cat is happy", "i loved the big red book and the film", "tell me how to make a cake"]


@pytest.fixture(scope="module")
def model(tiny_folder: Any) -> Any:
    return sk.load(tiny_folder)


def exact(make: Any, scale: float = 1.0) -> Any:
    """h = relu(h) - relu(-h): nothing is lost; with scale 0 everything is."""
    sae = make(d=32, f=64)
    eye = torch.eye(32)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(scale * torch.cat([eye, -eye]))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def test_a_perfect_sae_recovers_everything_and_an_empty_one_nothing(make: Any, model: Any) -> None:
    whole = evaluate_sae(load_sae(exact(make), model=model), model, TEXTS)
    assert whole.loss_recovered.value == pytest.approx(1.0, abs=1e-5)
    assert whole.variance_explained == pytest.approx(1.0, abs=1e-9)
    assert whole.kl.value == pytest.approx(0.0, abs=1e-6)
    assert whole.l0.value == pytest.approx(32.0) and whole.l0.value == whole.statistics.l0
    nothing = evaluate_sae(load_sae(exact(make, 0.0), model=model), model, TEXTS)
    assert nothing.loss_recovered.value == pytest.approx(0.0, abs=1e-9)
    assert nothing.loss_spliced == nothing.loss_zero
    assert nothing.loss_plain == pytest.approx(whole.loss_plain)


def test_losses_are_those_of_a_forward_pass_with_a_hook(make: Any, model: Any) -> None:
    """One prompt at a time, a torch hook on the block, cross-entropy: no code in common."""
    sae = load_sae(make("jumprelu", d=32, f=64), model=model)
    found = evaluate_sae(sae, model, TEXTS)
    network = model.engine.network
    block = network.model.layers[1]
    total = {"plain": 0.0, "spliced": 0.0, "zero": 0.0}
    count = 0
    for text in TEXTS:
        ids = torch.tensor([model.tokenize([text])[0].prompt])
        special = model.decode([int(ids[0, 0])]) == ""

        def change(h: torch.Tensor, how: str, first: int = int(special)) -> torch.Tensor:
            out = h.clone()
            inner = h[:, first:]
            out[:, first:] = 0 * inner if how == "zero" else sae.reconstruct(inner)[1]
            return out

        for how in total:

            def hook(_m: Any, _i: Any, out: Any, how: str = how) -> Any:
                if how == "plain":
                    return None
                first = out[0] if isinstance(out, tuple) else out
                changed = change(first, how)
                return (changed, *out[1:]) if isinstance(out, tuple) else changed

            handle = block.register_forward_hook(hook)
            with torch.no_grad():
                logits = network(ids).logits[0, :-1]
            handle.remove()
            total[how] += float(
                torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            )
        count += ids.shape[1] - 1
    assert found.n_predicted == count
    assert found.loss_plain == pytest.approx(total["plain"] / count, rel=1e-5)
    assert found.loss_spliced == pytest.approx(total["spliced"] / count, rel=1e-5)
    assert found.loss_zero == pytest.approx(total["zero"] / count, rel=1e-5)
    wanted = (total["zero"] - total["spliced"]) / (total["zero"] - total["plain"])
    assert found.loss_recovered.value == pytest.approx(wanted, rel=1e-3)


def test_loss_on_answers_alone(make: Any, model: Any) -> None:
    prompts = [Prompt("the cat is", answer="happy"), Prompt("tell me how", answer="to make cake")]
    sae = load_sae(exact(make), model=model)
    found = evaluate_sae(sae, model, prompts, loss_on="answer")
    log_probs = torch.cat(answer_log_probs(model, prompts))
    assert found.n_predicted == len(log_probs)
    assert found.loss_plain == pytest.approx(float(-log_probs.mean()), rel=1e-5)
    with pytest.raises(PromptError, match="nothing to predict on answer tokens"):
        evaluate_sae(sae, model, TEXTS, loss_on="answer")
    with pytest.raises(MethodError, match="'all' or 'answer'"):
        evaluate_sae(sae, model, TEXTS, loss_on="prompt")
