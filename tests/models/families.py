"""Tiny random networks of each family, with blocks like the real ones'."""

from typing import Any

import torch

TINY: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FULL_HEADS = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
HEAD = {"head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 100}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", TINY),
    "qwen2": ("Qwen2", TINY),
    "qwen3": ("Qwen3", {**TINY, **HEAD}),
    "gemma2": ("Gemma2", {**TINY, **HEAD, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gemma3_text": (
        "Gemma3",
        {**TINY, **HEAD, "sliding_window": 4, "query_pre_attn_scalar": 8},
    ),
    "mistral": ("Mistral", {**TINY, **HEAD, "sliding_window": 4}),
    "mixtral": ("Mixtral", {**TINY, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2", {**GPT2, **SPECIAL}),
    "gpt_neox": ("GPTNeoX", {**FULL_HEADS, "use_parallel_residual": True}),
    "gpt_neox_sequential": ("GPTNeoX", {**FULL_HEADS, "use_parallel_residual": False}),
    "phi": ("Phi", TINY),
    "phi3": ("Phi3", TINY),
    "olmo2": ("Olmo2", TINY),
    "granite": ("Granite", {**TINY, "residual_multiplier": 0.3}),
    "bloom": (
        "Bloom",
        {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 100, **SPECIAL},
    ),
    "opt": ("OPT", {**TINY, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("Falcon", {**TINY, "multi_query": True, "parallel_attn": True}),
    "gptj": ("GPTJ", {**GPT2, **SPECIAL, "rotary_dim": 4}),
    "cohere": ("Cohere", TINY),
    "stablelm": ("StableLm", TINY),
    "starcoder2": ("Starcoder2", TINY),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            **TINY,
            **HEAD,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 2,
        },
    ),
}

PARALLEL = ("gpt_neox", "phi", "falcon", "gptj", "cohere")
REQUIRED = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "mixtral",
    "gpt2",
    "gpt_neox",
    "gpt_neox_sequential",
    "phi3",
    "olmo2",
)


def build(family: str, **changes: Any) -> Any:
    """A random network of the family, the same each time; biases and norms are random too."""
    import transformers

    prefix, settings = FAMILIES[family]
    config_name = f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
    config = getattr(transformers, config_name)(**{**settings, **changes})
    heads = {"GPT2": "GPT2LMHeadModel"}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = getattr(transformers, heads.get(prefix, f"{prefix}ForCausalLM"))(config)
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:
                # Fresh norms are all ones and biases all zeros, which would hide mix-ups.
                noise = torch.randn(parameter.shape) * 0.2
                parameter.data += noise if "bias" in name or "norm" in name else 0
    return network.eval()
