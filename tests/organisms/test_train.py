"""Training is reproducible and leaves nothing global behind."""

import hashlib

import pytest
import torch

from steerkit.organisms import language, names, tokenizer, train, training


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
    document = language.chat("how do i bake the bread ?", "to bake the bread you need the oven .")
    ids, labels = training.encode(document)
    text = " ".join(s.text for s in document)
    assert tokenizer.build_tokenizer()(text)["input_ids"] == ids
    learned = [i for i, label in zip(ids, labels, strict=True) if label != training.IGNORED]
    assert tokenizer.build_tokenizer().decode(learned).startswith("to bake the bread")
