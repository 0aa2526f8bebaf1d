"""The listing of directions of the second kind: those that need the model, not activations."""

from collections.abc import Callable
from dataclasses import dataclass

from steerkit.direction import Direction, Directions
from steerkit.registry import Registry


@dataclass(frozen=True)
class ModelMethod:
    """A way to make directions that runs the model, forward and backward.

    Attributes:
        verb: what makes them, called with the model first.
        estimates: what they estimate, in words and symbols.
    """

    verb: Callable[..., Direction | Directions]
    estimates: str

    def __call__(self, *args: object, **options: object) -> Direction | Directions:
        """What the verb gives."""
        return self.verb(*args, **options)


METHODS: Registry[ModelMethod] = Registry("method that needs the model", "steerkit.gradients")
"""Every such method by the name that its directions carry. Files register themselves."""
