"""The errors that steerkit raises for bad input: one base class, a few kinds.

A message says what went wrong, where, what was given, what was expected, and the next
step to take. `except SteerkitError` catches all of them and nothing else.
"""


class SteerkitError(Exception):
    """Base of every error that steerkit raises on purpose."""


class SiteError(SteerkitError):
    """A layer or stream that the model does not have."""


class ModelError(SteerkitError):
    """A model that cannot be loaded, wrapped, or does not behave as its family should."""


class PromptError(SteerkitError):
    """Prompts or contrasts that cannot be read, split, or fed to the model."""


class HookError(SteerkitError):
    """A hook that did not fire exactly as planned, or fired on the wrong thing."""


class ActivationError(SteerkitError):
    """Activations that are not finite, are missing, or do not belong together."""


class DirectionError(SteerkitError):
    """A direction that is degenerate, malformed, or belongs to another model."""


class InterventionError(SteerkitError):
    """An intervention, program or position rule that cannot be applied as asked."""


class MethodError(SteerkitError):
    """An unknown or unsuitable method, criterion, objective or check."""


class OutputError(SteerkitError):
    """A file that cannot be written, or one on disk that cannot be trusted."""


class WorkerError(SteerkitError):
    """A worker process that died too often, or that never came."""


KINDS: tuple[type[SteerkitError], ...] = (
    SiteError,
    ModelError,
    PromptError,
    HookError,
    ActivationError,
    DirectionError,
    InterventionError,
    MethodError,
    OutputError,
    WorkerError,
)
