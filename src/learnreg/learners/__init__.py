"""Upper-level learners: one loop, the methods that decide its steps, and what a run leaves
behind.
"""

from .accuracy import Adaptive, Fixed
from .budget import Budget
from .dfo import DFO
from .dfols import DFOLS
from .hoag import HOAG
from .learn import learn
from .maid import MAID, FixedAccuracy
from .quasi_newton import LBFGSB
from .run import Run
from .search import GridSearch, OptunaSearch, RandomSearch
from .stochastic import Stochastic

__all__ = [
    "DFO",
    "DFOLS",
    "HOAG",
    "LBFGSB",
    "MAID",
    "Adaptive",
    "Budget",
    "Fixed",
    "FixedAccuracy",
    "GridSearch",
    "OptunaSearch",
    "RandomSearch",
    "Run",
    "Stochastic",
    "learn",
]
