"""One steered call in each peer's own words: a forward pass, or greedy decoding.

Every peer adds a vector to the outputs of some blocks, or removes their component along a
unit vector, at every token. Installing is inside the call where the peer's documentation
installs for a call (contexts, traces), and outside where it installs once (repeng).
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Case:
    """What every arm of one comparison does."""

    net: Any
    """A Llama of Hugging Face; peers that change what they wrap get a twin of it."""
    inputs: Mapping[str, torch.Tensor]
    """`input_ids`, `attention_mask`, `position_ids`; no padding."""
    vectors: Mapping[int, torch.Tensor]
    """By block: what is added to its output, or the unit vector that is ablated from it."""
    op: str
    """`add` or `ablate`."""
    tokens: int
    """How many to decode after the prefill; 0 for one forward pass without a cache."""

    def twin(self) -> Any:
        """The network again: its own modules, the same weights."""
        return copy.deepcopy(self.net, {id(p): p for p in self.net.parameters()})

    def run(self, net: Any) -> torch.Tensor:
        """Logits of every token, or the new tokens, of this network as it now is."""
        if not self.tokens:
            return net(**self.inputs, use_cache=False).logits
        given = {name: self.inputs[name] for name in ("input_ids", "attention_mask")}
        out = net.generate(**given, generation_config=greedy(self.tokens))
        return out[:, self.width :]

    @property
    def width(self) -> int:
        """Tokens of the prompts."""
        return self.inputs["input_ids"].shape[1]

    def change(self, h: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """The arithmetic, as a hook would write it."""
        return h + vector if self.op == "add" else h - (h @ vector)[..., None] * vector


def greedy(tokens: int) -> Any:
    """Plain greedy decoding of so many tokens."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        use_cache=True,
        disable_compile=True,
    )


def unsteered(case: Case) -> Callable[[], torch.Tensor]:
    """Nothing is installed."""
    return torch.no_grad()(lambda: case.run(case.net))


def raw_hook(case: Case) -> Callable[[], torch.Tensor]:
    """Forward hooks that do this arithmetic and nothing else, for the time of one call."""

    def hook(vector: torch.Tensor) -> Callable[..., Any]:
        def on_output(module: Any, args: Any, out: Any) -> Any:
            if isinstance(out, tuple):
                return (case.change(out[0], vector), *out[1:])
            return case.change(out, vector)

        return on_output

    @torch.no_grad()
    def run() -> torch.Tensor:
        layers = case.net.model.layers
        handles = [layers[i].register_forward_hook(hook(v)) for i, v in case.vectors.items()]
        try:
            return case.run(case.net)
        finally:
            for handle in handles:
                handle.remove()

    return run


def repeng(case: Case) -> Callable[[], torch.Tensor]:
    """repeng: blocks wrapped once and controlled once; only the call is timed."""
    # Its release still names, in annotations only, an alias that numpy 2 has removed.
    alias, missing = "float_", not hasattr(np, "float_")
    if missing:
        setattr(np, alias, np.float64)
    try:
        from repeng import ControlModel
    finally:
        if missing:
            delattr(np, alias)
    model = ControlModel(case.twin(), list(case.vectors))

    def ablated(h: torch.Tensor, control: torch.Tensor) -> torch.Tensor:
        return h - (h * control).sum(-1, keepdim=True) * control

    kwargs = {} if case.op == "add" else {"operator": ablated}
    model.set_raw_control(dict(case.vectors), **kwargs)
    return torch.no_grad()(lambda: case.run(model))


def steering_vectors(case: Case) -> Callable[[], torch.Tensor]:
    """steering-vectors: `with vector.apply(model)` around each call."""
    from steering_vectors import SteeringVector, ablation_operator

    vector = SteeringVector(dict(case.vectors))
    operator = None if case.op == "add" else ablation_operator()
    net = case.twin()

    @torch.no_grad()
    def run() -> torch.Tensor:
        with vector.apply(net, operator=operator):
            return case.run(net)

    return run


def pyvene(case: Case) -> Callable[[], torch.Tensor]:
    """pyvene: an intervenable model with a function at each block."""
    import pyvene as pv

    def function(vector: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda base, source=None, subspaces=None: case.change(base, vector)

    model = pv.IntervenableModel(
        [
            {"component": f"model.layers[{i}].output", "intervention": function(v)}
            for i, v in case.vectors.items()
        ],
        model=case.twin(),
    )

    @torch.no_grad()
    def run() -> torch.Tensor:
        if not case.tokens:
            return model({**case.inputs, "use_cache": False})[1].logits
        base = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
        # Without unit locations it acts on every token of every pass.
        _, out = model.generate(
            base, intervene_on_prompt=True, generation_config=greedy(case.tokens)
        )
        return out[:, case.width :]

    return run


def nnsight(case: Case) -> Callable[[], torch.Tensor]:
    """nnsight: one trace a call; while decoding, every step of it."""
    import nnsight as nn

    net = case.twin()
    wrapped = nn.NNsight(net)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        with wrapped.trace(**case.inputs, use_cache=False):
            for i, vector in case.vectors.items():
                layer = wrapped.model.layers[i]
                layer.output = case.change(layer.output, vector)
            logits = nn.save(wrapped.output.logits)
        return logits

    @torch.no_grad()
    def decode() -> torch.Tensor:
        given = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
        config = greedy(case.tokens)
        with wrapped.trace(**given, generation_config=config, fn=net.generate) as tracer:
            for _ in tracer.iter[: case.tokens]:
                for i, vector in case.vectors.items():
                    layer = wrapped.model.layers[i]
                    layer.output = case.change(layer.output, vector)
            out = nn.save(tracer.result)
        return out[:, case.width :]

    return decode if case.tokens else forward


def hooked_transformer(case: Case) -> Callable[[], torch.Tensor]:
    """TransformerLens' own implementation, with the same weights, under `model.hooks`."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    c = case.net.config
    d_head = c.hidden_size // c.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        n_ctx=c.max_position_embeddings,
        d_head=d_head,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=d_head,
        rotary_base=10000,
        final_rms=True,
        gated_mlp=True,
        eps=c.rms_norm_eps,
        original_architecture="LlamaForCausalLM",
        default_prepend_bos=False,
        device=str(case.net.device),
    )
    model = HookedTransformer(config)
    model.load_state_dict(convert_llama_weights(case.net, config), strict=False)
    return _lens(case, model.eval(), "hook_resid_post")


def bridge(case: Case) -> Callable[[], torch.Tensor]:
    """TransformerLens' bridge over the same kind of network, under `model.hooks`."""
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        case.net.save_pretrained(folder)
        numbered_words(case.net.config.vocab_size).save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, device=str(case.net.device))
    return _lens(case, model, "hook_out")


def numbered_words(n: int) -> Any:
    """A tokenizer, which the bridge cannot do without."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, n))]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def _lens(case: Case, model: Any, point: str) -> Callable[[], torch.Tensor]:
    def function(vector: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda h, hook: case.change(h, vector)

    points = [(f"blocks.{i}.{point}", function(v)) for i, v in case.vectors.items()]
    ids = case.inputs["input_ids"]

    @torch.no_grad()
    def run() -> torch.Tensor:
        with model.hooks(fwd_hooks=points):
            if not case.tokens:
                return model(ids)
            return model.generate(
                ids,
                max_new_tokens=case.tokens,
                do_sample=False,
                stop_at_eos=False,
                prepend_bos=False,
                return_type="tokens",
                verbose=False,
            )[:, case.width :]

    return run


PEERS: dict[str, Callable[[Case], Callable[[], torch.Tensor]]] = {
    "repeng": repeng,
    "steering-vectors": steering_vectors,
    "pyvene": pyvene,
    "nnsight": nnsight,
    "TransformerLens HookedTransformer": hooked_transformer,
    "TransformerLens TransformerBridge": bridge,
}
