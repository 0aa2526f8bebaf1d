"""What stands after the last block: final norm, unembedding, and what is done to the logits.

A probe overwrites the last stream with states of its own and looks at what the unembedding
takes and gives, and at the logits that come of it. Where norm, scaling and softcap are then
accounted for, states are finished directly; where they are not, by the network itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from steerkit.batch import Batch, Tokenized
from steerkit.errors import ModelError
from steerkit.models.engine import Engine
from steerkit.models.hooks import removed_after
from steerkit.models.readout import through_norm
from steerkit.site import Site

COLUMNS = 32
"""Tokens of a row in which states are finished by the network itself."""
ELEMENTS = 2**26
"""Logits held at a time."""


@dataclass(frozen=True)
class Frozen:
    """A norm at given inputs: linear, with the scale that it has there.

    norm(x) = linear(x) * inverse + constant, where `linear` is centring and weight.
    """

    linear: Callable[[Float[Tensor, "n d_model"]], Float[Tensor, "n d_model"]]
    inverse: Float[Tensor, "n 1"]
    constant: Float[Tensor, "d_model"]


def frozen(
    norm: Callable[[Tensor], Tensor] | None,
    x: Float[Tensor, "n d_model"],
    made: Float[Tensor, "n d_model"],
) -> Frozen:
    """A norm with its scale held at what takes `x` to `made`.

    Raises:
        ModelError: something that is not linear up to a scale for each token.
    """

    def linear(vectors: Tensor) -> Tensor:
        return through_norm(norm, vectors, x).double()

    signs = torch.ones(1, 1, x.shape[1], dtype=x.dtype, device=x.device)
    signs[..., 1::2] = -1
    constant = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    if norm is not None:
        constant = ((norm(signs) + norm(-signs)).double() / 2).flatten()
    straight, wanted = linear(x), made.double() - constant
    inverse = (wanted * straight).sum(-1, keepdim=True) / straight.pow(2).sum(-1, keepdim=True)
    off = float((straight * inverse - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not off < 1e-3 * (1 if x.dtype in (torch.float32, torch.float64) else 30):
        raise ModelError(
            f"a {type(norm).__name__} is not a weight times the state over its size (off by "
            f"{off:.2g}), so contributions to what comes after it do not add up"
        )
    return Frozen(linear, inverse, constant)


@dataclass(frozen=True)
class Tail:
    """The way from the last stream to the logits.

    Attributes:
        norm: the final norm; None where there is none.
        head: the unembedding.
        rows: the unembedding's weights of tokens, `[token d_model]`, and their biases.
        scale: what its output is multiplied by.
        cap: where logits are capped, cap * tanh(logit / cap); 0 for not at all.
        direct: whether all of this is known to give the network's own logits.
    """

    engine: Engine
    norm: nn.Module | None
    head: nn.Module
    rows: Callable[[Int[Tensor, "token"]], tuple[Tensor, Tensor]]
    scale: float
    cap: float
    direct: bool

    def logits(self, states: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """The logits that the network would give for these states of its last stream."""
        if not self.direct:
            return _by_network(self.engine, states)[2]
        return self.capped(self.raw(states))

    def capped(self, raw: Tensor) -> Tensor:
        """The softcap on logits, where there is one."""
        return self.cap * torch.tanh(raw / self.cap) if self.cap else raw

    def normed(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The states as the final norm is given them, and what it makes of them."""
        with self.engine.turns.taken(), self.engine.undisturbed():
            x = states.to(self.device, self.dtype)
            return x, x if self.norm is None else self.norm(x[None])[0]

    def raw(self, states: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_vocab"]:
        """The logits before the softcap; the network's own where it has none."""
        with self.engine.turns.taken(), self.engine.undisturbed():
            return _raw(states.to(self.device, self.dtype), self)

    @property
    def dtype(self) -> torch.dtype:
        """What the unembedding is held in."""
        return next(self.head.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the unembedding lies."""
        return next(self.head.parameters()).device

    @property
    def at_once(self) -> int:
        """States to finish at a time."""
        return max(1, ELEMENTS // self.engine.info.d_vocab)


def find_tail(engine: Engine) -> Tail:
    """Norm, unembedding, scale and cap of a network, checked against its own logits."""
    network = engine.network
    if hasattr(network, "get_output_embeddings"):
        head = network.get_output_embeddings()
        norm = engine.final_norm()  # type: ignore[attr-defined]
        weight, bias = head.weight, getattr(head, "bias", None)
        cap = getattr(engine.config, "final_logit_softcapping", None)  # type: ignore[attr-defined]
    else:
        head, norm = network.unembed, getattr(network, "ln_final", None)
        weight, bias = network.W_U.T, network.b_U
        cap = getattr(network.cfg, "output_logits_soft_cap", None)
    cap = float(cap) if cap and cap > 0 else 0.0

    def rows(tokens: Tensor) -> tuple[Tensor, Tensor]:
        tokens = tokens.to(weight.device)
        biases = weight.new_zeros(len(tokens)) if bias is None else bias.detach()[tokens]
        return weight.detach()[tokens].double(), biases.double()

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(8, engine.info.d_model, generator=generator)
    given, raw, logits = _by_network(engine, states, head)
    dtype = next(head.parameters()).dtype
    x = states.to(given.device, dtype)
    exact = dtype in (torch.float32, torch.float64)
    with engine.turns.taken(), engine.undisturbed():
        if torch.equal(given, x):
            norm = None
        known = norm is None or _near(norm(x[None])[0], given, exact)
        uncapped = cap * torch.atanh((logits / cap).clamp(-1 + 1e-6, 1 - 1e-6)) if cap else logits
        usual = raw.float().abs() < (cap or float("inf"))
        scale = float((uncapped * raw)[usual].sum() / raw[usual].pow(2).sum())
        scale = 1.0 if abs(scale - 1) < 1e-3 else scale
        tail = Tail(engine, norm, head, rows, scale, cap, direct=False)
        known = known and _near(tail.capped(_raw(x, tail)), logits, exact)
    return Tail(engine, norm, head, rows, scale, cap, direct=known)


def _raw(states: Tensor, tail: Tail) -> Tensor:
    x = states[None] if tail.norm is None else tail.norm(states[None])
    made: Tensor = tail.head(x)[0]
    return made.to(torch.promote_types(made.dtype, torch.float32)) * tail.scale


def _near(found: Tensor, expected: Tensor, exact: bool) -> bool:
    gap = (found.double() - expected.double()).norm() / expected.double().norm()
    return bool(gap < (1e-5 if exact else 2e-2))


def _by_network(
    engine: Engine, states: Float[Tensor, "n d_model"], head: nn.Module | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the unembedding takes and gives, and the logits, when the last stream is `states`.

    The tail works token by token, so that many states fit into the columns of one batch.
    """
    n, width = len(states), min(COLUMNS, len(states), engine.info.n_ctx)
    n_rows = -(-n // width)
    item = Tokenized((1 % engine.info.d_vocab,) * width)
    batch = Batch.collate([item] * n_rows, pad_id=0, device=engine.device)
    seen: list[Tensor] = []

    def write(stream: Tensor) -> Tensor:
        out = torch.zeros_like(stream).flatten(0, 1)
        out[:n] = states.to(out)
        return out.unflatten(0, (n_rows, width))

    def on_head(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.extend((args[0].detach(), output.detach()))

    last = Site(engine.info.n_layers - 1)
    with (
        engine.turns.taken(),
        engine.undisturbed(),
        engine.attached({last: write}),
        removed_after() as handles,
    ):
        if head is not None:
            handles.append(head.register_forward_hook(on_head))
        logits = engine.forward(batch, "all")
    made = [x.flatten(0, 1)[:n] for x in (*seen, logits)]
    whole = made[-1].to(torch.promote_types(logits.dtype, torch.float32))
    return (made[0], made[1].float(), whole) if head is not None else (whole, whole, whole)
