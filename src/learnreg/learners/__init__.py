"""Step rules: the methods that decide where theta goes. They know objectives, and nothing else."""

from .accuracy import Adaptive, Fixed
from .deferred import Deferred
from .dfo import DFO
from .dfols import DFOLS
from .hoag import HOAG
from .maid import MAID, FixedAccuracy
from .quasi_newton import LBFGSB
from .search import GridSearch, OptunaSearch, RandomSearch
from .stochastic import Stochastic

__all__ = [
    "DFO",
    "DFOLS",
    "HOAG",
    "LBFGSB",
    "MAID",
    "Adaptive",
    "Deferred",
    "Fixed",
    "FixedAccuracy",
    "GridSearch",
    "OptunaSearch",
    "RandomSearch",
    "Stochastic",
]
