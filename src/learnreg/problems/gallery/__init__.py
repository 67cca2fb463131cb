"""Problems with known answers: quadratics with closed forms, and total variation of two pixels by root finding.

Each is a BilevelProblem on vectors x: (b, n) whose energy honours the protocol of ``Energy``, so every solver,
hypergradient and learner runs on it; its ``exact_*`` methods answer in float64, independently of those solvers.
"""

from .quadratics import OperatorSquaredError, QuadraticEnergy, QuadraticProblem, quadratic, spectrum_quadratic
from .two_pixels import ScalarTVProblem, TwoPixelTV, scalar_tv

__all__ = [
    "OperatorSquaredError", "QuadraticEnergy", "QuadraticProblem", "ScalarTVProblem", "TwoPixelTV", "quadratic",
    "scalar_tv", "spectrum_quadratic",
]
