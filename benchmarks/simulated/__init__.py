"""Checks of a suite drawn by the thousand, on evidence whose truth is known."""

from simulated import behaviour, steering, two_models
from simulated.rows import ROWS, Row

__all__ = ["ROWS", "Row", "behaviour", "steering", "two_models"]
