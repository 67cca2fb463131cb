"""learnreg: learn the regularizer of an imaging inverse problem from data, with certified
inexactness.

Names are imported on first use, so ``import learnreg`` is fast.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = (
    "convex",
    "core",
    "data",
    "hypergradients",
    "learners",
    "linear",
    "metrics",
    "models",
    "objectives",
    "operators",
    "physics",
    "problems",
    "regularizers",
    "reports",
    "runs",
    "solvers",
    "testing",
)
_HOME = {
    "Bound": "core",
    "Kind": "core",
    "Cost": "core",
    "Status": "core",
    "Grants": "core",
    "LearnregError": "core",
    "InputError": "core",
    "SolveError": "core",
    "Between": "core",
    "NonNegative": "core",
    "Energy": "problems",
    "SaddleEnergy": "problems",
    "L2": "problems",
    "L1": "problems",
    "KL": "problems",
    "WeightedL2": "problems",
    "Huber": "problems",
    "SampledL2": "problems",
    "SamplingWeights": "problems",
    "SparsityPenalty": "problems",
    "Poisson": "problems",
    "PoissonGaussian": "problems",
    "Foreign": "problems",
    "Measured": "core",
    "SquaredError": "problems",
    "WeightedSquaredError": "problems",
    "Custom": "problems",
    "DataConsistency": "problems",
    "SURE": "problems",
    "Whiteness": "problems",
    "BilevelProblem": "problems",
    "ScoreMatching": "objectives",
    "solve": "solvers",
    "certify": "solvers",
    "hypergradient": "hypergradients",
    "Implicit": "hypergradients",
    "JacobianFree": "hypergradients",
    "Unrolled": "hypergradients",
    "Piggyback": "hypergradients",
    "JointPiggyback": "hypergradients",
    "Reconstructor": "hypergradients.layer",
    "learn": "runs",
    "compare": "runs",
    "MAID": "learners",
    "FixedAccuracy": "learners",
    "HOAG": "learners",
    "LBFGSB": "learners",
    "Stochastic": "learners",
    "Deferred": "learners",
    "DFO": "learners",
    "DFOLS": "learners",
    "GridSearch": "learners",
    "RandomSearch": "learners",
    "OptunaSearch": "learners",
    "Budget": "runs",
    "Run": "runs",
    "Report": "reports",
    "Comparison": "reports",
    "load": "models",
    "load_model": "models",
    "save_model": "models",
}

__all__ = [*_ROOMS, *_HOME]  # names resolved by __getattr__


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(
        f"module 'learnreg' has no attribute {name!r}; it offers {', '.join(sorted(__all__))}"
    )


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
