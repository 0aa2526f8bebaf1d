"""Triton kernels, one file each; imported by `dispatch` alone, where Triton is installed.

Each is a `torch.library.custom_op` that launches one kernel, with the torch twin of `static` as
its derivative. Compiled graphs never hold one: there Inductor fuses the twin into its neighbours.
"""
