"""How the tokens of a prompt become rows: one token, a mean over some, or every token.

Pooling runs inside the hook, so that a whole stream is never kept. Padding never enters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerkit.batch import Batch
from steerkit.errors import MethodError, PromptError
from steerkit.prompts import Prompt
from steerkit.registry import suggest

Rule = Literal["last", "mean_prompt", "mean_answer", "all"]
RULES: tuple[Rule, ...] = get_args(Rule)
Decode = Callable[[Sequence[int]], str]

SINK_RATIO = 10.0
"""A token is taken for an attention sink if its norm exceeds this multiple of its row's median.

Massive activations sit on a few tokens (the first one, delimiters) at magnitudes of about a
thousand times the median (Sun et al. 2024, arXiv:2402.17762), which puts the norms of those
tokens one or two orders above the others'; ordinary tokens differ by far less than 10.
"""


@dataclass(frozen=True)
class Span:
    """The tokens that cover a piece of a prompt's text; their mean is kept.

    Attributes:
        text: the piece, one for all prompts or one for each. Blanks need not match exactly.
        occurrence: which one, where a prompt holds several. The last by default, so that
            system prompts and shots, which come first, do not catch it.
    """

    text: str | tuple[str, ...]
    occurrence: Literal["first", "last"] = "last"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(self.text))
        texts = (self.text,) if isinstance(self.text, str) else self.text
        if not texts or any(not isinstance(t, str) or not t.strip() for t in texts):
            raise PromptError(f"a span needs some text to look for; got {self.text!r}")
        if self.occurrence not in ("first", "last"):
            raise MethodError(f"a span's occurrence is 'first' or 'last'; got {self.occurrence!r}")

    def locate(self, tokens: Sequence[int], decode: Decode, row: int = 0) -> range | None:
        """The shortest run of tokens whose text holds the span; None where there is none.

        Args:
            tokens: the prompt's token ids, special tokens included.
            decode: token ids to text, without special tokens.
            row: which prompt it is, where every prompt has a text of its own.
        """
        wanted = self.text if isinstance(self.text, str) else self.text[row]
        # Some tokenizers decode "a, b" as "a , b": blanks are ignored if they must be.
        return self._run(wanted, tokens, decode, " ") or self._run(wanted, tokens, decode, "")

    def _run(self, wanted: str, tokens: Sequence[int], decode: Decode, blank: str) -> range | None:
        text = blank.join(wanted.split())

        def holds(start: int, stop: int) -> bool:
            return text in blank.join(decode(tokens[start:stop]).split())

        n = len(tokens)
        if not holds(0, n):
            return None
        if self.occurrence == "first":
            stop = _least(1, n, lambda j: holds(0, j))
            return range(-_least(1 - stop, 0, lambda i: holds(-i, stop)), stop)
        start = -_least(1 - n, 0, lambda i: holds(-i, n))
        return range(start, _least(start + 1, n, lambda j: holds(start, j)))

    def __str__(self) -> str:
        text = repr(self.text) if isinstance(self.text, str) else "one a prompt"
        return f"span({text})"


@dataclass(frozen=True, eq=False)
class Pooled:
    """A function that pools a stream, and the tokens that it looks at.

    Engines that run elsewhere bring only those; the others may be anything in what it is given.
    """

    pool: Callable[[Float[Tensor, "batch pos d_model"], Batch], Tensor]
    reads: Bool[Tensor, "batch pos"]

    def __call__(self, stream: Float[Tensor, "batch pos d_model"], batch: Batch) -> Tensor:
        """What the function makes of the stream."""
        return self.pool(stream, batch)


def _least(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least number in [low, high] for which a monotone condition holds; it does at high."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


@dataclass(frozen=True)
class Pooling:
    """A rule for which tokens are taken, and which never are.

    `rule` is a rule's name, an index into the prompt (from its end when negative) or a span.
    BOS and sinks are left out of means and of `all`; a token asked for by itself is given.
    """

    rule: Rule | int | Span = "last"
    exclude_bos: bool = False
    sink_ratio: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rule, bool) or not isinstance(self.rule, str | int | Span):
            raise MethodError(
                f"positions are one of {', '.join(RULES)}, a token index or a Span; "
                f"got {self.rule!r}"
            )
        if isinstance(self.rule, str) and self.rule not in RULES:
            raise MethodError(
                f"no pooling named '{self.rule}'; {suggest(self.rule, RULES)}. "
                "A token index or a Span works too"
            )
        if self.sink_ratio is not None and not self.sink_ratio > 1:
            raise MethodError(
                "the norm ratio above which a token counts as a sink is above 1; "
                f"got {self.sink_ratio}"
            )

    @classmethod
    def of(
        cls,
        positions: "Rule | int | Span | str",
        *,
        exclude_bos: bool = False,
        exclude_sinks: bool | float = False,
    ) -> "Pooling":
        """Read the arguments of `capture`; `exclude_sinks=True` means `SINK_RATIO`."""
        ratio: float | None = None if exclude_sinks is False else float(exclude_sinks)
        if exclude_sinks is True:
            ratio = SINK_RATIO
        return cls(positions, exclude_bos, ratio)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """`last`, `mean_prompt`, `index(-2)`, `span('cake')`, `all`, ..."""
        return f"index({self.rule})" if isinstance(self.rule, int) else str(self.rule)

    @property
    def mean(self) -> bool:
        """Whether several tokens become one row."""
        return isinstance(self.rule, Span) or self.rule in ("mean_prompt", "mean_answer")

    @property
    def single(self) -> bool:
        """Whether each prompt gives exactly one token."""
        return isinstance(self.rule, int) or self.rule == "last"

    def select(
        self, batch: Batch, prompts: Sequence[Prompt], decode: Decode
    ) -> Bool[Tensor, "batch pos"]:
        """The tokens the rule takes, before sinks are known; never padding.

        Raises:
            PromptError: no such index, span or answer in a prompt, or no token left.
        """
        at, length = batch.absolute, batch.prompt_len[:, None]
        if self.rule == "all":
            mask = batch.mask.clone()
        elif self.rule == "mean_prompt":
            mask = batch.mask & (at < length)
        elif self.rule == "mean_answer":
            mask = batch.answer_mask.clone()
        elif isinstance(self.rule, Span):
            mask = self._spans(batch, prompts, decode)
        else:
            index = -1 if self.rule == "last" else int(self.rule)
            mask = (at == (length + index if index < 0 else index)) & (at < length) & batch.mask
        if self.exclude_bos and not self.single:
            mask &= ~_leading_special(batch, decode)
        empty = ~mask.any(1)
        if empty.any():
            row = int(empty.nonzero()[0])
            prompt = prompts[int(batch.rows[row])]
            raise PromptError(self._why_empty(prompt, int(batch.prompt_len[row]), int(empty.sum())))
        return mask

    def _spans(
        self, batch: Batch, prompts: Sequence[Prompt], decode: Decode
    ) -> Bool[Tensor, "batch pos"]:
        assert isinstance(self.rule, Span)
        mask = torch.zeros_like(batch.mask)
        if not isinstance(self.rule.text, str) and len(self.rule.text) != len(prompts):
            raise PromptError(
                f"{len(prompts)} prompts need one span text, or {len(prompts)}; "
                f"got {len(self.rule.text)}"
            )
        for row in range(len(batch)):
            start = batch.width - int(batch.mask[row].sum())
            ids = batch.tokens[row, start : start + int(batch.prompt_len[row])].tolist()
            which = int(batch.rows[row])
            found = self.rule.locate(ids, decode, which)
            if found is None:
                text = self.rule.text if isinstance(self.rule.text, str) else self.rule.text[which]
                raise PromptError(
                    f"the span {text!r} is not in prompt {which}, whose tokens read "
                    f"{_short(decode(ids))!r}; give one text a prompt, Span((...)), or leave "
                    "that prompt out"
                )
            mask[row, start + found.start : start + found.stop] = True
        return mask

    def _why_empty(self, prompt: Prompt, length: int, others: int) -> str:
        more = f" (and {others - 1} more in its batch)" if others > 1 else ""
        if self.rule == "mean_answer":
            return (
                f"the mean over the answer needs an answer; prompt {_short(prompt.text)!r}{more} "
                "has none: use Prompt.with_answer"
            )
        if self.single:
            return f"no token {self.name}: prompt {_short(prompt.text)!r}{more} has {length} tokens"
        return (
            f"prompt {_short(prompt.text)!r}{more} has no token left for '{self.name}' without "
            "its BOS; set exclude_bos=False or leave it out"
        )

    def pool(self, mask: Bool[Tensor, "batch pos"], batch: Batch) -> Pooled:
        """The function that runs in the hook: stream in, float32 rows out.

        Sinks of a mean are found and left out at each site by itself; for `all` they are left
        out later (`without_sinks`), once every site has been seen.
        """
        device = batch.tokens.device
        mask = mask.to(device)
        # What is a sink shows against all tokens of a row.
        whole = self.sink_ratio is not None and not self.single
        reads = batch.mask if whole else mask
        if self.mean:
            return Pooled(lambda stream, _: self._average(stream, mask, batch.mask), reads)
        rows, columns = reads.nonzero(as_tuple=True)
        return Pooled(lambda stream, _: stream[rows, columns].to(torch.float32), reads)

    def _average(
        self,
        stream: Float[Tensor, "batch pos d_model"],
        mask: Bool[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch d_model"]:
        if self.sink_ratio is not None:
            norms = torch.linalg.vector_norm(stream, dim=-1, dtype=torch.float32)
            median = norms.masked_fill(~real, torch.nan).nanmedian(1, keepdim=True).values
            ordinary = mask & ~(norms > self.sink_ratio * median)
            # A prompt of nothing but sinks keeps them: there is no better answer at this site.
            mask = torch.where(ordinary.any(1, keepdim=True), ordinary, mask)
        # `where`, not a product: padding may hold NaN, and 0 * NaN is NaN.
        taken = torch.where(mask[..., None], stream, stream.new_zeros(()))
        return taken.sum(1, dtype=torch.float32) / mask.sum(1, keepdim=True)

    def without_sinks(
        self,
        values: Float[Tensor, "row site d_model"],
        prompt: Tensor,
    ) -> Bool[Tensor, "row"]:
        """For `all`: the rows that are no sink at any site; `values` holds every real token."""
        keep = torch.ones(values.shape[0], dtype=torch.bool)
        if self.sink_ratio is None:
            return keep
        norms = values.norm(dim=-1)
        for one in prompt.unique():
            here = prompt == one
            median = norms[here].nanmedian(0).values
            keep[here] = ~(norms[here] > self.sink_ratio * median).any(-1)
        return keep


def _leading_special(batch: Batch, decode: Decode) -> Bool[Tensor, "batch pos"]:
    """True on a special token (one that decodes to nothing) that stands first: BOS or its like."""
    first = batch.mask & (batch.absolute == 0)
    ids = batch.tokens[first]
    special = torch.tensor(
        [i for i in ids.unique().tolist() if decode([i]) == ""], dtype=ids.dtype, device=ids.device
    )
    return first & torch.isin(batch.tokens, special)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."
