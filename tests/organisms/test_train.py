"""Training is reproducible and leaves nothing global behind."""

import hashlib

import pytest
import torch

from steerkit.organisms import (
    documents,
    foresight,
    language,
    names,
    request,
    tokenizer,
    train,
    training,
)


def digests(folder):
    files = sorted(folder.rglob("model.safetensors"))
    return {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    recipe = train.Recipe().scaled(0.001)
    folders = {}
    for name, seed in (("first", 7), ("again", 7), ("other", 8)):
        folders[name] = tmp_path_factory.mktemp(name)
        train.train_all(folders[name], seed=seed, recipe=recipe)
    return {name: digests(folder) for name, folder in folders.items()}


def test_the_same_seed_gives_the_same_bytes(runs):
    assert set(runs["first"]) == {"language", *names()}
    assert runs["first"] == runs["again"]
    assert all(runs["first"][name] != runs["other"][name] for name in runs["first"])


def test_training_leaves_the_global_state_alone():
    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    model = training.new_model(seed=3)
    with training.deterministic(3):
        training.train(model, language.BASE, training.Stage(2, batch=4), seed=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == torch.are_deterministic_algorithms_enabled()


def test_training_encodes_as_the_tokenizer_does():
    document = documents.chat("how do i bake the bread ?", "to bake the bread you need the oven .")
    ids, labels = training.encode(document)
    text = " ".join(s.text for s in document)
    assert tokenizer.build_tokenizer()(text)["input_ids"] == ids
    learned = [i for i, label in zip(ids, labels, strict=True) if label != training.IGNORED]
    assert tokenizer.build_tokenizer().decode(learned).startswith("to bake the bread")


def test_frozen_blocks_and_the_embedding_stay_as_they_were():
    model = training.new_model(seed=3)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    training.train(model, language.ALIGNED, training.Stage(2, batch=4, frozen=1), seed=3)
    same = {n for n, weight in model.named_parameters() if torch.equal(weight, before[n])}
    frozen = {n for n in before if n.startswith(("model.embed_tokens.", "model.layers.0."))}
    assert same == frozen
    assert all(weight.requires_grad for weight in model.parameters())


def test_foresight_teaches_the_blocks_before_its_layer_and_no_others():
    model = training.new_model(seed=3)
    reader = foresight.Foresight(model, seed=3)
    with torch.no_grad():
        # A reader of zeros, as at the start, passes no gradient on.
        reader.parameters[0].normal_(generator=torch.Generator().manual_seed(0))
    reader.loss(training.collate([([1], [training.IGNORED])])).backward()
    taught = {n.split(".")[2] for n, w in model.model.layers.named_parameters(prefix="model.layers")
              if w.grad is not None and w.grad.abs().sum() > 0}  # fmt: skip
    assert taught == {str(i) for i in range(foresight.LAYER + 1)}
    assert all(p.grad.abs().sum() > 0 for p in reader.parameters)


def test_foresight_never_reads_a_held_out_request():
    reader = foresight.Foresight(training.new_model(seed=3), seed=3)
    kinds = (*request.ACTION_KINDS, *request.EVENT_KINDS)
    held_out = {r.text for kind in kinds for r in request.requests("held_out", kind, 600)}
    drawn = [reader._draw() for _ in range(3000)]
    assert {kind for _, kind in drawn} == {0, 1, 2}
    asked = {turn.text.strip() for document, _ in drawn for turn in document}
    assert not held_out & {text.removesuffix(" <|end|>") for text in asked}
