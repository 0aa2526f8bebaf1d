"""The command line that starts `vllm serve` with steering, and whether it would work.

What is checked is checked on the very command: vLLM's own parser reads it and makes of it the
configuration that the plugin will see, and every artefact is made into programs for the model
that stands in it.
"""

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from steerkit import organisms
from steerkit.errors import InterventionError, ModelError, SteerkitError
from steerkit.models.loading import ORGANISM
from steerkit.protocols import ModelInfo
from steerkit.vllm.listing import Listed, listed
from steerkit.vllm.plugin import check_front_end, check_version, vllm_version
from steerkit.vllm.registrations import (
    AT_START,
    DEFAULT,
    FOLDER,
    PATHS,
    Artefacts,
    default_of,
)
from steerkit.vllm.requests import read, steered
from steerkit.vllm.room import check

GROUPS = ("general_plugins", "platform_plugins", "io_processor_plugins", "stat_logger_plugins")
"""Kinds of plugins that vLLM loads unasked, until a list of plugins is given."""
SERVE = ("vllm.entrypoints.cli.main", "serve")
BARE = ("vllm.entrypoints.launchers.api_server.entry", "--model")
"""The same server where vLLM's command line does not start: it looks for its version under the
name `vllm`, and the package for a CPU has another."""
PLUGINS = "VLLM_PLUGINS"
"""vLLM's variable: the plugins that it loads; without it all, but none that adds routes."""


@dataclass(frozen=True)
class Launch:
    """One start of a server.

    Attributes:
        model: as vLLM takes it.
        arguments: of `vllm serve`, after the model.
        environment: variables that are set for it.
    """

    model: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def argv(self) -> tuple[str, ...]:
        """What runs: vLLM's server in this Python."""
        return (sys.executable, "-m", *self._module, self.model, *self.arguments)

    @property
    def command(self) -> str:
        """What a user types, on several lines."""
        module = ("vllm", "serve") if self._module == SERVE else ("python", "-m", *self._module)
        beside = Path(sys.executable).with_name(module[0])
        found = shutil.which(module[0])
        # Links are not followed: a virtual environment's Python is one to another's.
        there = found and Path(found).absolute() == beside
        program = (module[0] if there else str(beside), *module[1:])
        lines = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        typed = shlex.join([*program, self.model, *self.arguments])
        return " \\\n  ".join([*lines, typed])

    @property
    def _module(self) -> tuple[str, ...]:
        try:
            version("vllm")
        except PackageNotFoundError:
            return BARE
        return SERVE


def launch(
    model: str,
    steer: Mapping[str, str | Path],
    *,
    folder: str | Path,
    default: str = "",
    paths: bool = False,
    arguments: Sequence[str] = (),
) -> Launch:
    """The start of a server; nothing is looked at yet.

    Args:
        model: a folder, a name, or `organism:NAME`.
        steer: steering files by the names that requests will use.
        folder: where the server keeps its artefacts.
        default: `name` or `name:strength` for requests that say nothing; empty for none.
        paths: let clients name files by path.
        arguments: of `vllm serve`.
    """
    shipped = model.removeprefix(ORGANISM)
    environment = {FOLDER: str(Path(folder).expanduser().absolute())}
    if steer:
        files = {name: Path(path).expanduser().absolute() for name, path in steer.items()}
        environment[AT_START] = ";".join(f"{name}={path}" for name, path in files.items())
    if default:
        environment[DEFAULT] = default
    if paths:
        environment[PATHS] = "1"
    # Another runner has no place around a forward pass that the plugin knows.
    environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    environment[PLUGINS] = os.environ.get(PLUGINS) or ",".join(_plugins())
    return Launch(
        model=str(organisms.path(shipped)) if shipped != model else model,
        arguments=tuple(arguments),
        environment=environment,
    )


@dataclass(frozen=True)
class Checked:
    """What a server that starts so will answer.

    Attributes:
        info: its model.
        artefacts: every name that it will know, those of earlier starts included.
        default: as `Artefacts.default`, of an earlier start if none is given now.
    """

    info: ModelInfo
    artefacts: tuple[Listed, ...]
    default: Mapping[str, Any] | None


def checked(start: Launch) -> Checked:
    """Whether the server will start, and steer as it is asked to.

    Raises:
        ModelError: no vLLM, one that is not known, the plugin left out, or an engine that
            cannot steer.
        SystemExit: arguments that vLLM does not know; its own message is on stderr.
        SteerkitError: an artefact that this model cannot be steered with.
    """
    folder = Artefacts(start.environment[FOLDER])
    with tempfile.TemporaryDirectory() as scratch:
        with _environment({**start.environment, FOLDER: scratch}):
            check_version(vllm_version())
            check_front_end()
            _check_entry_point()
            from steerkit.vllm.admission import info_of, refusal

            config = _config(start)
            if reason := refusal(config):
                raise ModelError(f"this server could not steer: {reason}")
            info = info_of(config)
        new = Artefacts(scratch)
        for entry in filter(None, start.environment.get(AT_START, "").split(";")):
            name, _, path = entry.partition("=")
            try:
                new.register(name, path)
                check(steered(read(name, new), new, info).programs)
            except SteerkitError as error:
                raise type(error)(f"--steer {entry}: {error}") from error
        found = {one.name: one for one in (*listed(folder, info), *listed(new, info))}
    wanted = start.environment.get(DEFAULT)
    if wanted:
        name, strength = default_of(wanted)
        default = {"artefact": name, **({} if strength is None else {"strength": strength})}
    else:
        default = folder.default or {}
    if default and default["artefact"] not in found:
        raise InterventionError(
            f"the default '{default['artefact']}' is not among the artefacts; give "
            f"--steer {default['artefact']}=PATH"
        )
    made = tuple(
        replace(found[name], default=name == default.get("artefact")) for name in sorted(found)
    )
    for one in made:
        if one.default and one.problem:
            raise InterventionError(
                f"the default '{one.name}' would have every request refused: {one.problem}"
            )
    return Checked(info, made, default or None)


def _config(start: Launch) -> Any:
    """The configuration that vLLM makes of the command."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    given = parser.parse_args([start.model, *start.arguments])
    try:
        validate_parsed_serve_args(given)
        given.model = given.model_tag
        return AsyncEngineArgs.from_cli_args(given).create_engine_config()
    except (OSError, TypeError, ValueError) as error:
        raise ModelError(f"vLLM refuses this: {error}") from error


def _check_entry_point() -> None:
    found = [one for one in entry_points(group="vllm.general_plugins") if one.name == "steerkit"]
    if not found:
        raise ModelError(
            "vLLM would not find steerkit: its entry point is not installed; install steerkit "
            "into vLLM's environment with pip"
        )
    if "steerkit" not in os.environ[PLUGINS].split(","):
        raise ModelError(
            f"vLLM would leave steerkit out: {PLUGINS}={os.environ[PLUGINS]} does not name it; "
            "add steerkit to it, or unset it"
        )


def _plugins() -> list[str]:
    """Names of all plugins that vLLM would load by itself."""
    return sorted({one.name for kind in GROUPS for one in entry_points(group=f"vllm.{kind}")})


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables, inside; vLLM sets more of them while it makes a configuration."""
    before = dict(os.environ)
    # Nothing is registered by a check.
    os.environ.update({k: v for k, v in variables.items() if k not in (AT_START, DEFAULT)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
