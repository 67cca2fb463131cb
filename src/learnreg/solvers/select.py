"""Which solver ``auto`` takes, and the words that say why."""

from __future__ import annotations

from collections.abc import Callable

from ..core.asking import offers
from ..core.errors import InputError
from ..core.protocols import AnySolver, Potential, Saddle
from ..core.ranges import check_object
from .agd import AGD
from .automatic import adjoint_preconditioner
from .closing import Measure
from .lbfgs import LBFGS
from .newton import NewtonCG, PrimalDualNewton
from .nmapg import NmAPG
from .offers import Bounded
from .pdhg import PDHG
from .views import view_of

__all__ = ["SOLVERS", "WITHIN_BOUNDS", "adjoint_preconditioner", "check_solver", "choose"]


def _keeps_to_bounds(method: AnySolver) -> bool:
    return offers(method, Bounded) and method.bounded


SOLVERS: dict[str, Callable[[], AnySolver]] = {
    "agd": AGD,
    "lbfgs": LBFGS,
    "newton": NewtonCG,
    "primal_dual_newton": PrimalDualNewton,
    "nmapg": NmAPG,
    "pdhg": PDHG,
}

WITHIN_BOUNDS = tuple(name for name, make in SOLVERS.items() if _keeps_to_bounds(make()))
"""Those whose points keep to bounds of pixels; saddle functions bound theirs themselves."""


def check_solver(name: str | AnySolver) -> None:
    """Refuse an unknown name, and an object that is no solver.

    Raises:
        InputError: lists the names there are.
    """
    expected = f"'auto' or one of {', '.join(map(repr, SOLVERS))}"
    remedy = "Leave the choice to solver='auto'."
    if not isinstance(name, str):
        check_object(
            "solver", name, ("init", "step", "name"), f"{expected}, or a solver object", remedy
        )
    elif name != "auto" and name not in SOLVERS:
        raise InputError("solver", given=repr(name), expected=expected, remedy=remedy)


def choose(
    name: str | AnySolver, f: Potential | Saddle, measure: Measure = "distance"
) -> tuple[AnySolver, str]:
    """The solver object and the words that name it in results; ``auto`` says why.

    Raises:
        InputError: unknown name.
        MissingPropertyError: a method for saddle functions and an energy that is none, or the other
            way round; a gradient norm asked of a saddle function.
    """
    check_solver(name)
    view = view_of(f)
    if name == "auto":
        method, words = view.natural()
    else:
        method = SOLVERS[name]() if isinstance(name, str) else name
        words = method.name
        view.check_method(method)
    view.check_measure(measure)
    return method, words
