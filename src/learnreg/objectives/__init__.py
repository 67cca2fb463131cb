"""Objectives that learners minimize over theta: bilevel learning, and siblings without a lower
level.
"""

from .bilevel import Bilevel, BilevelValue
from .score_matching import ScoreMatching

__all__ = ["Bilevel", "BilevelValue", "ScoreMatching"]
