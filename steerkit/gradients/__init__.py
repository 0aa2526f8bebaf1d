"""Directions of the second kind, which need the model: gradients through the frozen network.

`gradient_direction` takes the mean gradient of an output; `train_direction` optimises a vector
until the model prefers some answers to others. What both give is a `Direction`; `METHODS` lists
the second kind as `extraction.METHODS` lists the first.
"""

from steerkit.gradients.mean_gradient import gradient_direction as gradient_direction
from steerkit.gradients.methods import METHODS as METHODS
from steerkit.gradients.methods import ModelMethod as ModelMethod
from steerkit.gradients.preferences import Preference as Preference
from steerkit.gradients.trained import train_direction as train_direction
