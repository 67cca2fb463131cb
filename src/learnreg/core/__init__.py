"""The vocabulary: bounds, certificates, status, results, protocols, batch, parameters, errors."""

from .bounds import Bound, Constants, Curvature, Kind
from .constraints import Between, NonNegative
from .cost import Cost
from .errors import (
    AdjointError,
    CheckpointError,
    ConfigError,
    DataWarning,
    InputError,
    LearnregError,
    MissingPropertyError,
    ModelFileError,
    SolveError,
)
from .grants import Grants
from .measured import Measured
from .objective import Learner, Objective, Value
from .protocols import Hessian, Loss, Potential, Solver
from .results import Evaluation, Hypergradient, LinearSolution, RunRecord, Solution, StopReason
from .status import Status, summarize

__all__ = [
    "AdjointError",
    "Between",
    "Bound",
    "CheckpointError",
    "ConfigError",
    "Constants",
    "Cost",
    "Curvature",
    "DataWarning",
    "Evaluation",
    "Grants",
    "Hessian",
    "Hypergradient",
    "InputError",
    "Kind",
    "Learner",
    "LearnregError",
    "LinearSolution",
    "Loss",
    "Measured",
    "MissingPropertyError",
    "ModelFileError",
    "NonNegative",
    "Objective",
    "Potential",
    "RunRecord",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "StopReason",
    "Value",
    "summarize",
]
