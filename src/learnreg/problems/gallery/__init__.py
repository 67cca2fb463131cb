"""Problems with known answers: quadratics with closed forms, total variation of two pixels by root
finding, and of signals by direct Newton steps.

Each is a BilevelProblem on vectors x, (b, n) or (b, 1, 1, n), whose energy honours the protocol of
``Energy``, so every solver, hypergradient and learner runs on it; its ``exact_*`` methods answer in
float64, independently of those solvers.
"""

from .quadratics import (
    OperatorSquaredError,
    QuadraticEnergy,
    QuadraticProblem,
    quadratic,
    spectrum_quadratic,
)
from .signals import ConditionPenalty, SignalProblem, SignalTV, one_parameter, three_parameters
from .two_pixels import ScalarTVProblem, TwoPixelTV, scalar_tv

__all__ = [
    "ConditionPenalty",
    "OperatorSquaredError",
    "QuadraticEnergy",
    "QuadraticProblem",
    "ScalarTVProblem",
    "SignalProblem",
    "SignalTV",
    "TwoPixelTV",
    "one_parameter",
    "quadratic",
    "scalar_tv",
    "spectrum_quadratic",
    "three_parameters",
]
