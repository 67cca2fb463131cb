"""Tools for your own tests: contracts of regularizers, operators and data terms, independent
truths, planted faults, and a gallery of operators that lie.
"""

from __future__ import annotations

from .data_terms import check_data_term
from .faults import flipped_sign, planted, scaled, shifted
from .honest import HONEST, Honest
from .honesty import Row, check_honesty, honesty
from .liars import LIARS, Liar
from .minimizers import Truth, true_distance, truth
from .operators import check_operator
from .regularizers import check_regularizer

__all__ = [
    "HONEST",
    "LIARS",
    "Honest",
    "Liar",
    "Row",
    "Truth",
    "check_data_term",
    "check_honesty",
    "check_operator",
    "check_regularizer",
    "flipped_sign",
    "honesty",
    "planted",
    "scaled",
    "shifted",
    "true_distance",
    "truth",
]
