"""Batched linear solvers with the true residual on exit."""

from .cg import CG, cg

__all__ = ["CG", "cg"]
