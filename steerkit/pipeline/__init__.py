"""The main job: two piles of prompts and a model in; directions, a steered model, an audit out."""

from steerkit.pipeline.job import FILES as FILES
from steerkit.pipeline.job import Outcome as Outcome
from steerkit.pipeline.job import Settings as Settings
from steerkit.pipeline.job import run as run
from steerkit.pipeline.parts import PARTS as PARTS
from steerkit.pipeline.parts import Parts as Parts
from steerkit.pipeline.parts import part_of as part_of
