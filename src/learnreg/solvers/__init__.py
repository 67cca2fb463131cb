"""Lower-level solvers: one step of an algorithm each, one loop for all."""

from .agd import AGD
from .certify import Distance, certify
from .iterate import minimize
from .lbfgs import LBFGS
from .newton import NewtonCG, PrimalDualNewton
from .nmapg import NmAPG
from .pdhg import PDHG
from .solve import solve
from .tiles import Tiling, can_be_cut, solve_in_tiles

__all__ = [
    "AGD",
    "LBFGS",
    "PDHG",
    "NewtonCG",
    "PrimalDualNewton",
    "NmAPG",
    "Distance",
    "Tiling",
    "can_be_cut",
    "certify",
    "minimize",
    "solve",
    "solve_in_tiles",
]
