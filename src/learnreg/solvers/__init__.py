"""Lower-level solvers: one step of an algorithm each, one loop for all."""

from .agd import AGD
from .iterate import minimize
from .lbfgs import LBFGS
from .solve import solve

__all__ = ["AGD", "LBFGS", "minimize", "solve"]
