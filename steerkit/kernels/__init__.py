"""Executors of programs: one file each. `reference` is plain torch and runs everywhere."""

from steerkit.kernels.reference import PackedSite as PackedSite
from steerkit.kernels.reference import apply as apply
from steerkit.kernels.reference import pack as pack

__all__ = ["PackedSite", "apply", "pack"]
