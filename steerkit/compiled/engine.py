"""One graph and one table: a network compiled once, its programs edited in place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.batch import Batch, Tokenized
from steerkit.compiled.attachment import attach
from steerkit.compiled.cache import static_cache
from steerkit.compiled.capacity import Capacity
from steerkit.compiled.copies import check_hooks, copied_blocks, structural_copy, tensors_of
from steerkit.compiled.decoding import complete
from steerkit.compiled.latches import LatchTable
from steerkit.compiled.programs import Programs
from steerkit.compiled.proof import prove
from steerkit.compiled.replay import Recorder
from steerkit.compiled.requests import Requests
from steerkit.compiled.single import vectors_for_single_rows
from steerkit.compiled.slots import Slots
from steerkit.compiled.steps import Compiler, Step, make_step
from steerkit.errors import HookError, InterventionError, ModelError, PromptError
from steerkit.kernels.device import DeviceTable
from steerkit.models.hooks import Visit
from steerkit.models.huggingface import HuggingFaceEngine
from steerkit.program import Opcode, ProgramTable
from steerkit.protocols import Logits
from steerkit.site import Site

Kind = Literal["prompt", "score", "token"]
"""A chunk of the prompts with logits of its last column; with all logits; one token a row."""


@dataclass(frozen=True)
class Receipt:
    """What really ran in the last call.

    Attributes:
        path: `compiled` or `cuda_graph`.
        steered: passes of the steered graph.
        untouched: passes of the untouched graph, which has no programs in it.
        graphs: graphs that were made since the model was compiled; steady while it is used.
    """

    path: str
    steered: int = 0
    untouched: int = 0
    graphs: int = 0


class CompiledEngine:
    """A network's structural copies, compiled over a static cache, with a table of programs.

    The user's network is neither changed nor hooked; weights are shared with it. Two copies
    are compiled: one with programs at every site, and one untouched, which runs what has only
    slot 0.

    Args:
        base: the engine of the network.
        capacity: what there is room for.
        sites: where programs can stand.
        path: what the receipt says.
        backend: of torch.compile.
        recorder: turns compiled steps into recorded ones; None to run them as they are.

    Raises:
        ModelError: a network that cannot stand in one graph or have a static cache.
        HookError: the self-test failed.
    """

    def __init__(
        self,
        base: HuggingFaceEngine,
        capacity: Capacity,
        sites: Sequence[Site],
        *,
        path: str,
        backend: str | Callable[..., Any],
        recorder: Recorder | None = None,
    ) -> None:
        self.base, self.capacity, self.sites = base, capacity, tuple(sorted(sites))
        self.info, self.text, self.turns = base.info, base.text, base.turns
        self.path = path
        dtype = next(base.network.parameters()).dtype
        # One slot more, for canaries, whose additions always find room.
        room = replace(
            capacity, slots=capacity.slots + 1, opcodes=capacity.opcodes | {Opcode.CONSTANT}
        )
        d_model = base.info.d_model
        self.table = DeviceTable(self.sites, d_model, room, device=base.device, dtype=dtype)
        self.latches = LatchTable(self.table)
        self.slots = Slots(self.table, self.latches, capacity.slots)
        compute = self.table.tensors.strength.dtype
        self.requests = Requests(capacity, d_model, base.device, compute)
        self.cache = static_cache(
            base.config, capacity.length, self.requests.column, base.info.name
        )
        self._programs = Programs(self.table, self.latches, self.requests)
        self._compiler = Compiler(backend, base.info.name)
        self._recorder = recorder
        self._steps: dict[tuple[Kind, bool], Step] = {}
        self._passes = {True: 0, False: 0}
        self._running = 0
        with self.turn():
            self._copies = {steered: structural_copy(base.network) for steered in (False, True)}
            for made in self._copies.values():
                vectors_for_single_rows(made)
            blocks = copied_blocks(base.network, self._copies[True], base.blocks)
            attach(blocks, self._programs.visits(self.sites))
            self._shared = _identities(base.network)
            self._allocate()
            self.ready("prompt", "token")

    @property
    def resumes(self) -> str:
        """Why rows cannot join a pass under way."""
        return "a graph has one number of rows throughout"

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.base.device

    @property
    def network(self) -> Any:
        """The user's network, which has the weights and is not what runs."""
        return self.base.network

    @property
    def receipt(self) -> Receipt:
        """What ran in the last call."""
        passes = self._passes
        return Receipt(self.path, passes[True], passes[False], self._compiler.graphs)

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Every tensor that graphs have written down, beside the weights."""
        layers = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return (*self.table.tensors, *self.latches.tensors, *self.requests.tensors, *layers)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The network for oneself, without autograd; a new receipt."""
        with self.turns.taken(), torch.inference_mode(False), torch.no_grad():
            if self._running:
                raise ModelError(
                    "a batch is under way on this compiled model, whose cache it holds; finish "
                    "it first, or use the eager model inside"
                )
            self._running += 1
            self._passes = {True: 0, False: 0}
            try:
                yield
            finally:
                self._running -= 1

    def ready(self, *kinds: Kind, steered: bool = True) -> None:
        """Have these steps compiled, and proven where they are steered; before a batch begins."""
        for kind in kinds:
            if (kind, steered) not in self._steps:
                self._steps[kind, steered] = self._made(kind, steered)
                if steered:
                    self._prove(kind)
            # A recorded step cannot be made while a batch is under way.
            if self._recorder is not None and (kind, False) not in self._steps:
                self._steps[kind, False] = self._made(kind, False)

    def begin(self, batch: Batch, slots: Sequence[int], kind: Kind, new: int) -> list[Tensor]:
        """Take in a batch at slots of the table; gives its columns chunk by chunk.

        Raises:
            PromptError: more rows or columns than there is room for.
        """
        capacity = self.capacity
        width = capacity.chunks(batch.width) * capacity.chunk
        if len(batch) > capacity.rows:
            raise PromptError(
                f"a batch of {len(batch)} rows does not fit into a compiled model of "
                f"{capacity.rows}; give it in parts, or compile with Capacity(rows=...)"
            )
        if width + new > capacity.length:
            raise PromptError(
                f"a batch of {batch.width} columns (in chunks of {capacity.chunk}: {width})"
                + (f" and {new} more to decode" if new else "")
                + f" does not fit into a compiled model of length {capacity.length}; shorten it, "
                "or compile with Capacity(length=...)"
            )
        self._check_unchanged()
        self.ready(kind, "token", steered=self.slots.steered(slots))
        self._passes = {True: 0, False: 0}
        for layer in self.cache.layers:
            # Masked columns have weight 0, which a NaN of an earlier batch would survive.
            layer.keys.zero_()
            layer.values.zero_()
        return self.requests.begin(batch, slots)

    def run_step(self, kind: Kind, tokens: Int[Tensor, "row pos"], steered: bool) -> Tensor:
        """Logits of the next columns of all requests `[row kept d_vocab]`, valid until the next."""
        buffer = self.requests.token if kind == "token" else self.requests.chunk
        buffer.copy_(tokens)
        if (kind, steered) not in self._steps:
            self._steps[kind, steered] = self._made(kind, steered)
        self._passes[steered] += 1
        return self._steps[kind, steered]()

    def score(
        self, batch: Batch, slots: Sequence[int], logits: Logits
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits of a whole batch at slots of the table, as `Model.run` names them."""
        n, size = len(batch), self.capacity.chunk
        keep = {"last": 1, "answer": batch.answer_width + 1}.get(logits, batch.width)
        with self.turn():
            steered = self.slots.steered(slots)
            columns = self.begin(batch, slots, "prompt" if keep == 1 else "score", 0)
            found: list[Tensor] = []
            for i, tokens in enumerate(columns):
                wanted = keep > 1 and (len(columns) - i - 1) * size < keep
                out = self.run_step("score" if wanted else "prompt", tokens, steered)
                if wanted or i == len(columns) - 1:
                    found.append(out[:n].clone())
            return torch.cat(found, 1)[:, -keep:]

    def complete(
        self,
        batch: Batch,
        table: ProgramTable | None,
        slots: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> list[tuple[int, ...]]:
        """New tokens of each row, greedy or sampled."""
        return complete(
            self,
            batch,
            table,
            slots,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
        )

    def hand_over(self, view: ProgramTable, later: ProgramTable) -> None:
        """Give a view's slots to its successor; see `Slots.hand_over`."""
        with torch.no_grad():
            changed = self.slots.hand_over(view, later)
            if changed:
                slots = torch.tensor(changed, device=self.device)
                self.requests.forget(torch.isin(self.requests.slot, slots))

    def undisturbed(self, *, grad: bool = False) -> AbstractContextManager[None]:
        """Nothing to do: the copies are in evaluation mode for good."""
        return nullcontext()

    def attached(self, visits: Mapping[Site, Visit]) -> AbstractContextManager[None]:
        """Refused: a compiled model has no hooks."""
        raise HookError("a compiled model takes no hooks; use its eager twin (.eager)")

    def forward(self, batch: Batch, logits: Logits) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits of the untouched graph."""
        return self.score(batch, [0] * len(batch), logits)

    def as_hf(self, table: ProgramTable | None) -> AbstractContextManager[Any]:
        """Refused: a compiled model leaves the Hugging Face object alone."""
        raise InterventionError(
            "a compiled model does not steer the Hugging Face object; use .eager.as_hf()"
        )

    def read_out(self, vectors: Float[Tensor, "k d_model"]) -> Float[Tensor, "k d_vocab"]:
        """What the final norm's weight and the unembedding make of directions."""
        return self.base.read_out(vectors)

    def _made(self, kind: Kind, steered: bool) -> Step:
        requests = self.requests
        step = make_step(
            self._copies[steered],
            self.cache,
            requests,
            tokens=requests.token if kind == "token" else requests.chunk,
            keep=0 if kind == "score" else 1,
            deciding=kind != "token",
            accepted=self.base._accepted,
            programs=self._programs if steered else None,
        )
        compiled = self._compiler(step)
        if self._recorder is None:
            return compiled
        requests.column.zero_()
        return self._recorder.record(compiled, self.held)

    def _allocate(self) -> None:
        """Lay out the cache, by an eager pass over one column."""
        requests = self.requests
        make_step(
            self._copies[False],
            self.cache,
            requests,
            tokens=requests.token,
            keep=1,
            deciding=False,
            accepted=self.base._accepted,
            programs=None,
        )()

    def _prove(self, kind: Kind) -> None:
        """The self-test of a steered step; canaries have the last slot to themselves."""
        rows, slot = self.capacity.rows, self.table.capacity.slots
        vocab, longest = self.info.d_vocab, min(3, self.capacity.chunk)
        items = [
            Tokenized(tuple((7 * i + 3 * row + 1) % vocab for i in range(1 + row % longest)))
            for row in range(rows)
        ]
        batch = Batch.collate(items, pad_id=0, device=self.device)

        def run(flags: Sequence[bool]) -> Tensor:
            (columns,) = self.requests.begin(batch, [0] * rows)
            if kind == "token":
                # Steered from here on only: what it does to the cache is another step's proof.
                self.run_step("prompt", columns, True)
                columns = batch.tokens[:, -1:]
            self.requests.move([slot * flag for flag in flags])
            return self.run_step(kind, columns, True).clone()

        name = {"prompt": "prefill", "score": "scoring", "token": "decode step"}[kind]
        prove(
            name,
            self.sites,
            self.info.d_model,
            rows,
            lambda programs: self.slots.write(slot, programs),
            run,
        )

    def _check_unchanged(self) -> None:
        """Refuse a network whose weights are other objects now, or that somebody hooked."""
        check_hooks(self.base.network)
        if _identities(self.base.network) != self._shared:
            raise ModelError(
                f"{self.info.name} has other parameters or buffers than when it was compiled; "
                "compile it again"
            )


def _identities(network: Any) -> tuple[tuple[int, torch.dtype, torch.device, torch.Size], ...]:
    return tuple((id(part), part.dtype, part.device, part.shape) for part in tensors_of(network))
