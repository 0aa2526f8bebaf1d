"""A front end's side: what a request asks for is looked up, checked and salted, or refused."""

import hashlib
from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.utils import length_from_prompt_token_ids_or_embeds

from steerkit.errors import InterventionError, SteerkitError
from steerkit.models.checkpoints import checkpoint_info
from steerkit.protocols import ModelInfo
from steerkit.vllm.layers import ARCHITECTURES, STREAMS
from steerkit.vllm.records import claim
from steerkit.vllm.registrations import Artefacts
from steerkit.vllm.requests import KEY, Asked, Steered, read, steered
from steerkit.vllm.room import check


def refusal(config: Any) -> str:
    """Why an engine with this configuration cannot steer; empty where it can.

    Args:
        config: a `vllm.config.VllmConfig`.
    """
    model, parallel = config.model_config, config.parallel_config
    graphs = config.compilation_config.cudagraph_mode
    if model.architecture not in ARCHITECTURES:
        return (
            f"{model.architecture} is not among the architectures whose streams are known: "
            f"{', '.join(sorted(ARCHITECTURES))}"
        )
    if model.runner_type != "generate":
        return f"its runner is '{model.runner_type}', and steering is for generation"
    if config.use_v2_model_runner:
        return "it uses the V2 model runner; start it with VLLM_USE_V2_MODEL_RUNNER=0"
    if parallel.pipeline_parallel_size > 1:
        return "its layers are spread over pipeline stages; use tensor parallelism"
    if config.speculative_config is not None:
        return "it decodes speculatively, and drafts would not be steered"
    if parallel.use_ubatching:
        return "its batches are split in two (dual-batch overlap)"
    if config.device_config.device_type != "cpu" and graphs is not None and graphs.value != (0,):
        # Recorded graphs would replay what was steered when they were recorded.
        if getattr(graphs, "name", "") != "NONE":
            return "it records CUDA graphs; start it with --enforce-eager or cudagraph_mode=NONE"
    return ""


class Admission:
    """Decides about requests before vLLM sees them.

    Args:
        config: the engine's `VllmConfig`.
        artefacts: what requests may ask for.
    """

    def __init__(self, config: Any, artefacts: Artefacts) -> None:
        self._config, self._artefacts = config, artefacts
        self._refusal = refusal(config)

    @cached_property
    def info(self) -> ModelInfo:
        """The model, as far as its checkpoint says; read when a request first asks."""
        return info_of(self._config)

    def asked(self, parameters: Any, *, resumable: bool = False) -> tuple[Asked, Steered] | None:
        """What a request asks for, checked; None for nothing.

        Args:
            parameters: of its sampling.
            resumable: whether its prompt may go on growing.

        Raises:
            VLLMValidationError: it cannot be had, and why. Servers answer with status 400.
        """
        extra = getattr(parameters, "extra_args", None) or {}
        try:
            # Without a word of its own a request gets the default, if there is one.
            default = None if KEY in extra else self._artefacts.default
            if KEY not in extra and default is None:
                return None
            if self._refusal:
                raise InterventionError(f"this engine cannot steer requests: {self._refusal}")
            if resumable:
                raise InterventionError(
                    "the prompt of a streaming session goes on growing, and positions count from "
                    "its end; send whole requests"
                )
            asked = read(extra.get(KEY, default), self._artefacts, self.info)
            if asked.captures and parameters.n > 1:
                raise InterventionError(
                    "several answers to one request would be captured under one name; ask for them "
                    "in requests of their own (n=1)"
                )
            found = steered(asked, self._artefacts, self.info)
            check(found.programs)
        except SteerkitError as error:
            raise VLLMValidationError(f"steering refused: {error}", parameter=KEY) from error
        return asked, found

    def mark(self, request: Any, asked: Asked, found: Steered) -> None:
        """Put into an admitted request what the other processes need to know.

        Blocks of the prefix cache hold keys and values of the steered stream: the salt lets
        only requests share them whose tokens were all treated alike. Tokens that are to be
        captured must run, and are not read out of blocks.

        Raises:
            VLLMValidationError: captures whose names are taken, or a prompt_len of other tokens
                than these.
        """
        parameters = request.sampling_params
        length = length_from_prompt_token_ids_or_embeds(
            request.prompt_token_ids, request.prompt_embeds
        )
        prompt_len = asked.prompt_len or length
        try:
            if prompt_len > length:
                raise InterventionError(
                    f"prompt_len counts tokens of the request, which has {length}; got "
                    f"{asked.prompt_len}"
                )
            claim(asked.captures, self.info, asked.key if found.programs else "", self._artefacts)
        except SteerkitError as error:
            raise VLLMValidationError(f"steering refused: {error}", parameter=KEY) from error
        extra = {**(parameters.extra_args or {})}
        if not found.programs:
            asked = replace(asked, parts=())
        if asked.parts or asked.captures:
            extra[KEY] = asked.to_wire()
        else:
            extra.pop(KEY, None)
        parameters.extra_args = extra
        if found.programs:
            ends = "" if found.prefix else prompt_len
            text = f"{asked.key}:{ends}:{request.cache_salt or ''}"
            request.cache_salt = f"steerkit-{hashlib.sha256(text.encode()).hexdigest()}"
        # The last token of a request always runs: it is what the next one is sampled from.
        if found.whole_prompt or any(c.first(prompt_len) < length - 1 for c in asked.captures):
            parameters.skip_reading_prefix_cache = True


def info_of(config: Any) -> ModelInfo:
    """The model of a `VllmConfig`, by its checkpoint."""
    model = config.model_config
    return checkpoint_info(
        model.model,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        streams=STREAMS,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(config.device_config.device_type),
    )
