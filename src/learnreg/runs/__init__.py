"""Runs: the loop over the steps of a learner, its budget and checkpoints, what a run leaves behind,
and comparisons of several.
"""

from .budget import Budget
from .compare import Outcome, compare
from .learn import learn
from .run import Run

__all__ = ["Budget", "Outcome", "Run", "compare", "learn"]
