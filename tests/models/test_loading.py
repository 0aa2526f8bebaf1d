"""Names, folders and objects in; clear errors for what cannot be a model."""

import json

import pytest
import torch

import steerkit as sk
from steerkit.errors import ModelError
from steerkit.protocols import Model


def test_a_folder_loads_by_path_and_by_string(tiny_folder, tiny_model):
    model = sk.load(str(tiny_folder))
    assert model.info == tiny_model.info
    assert model.info.name == tiny_folder.name
    assert (model.info.n_layers, model.info.d_model, model.info.n_ctx) == (3, 32, 64)
    assert (model.info.dtype, model.info.device, model.info.processing) == ("float32", "cpu", "raw")


def test_half_precision_checkpoints_become_float32_on_a_cpu_unless_asked(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float16)
    half.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    assert sk.load(tmp_path).info.dtype == "float32"
    assert sk.load(tmp_path, dtype="auto").info.dtype == "float16"
    assert sk.load(tmp_path, dtype=torch.bfloat16).info.dtype == "bfloat16"
    with pytest.raises(ModelError, match="no dtype named 'float23'; did you mean 'float32'"):
        sk.load(tmp_path, dtype="float23")


def test_a_missing_folder_says_which_ones_are_there(tiny_folder):
    with pytest.raises(
        ModelError, match=r"no model folder at .*tiny-lama; did you mean 'tiny-llama'"
    ):
        sk.load(tiny_folder.parent / "tiny-lama")
    with pytest.raises(ModelError, match="does not exist or is empty"):
        sk.load("/no/such/place/model")


def test_an_incomplete_folder_says_what_is_missing(tmp_path, tiny_folder):
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelError, match=r"has no config.json \(it holds notes.txt\)"):
        sk.load(tmp_path)
    (tmp_path / "config.json").write_text((tiny_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"a config.json but no weights"):
        sk.load(tmp_path)
    with pytest.raises(ModelError, match=r"is a file; give the folder"):
        sk.load(tmp_path / "config.json")


def test_a_folder_of_an_unknown_architecture_is_one_clear_error(tmp_path, tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mamba99"}))
    (tmp_path / "model.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"cannot load .*mamba99"):
        sk.load(tmp_path)


def test_an_unknown_hub_name_is_one_clear_error(monkeypatch):
    import transformers

    def missing(*args, **kwargs):
        raise OSError("nobody/nothing is not a local folder and is not a valid model\nmore")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", missing)
    with pytest.raises(ModelError, match=r"cannot load 'nobody/nothing': nobody/nothing is not a"):
        sk.load("nobody/nothing")
    with pytest.raises(ModelError, match=r"shipped models: did you mean 'organism:aligned'\?"):
        sk.load("alined")


def test_a_model_without_a_tokenizer_says_what_to_do(tmp_path, tiny_folder):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(ModelError, match=r"has no tokenizer that can be loaded .*wrap\(model, tok"):
        sk.load(tmp_path)


def test_an_unknown_organism_says_what_was_meant():
    with pytest.raises(ModelError, match=r"'alined'.*did you mean 'aligned'"):
        sk.load("organism:alined")


def test_wrap_takes_objects_and_satisfies_the_protocol(llama, direction):
    assert isinstance(llama, Model)
    assert isinstance(llama.with_(sk.Add(direction(llama.info))), Model)
    assert sk.wrap(llama) is llama


@pytest.mark.parametrize("thing", ["gpt2", torch.nn.Linear(2, 2), None])
def test_wrap_refuses_other_things(thing):
    with pytest.raises(ModelError, match=f"cannot wrap a {type(thing).__name__}; give a Hugging"):
        sk.wrap(thing)


def test_loading_is_silent_about_progress(tiny_folder, capfd):
    sk.load(tiny_folder)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_options_of_vllm_are_for_models_in_vllm():
    with pytest.raises(ModelError, match="enforce_eager: an option of vLLM; load 'vllm:organism"):
        sk.load("organism:aligned", enforce_eager=True)


def test_without_vllm_its_models_say_what_to_install(monkeypatch):
    monkeypatch.setattr("steerkit.vllm.starting.vllm_version", lambda: "")
    with pytest.raises(ModelError, match=r"pip install 'steerkit.vllm.', on a CPU"):
        sk.load("vllm:organism:aligned")


def test_the_engine_of_a_command_stands_before_the_name(monkeypatch):
    from steerkit.commands.inputs import open_model

    monkeypatch.setattr("steerkit.models.load", lambda name, **_: name)
    assert open_model("gpt2", engine="vllm") == open_model("vllm:gpt2") == "vllm:gpt2"
    assert open_model("vllm:gpt2", engine="vllm") == "vllm:gpt2"
    assert open_model("gpt2") == "gpt2"
    with pytest.raises(ModelError, match="no engine named 'vlm'; did you mean 'vllm'"):
        open_model("gpt2", engine="vlm")
