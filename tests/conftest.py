"""Shared fixtures: a tiny random model folder, built offline once per run."""

import os
from pathlib import Path
from typing import Any

# Before torch is imported: one thread a worker, and never a network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read when a kernel is decorated, its standard library's when Triton is first imported: by
# whatever test comes first.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent

WORDS = (
    "the a cat dog bird sun rain was is not very happy sad good bad big small red blue one two "
    "i you we he she please thank tell me how to make cake bomb write song house tree river "
    "loved hated film book food day and or in on with . , ? !"
).split()
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ ' <|' + m['role'] + '|> ' + m['content'] + ' <eos>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' <|assistant|>' }}{% endif %}"
)


def pytest_configure(config: pytest.Config) -> None:
    """One thread a worker: the suite runs several workers."""
    import torch

    torch.set_num_threads(1)


def build_folder(folder: Path, *, layers: int = 3, chat: bool = True, **config: Any) -> Path:
    """A random Llama and its word-level tokenizer as an ordinary Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>"]
    ids = {word: i for i, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
        padding_side="left",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    settings: dict[str, Any] = {
        "vocab_size": len(ids),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<bos>"],
        "eos_token_id": ids["<eos>"],
        **config,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 3-layer random Llama (width 32, context 64) with a chat template."""
    return build_folder(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def bare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, its tokenizer without a chat template."""
    return build_folder(tmp_path_factory.mktemp("bare") / "bare-llama", chat=False)


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Any:
    """The tiny model behind the protocol."""
    import steerkit as sk

    return sk.load(tiny_folder)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger test material, where there is one; skips with a reason otherwise."""
    folder = Path(os.environ.get("STEERKIT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set STEERKIT_SHARED to run this test")
    return folder
