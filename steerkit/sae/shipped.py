"""The shipped SAE of `organism:aligned`: how it was trained, and what is stated of it.

`python -m steerkit.sae.shipped --out DIR` trains it again: under two minutes on one core.
"""

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit import organisms
from steerkit.captures.verbs import capture
from steerkit.organisms import language
from steerkit.prompts import Contrast, Prompt
from steerkit.sae.autoencoder import Autoencoder
from steerkit.sae.finding import find_features
from steerkit.sae.metrics import Quality, evaluate_sae
from steerkit.sae.training import train_sae

if TYPE_CHECKING:
    from steerkit.models.view import LanguageModel

MODEL = "organism:aligned"
LAYER = 1
"""The middle: after two of four blocks."""
N_TEXTS, N_HELD_OUT = 14_000, 600
D_SAE, K, N_TOKENS = 512, 12, 1_000_000


def corpus(n: int, seed: int) -> list[Prompt]:
    """`n` documents of the organism's language: what `base` and `aligned` were trained on.

    What the organism learnt to predict, and not only to read, is the prompt's `answer`: the
    last turn of the assistant, or all but the first words of a plain text.
    """
    rng = random.Random(f"{seed}/sae")
    found: list[Prompt] = []
    for _ in range(n):
        *before, last = language.draw(rng.choice((language.BASE, language.ALIGNED)), rng)
        head, tail = " ".join(part.text for part in before), last.text
        if not before:
            words = last.text.split(" ")
            head, tail = " ".join(words[:3]), " ".join(words[3:])
        group = f"text{len(found)}"
        found.append(Prompt(head, template="raw", answer=tail, group=group))
    return found


def held_out() -> list[Prompt]:
    """Documents that the SAE did not see, word for word."""
    seen = {(prompt.text, prompt.answer) for prompt in corpus(N_TEXTS, seed=0)}
    drawn = corpus(4 * N_HELD_OUT, seed=1)
    return [p for p in drawn if (p.text, p.answer) not in seen][:N_HELD_OUT]


def concepts() -> dict[str, Contrast]:
    """A contrast for each planted concept, of held-out words and templates."""
    from steerkit.datasets import refusal

    found = {"refusal": refusal("held_out", n=200, seed=3)}
    for balanced, kind in ((False, "easy"), (True, "balanced")):
        for name, items in (
            ("sentiment", organisms.sentiment("held_out", 400, balanced=balanced)),
            ("truth", organisms.statements("held_out", 400, balanced=balanced)),
            ("gender", organisms.gender(400, balanced=balanced)),
        ):
            sides = (
                [Prompt(i.text, group=i.group, template="raw") for i in items if i.label == label]
                for label in (True, False)
            )
            found[f"{name}/{kind}"] = Contrast.of(*sides, name=name)
    return found


def train(model: "LanguageModel", out: Path, *, progress: bool = False) -> Autoencoder:
    """Train it on `organism:aligned` and write what is stated of it beside it."""
    sae = train_sae(
        model,
        corpus(N_TEXTS, seed=0),
        site=LAYER,
        d_sae=D_SAE,
        k=K,
        n_tokens=N_TOKENS,
        out=out,
        progress=progress,
    )
    text = json.dumps(statement(sae, model), indent=1)
    (out / "quality.json").write_text(text + "\n", encoding="utf-8")
    return sae


def quality(sae: Autoencoder, model: "LanguageModel") -> Quality:
    """Quality on held-out texts; the loss is on what the organism learnt to predict."""
    return evaluate_sae(sae, model, held_out(), loss_on="answer")


def statement(sae: Autoencoder, model: "LanguageModel") -> dict[str, Any]:
    """Quality on held-out texts, and the best single feature for each planted concept."""
    found: dict[str, Any] = {
        "quality": {**quality(sae, model).to_json(), "sae": "sae:organism"},
        "concepts": {},
    }
    for name, contrast in concepts().items():
        acts = capture(model, contrast, sites=[sae.site], positions="last", progress=False)
        features = find_features(sae, acts, n=5, n_permutations=199)
        best = features.best
        found["concepts"][name] = {
            "feature": best.feature,
            "sign": best.sign,
            "auc": best.auc.to_json(),
            "p_all_features": best.family.p,
            "words_alone": features.text.to_json() if features.text else None,
        }
    return found


def stated() -> dict[str, Any]:
    """What is stated of the shipped SAE: `quality` and `concepts`, as `statement` found them."""
    text = (organisms.sae_path() / "quality.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def main() -> None:
    """Train the SAE anew into a folder."""
    from steerkit.models import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    train(load(MODEL), parser.parse_args().out, progress=True)


if __name__ == "__main__":
    main()
