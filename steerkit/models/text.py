"""Prompts to token ids: chat templates, answers, the context length, padding."""

from collections.abc import Sequence
from typing import Any

from steerkit.batch import Tokenized
from steerkit.errors import ModelError, PromptError
from steerkit.prompts import Prompt


class Text:
    """A tokenizer and the rules by which prompts are rendered for it.

    Chat: the shots and the prompt become turns of the tokenizer's chat template, with the
    generation prompt at the end. A system text that the template does not take is put in
    front of the first user turn. Raw: system, shots and prompt as plain text, separated by
    newlines. An answer is appended to the rendered prompt as it is, nothing in between.
    """

    def __init__(self, tokenizer: Any, *, n_ctx: int, config: Any = None) -> None:
        self._tokenizer = tokenizer
        self.n_ctx = n_ctx
        self._config = config
        self.boundary = _boundary(config)

    def regimes(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of texts that may share a batch, by their lengths.

        All of them, except in long-rope models: those rotate every text of a batch by how
        long its longest is, so that short and long texts must not be mixed.
        """
        if self.boundary is None:
            return [list(range(len(lengths)))]
        sides = [
            [i for i, n in enumerate(lengths) if (n > self.boundary) is long]
            for long in (True, False)
        ]
        return [side for side in sides if side]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer itself.

        Raises:
            ModelError: when the model was wrapped without one.
        """
        if self._tokenizer is None:
            raise ModelError(
                "this model was wrapped without a tokenizer, so it cannot read text; "
                "use wrap(model, tokenizer)"
            )
        return self._tokenizer

    @property
    def chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ids = [getattr(self._tokenizer, "eos_token_id", None)]
        configured = getattr(self._config, "eos_token_id", None)
        ids += configured if isinstance(configured, list) else [configured]
        return tuple(sorted({int(i) for i in ids if i is not None}))

    @property
    def pad_id(self) -> int:
        """What fills the left of short rows: the pad token, else the end-of-sequence token.

        Padding is masked, so the choice never moves an activation.

        Raises:
            ModelError: when the tokenizer has neither.
        """
        pad = getattr(self._tokenizer, "pad_token_id", None)
        if pad is None:
            pad = getattr(self._config, "pad_token_id", None)
        if pad is None and self.eos_ids:
            pad = self.eos_ids[0]
        if pad is None:
            raise ModelError(
                "the tokenizer has neither a pad nor an end-of-sequence token, so prompts of "
                "different length cannot share a batch; set one, such as "
                "tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)"
            )
        return int(pad)

    def tokenize(self, prompts: Sequence[Prompt | str], *, extra: int = 0) -> list[Tokenized]:
        """Token ids of prompts and answers; `extra` tokens are to fit after each.

        Raises:
            PromptError: a prompt that is longer than the context, or cannot be rendered.
        """
        # The same prompt often runs at many slots; templates cost a millisecond each.
        known: dict[Prompt, Tokenized] = {}
        items: list[Tokenized] = []
        for i, given in enumerate(prompts):
            prompt = Prompt.of(given)
            if prompt not in known:
                known[prompt] = self._tokenize(prompt, i)
            items.append(known[prompt])
        for i, item in enumerate(items):
            if self.boundary is not None and len(item) <= self.boundary < len(item) + extra:
                raise PromptError(
                    f"prompt {i} has {len(item)} tokens, and {extra} more cross the length of "
                    f"{self.boundary} at which this long-rope model changes its positions; "
                    f"generate at most {self.boundary - len(item)}, or give a longer prompt"
                )
            if len(item) + extra > self.n_ctx:
                parts = f"{len(item.prompt)} tokens"
                parts += f" and an answer of {len(item.answer)}" if item.answer else ""
                parts += f" and {extra} to generate" if extra else ""
                raise PromptError(
                    f"prompt {i} is too long: it has {parts}, and the model's context is "
                    f"{self.n_ctx} tokens; shorten it ({Prompt.of(prompts[i]).text[:40]!r}...)"
                )
        return items

    def decode(self, tokens: Sequence[int]) -> str:
        """Token ids to text, without special tokens."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def render(self, prompt: Prompt) -> tuple[str, bool]:
        """The text that is tokenised, and whether the tokenizer is to add special tokens."""
        if prompt.template == "raw" or (prompt.template == "auto" and not self.chat):
            shots = [f"{question}\n{answer}" for question, answer in prompt.shots]
            return "\n\n".join(part for part in (prompt.system, *shots, prompt.text) if part), True
        if not self.chat:
            raise PromptError(
                "a prompt asks for template='chat', but the tokenizer has no chat template; "
                "use template='raw' or 'auto', or set tokenizer.chat_template"
            )
        turns = [
            turn
            for question, answer in prompt.shots
            for turn in (_turn("user", question), _turn("assistant", answer))
        ]
        turns.append(_turn("user", prompt.text))
        if not prompt.system:
            return self._chat(turns), False
        try:
            text = self._chat([_turn("system", prompt.system), *turns])
        except Exception as error:
            # Templates refuse a system turn by raising; Jinja's errors share no public base.
            if type(error).__module__.partition(".")[0] != "jinja2":
                raise
            text = ""
        if prompt.system not in text:
            first = _turn("user", f"{prompt.system}\n\n{turns[0]['content']}")
            text = self._chat([first, *turns[1:]])
        return text, False

    def _chat(self, turns: list[dict[str, str]]) -> str:
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    def _ids(self, text: str, special: bool) -> tuple[int, ...]:
        found = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        # Some tokenizers close every text; a prompt is to be continued.
        if special and found and found[-1] == getattr(self._tokenizer, "eos_token_id", None):
            bare = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if not bare or bare[-1] != found[-1]:
                found = found[:-1]
        return tuple(int(i) for i in found)

    def _tokenize(self, prompt: Prompt, number: int) -> Tokenized:
        text, special = self.render(prompt)
        ids = self._ids(text, special)
        if not ids:
            raise PromptError(f"prompt {number} came out as no tokens at all; give it some text")
        if not prompt.answer:
            return Tokenized(ids)
        joint = self._ids(text + prompt.answer, special)
        if joint[: len(ids)] == ids and len(joint) > len(ids):
            return Tokenized(ids, joint[len(ids) :])
        return Tokenized(ids, self._ids(prompt.answer, False))


def _boundary(config: Any) -> int | None:
    """The length at which a long-rope model changes its rotation, or None."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    for parameters in nested or [rope]:
        if parameters.get("rope_type") == "longrope":
            return int(parameters["original_max_position_embeddings"])
    return None


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
