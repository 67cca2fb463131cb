"""Upper-level learners: one loop, MAID, the fixed-accuracy baseline, and what a run leaves behind."""

from .accuracy import Adaptive, Fixed
from .budget import Budget
from .learn import learn
from .maid import MAID, FixedAccuracy
from .run import Run

__all__ = ["MAID", "Adaptive", "Budget", "Fixed", "FixedAccuracy", "Run", "learn"]
