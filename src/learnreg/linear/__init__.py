"""Batched linear solvers with the true residual on exit."""

from .cg import CG, cg
from .minres import MINRES, minres

__all__ = ["CG", "cg", "MINRES", "minres"]
