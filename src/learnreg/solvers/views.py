"""The one place that asks whether a lower level is a potential or a saddle function.

``view_of`` asks once. The two views answer the same questions, so that front door, loop, choice and
certificates need not know which of the two they have: how a solve starts and what its result says,
which method is natural, when a distance is certified.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, NoReturn, Protocol, TypeGuard, cast

import torch
from torch import Tensor

from ..core.asking import offers
from ..core.batch import norm
from ..core.bounds import Bound, constants_of
from ..core.constraints import domain_of, is_boxed
from ..core.errors import MissingPropertyError
from ..core.protocols import AnySolver, Potential, Saddle
from ..core.results import Solution
from .agd import AGD
from .automatic import automatic, is_convex
from .closing import (
    ByCertificate,
    ByGradient,
    ByStationarity,
    Closing,
    Measure,
    Rule,
    rounding_of,
)
from .offers import Bounded, Certifying, Constrained, Measuring, Noisy
from .pdhg import PDHG

NEAR_ROUNDING = 0.1
"""Of machine epsilon times L ||x||: where float32 gradients begin to be noise, if the potential has
no ``noise()``.
"""


class Reference(NamedTuple):
    """How the truth is found that certificates are compared with.

    Attributes:
        grid: accuracies to compare at.
        eps: distance of the reference from the truth.
        steps: limit of solver steps on the way there; None where eps is always reached.
    """

    grid: tuple[float, ...]
    eps: float
    steps: int | None


class View(Protocol):
    """A batch of lower-level functions, whatever they are."""

    most_steps: ClassVar[int]
    """The largest number of steps of a solve when none is given."""

    reference: ClassVar[Reference]
    """How true errors are found."""

    @property
    def f(self) -> Potential | Saddle:
        """The functions themselves, for the solver that fits them."""
        ...

    def select(self, index: Tensor) -> View:
        """Those of the images ``index``."""
        ...

    def double(self) -> View:
        """The same in float64."""
        ...

    # --- the choice of a method -------------------------------------------------------------------
    def natural(self) -> tuple[AnySolver, str]:
        """What ``auto`` takes, and the words that say why."""
        ...

    def check_method(self, method: AnySolver) -> None:
        """Refuse a method of the other kind, and one that knows no bounds where there are some.

        Raises:
            MissingPropertyError: says which methods fit.
        """
        ...

    def check_measure(self, measure: Measure) -> None:
        """Refuse what no solve of these functions can bound.

        Raises:
            MissingPropertyError: says what to ask for.
        """
        ...

    # --- start and result -------------------------------------------------------------------------
    def variables(self, x0: Tensor) -> Tensor:
        """All that a solver works on, (b, ...), from images or from an earlier state."""
        ...

    def result(self, found: Solution) -> Solution:
        """A solution in these variables as one that says what the image is."""
        ...

    def start_distance(self, x0: Tensor) -> Tensor:
        """A bound (b,) of the distance of a start x0 to the solution, at the cost of a gradient."""
        ...

    def near_rounding(self, eps: Tensor, z: Tensor, measure: Measure) -> Tensor:
        """Images (b,) whose certificate for eps is lost in rounding, in the type of variables z."""
        ...

    # --- certificates -----------------------------------------------------------------------------
    def require_strong_convexity(self) -> float:
        """mu, which certified distances need.

        Raises:
            MissingPropertyError: mu = 0 or unknown, or another reason why none can be certified.
        """
        ...

    def require_gradient(self, energy: str) -> Potential:
        """The potentials.

        Raises:
            MissingPropertyError: there is no gradient; names the ``energy``.
        """
        ...

    def rule(self, measure: Measure) -> Rule:
        """When images of this batch are done."""
        ...

    def close(self, point: Tensor) -> Closing:
        """Evidence and gradient in float64; the evidence pays for the rounding of the gradient."""
        ...

    def noise(self, point: Tensor) -> Tensor:
        """Evidence (b,) below which rounding in the type of ``point`` may be all there is."""
        ...

    def theorems(self, codes: Tensor) -> tuple[str, ...]:
        """The certificates (b,) by name; empty where there is one only."""
        ...

    def measured(self, measure: Measure) -> Measure:
        """What the error of a solution bounds."""
        ...


def is_saddle(f: object) -> TypeGuard[Saddle]:
    """Whether ``f`` is a saddle function (it certifies its own points) and no potential."""
    return offers(f, Certifying)


def view_of(f: Potential | Saddle) -> View:
    """The view of potentials, or of saddle functions."""
    return SaddleView(f) if is_saddle(f) else SmoothView(cast(Potential, f))


def require_strong_convexity(f: Potential | Saddle) -> float:
    """mu of the potential; of a saddle function, that of the image.

    Raises:
        MissingPropertyError: mu = 0 or unknown, so no distance to the minimizer can be certified;
            or the primal value of a saddle function is finite under an equation only.
    """
    return view_of(f).require_strong_convexity()


# --- potentials -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SmoothView:
    """Potentials: a gradient norm is the evidence, and the image is the only variable."""

    f: Potential
    most_steps: ClassVar[int] = 20000
    reference: ClassVar[Reference] = Reference((1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3), 1e-8, None)

    def select(self, index: Tensor) -> SmoothView:
        return SmoothView(self.f.select(index))

    def double(self) -> SmoothView:
        return SmoothView(self.f.double())

    def natural(self) -> tuple[AnySolver, str]:
        return automatic(self.f)

    def check_method(self, method: AnySolver) -> None:
        if isinstance(method, PDHG):
            _refuse(method, self.f, "a method for differentiable energies")
        if is_boxed(self.f) and not (offers(method, Bounded) and method.bounded):
            raise MissingPropertyError(
                "solver",
                given=f"{method.name!r} for images with bounds, of which it knows nothing",
                expected="'agd', 'lbfgs', 'newton', 'primal_dual_newton', or a solver that says "
                "bounded = True",
                remedy="Leave the choice to solver='auto'.",
            )
        if isinstance(method, AGD) and not is_convex(self.f):
            raise MissingPropertyError(
                "solver",
                given=f"'agd' for an energy with {self.f.bounds().mu} and L = {self.f.bounds().L}",
                expected="a convex energy with a finite L",
                remedy="Use solver='nmapg' or 'lbfgs', which need neither.",
            )

    def check_measure(self, measure: Measure) -> None:
        pass  # a gradient bounds either

    def variables(self, x0: Tensor) -> Tensor:
        return domain_of(self.f).project(x0)

    def result(self, found: Solution) -> Solution:
        return found

    def start_distance(self, x0: Tensor) -> Tensor:
        domain = domain_of(self.f)
        x0 = domain.project(x0)
        return norm(domain.slope(x0, self.f.grad(x0))) / constants_of(self.f).mu.to(x0)

    def near_rounding(self, eps: Tensor, z: Tensor, measure: Measure) -> Tensor:
        constants = constants_of(self.f)
        noise = self.f.noise() if offers(self.f, Noisy) else NEAR_ROUNDING * constants.L
        target = constants.mu * eps if measure == "distance" else eps
        return target < noise * torch.finfo(z.dtype).eps * norm(z).double()

    def require_strong_convexity(self) -> float:
        curvature = self.f.bounds()
        _require_mu(
            curvature.mu,
            "Add a strongly convex term, for example regularizer + lr.regularizers.Tikhonov(1e-3), "
            "or ask for solve(..., stationarity=1e-3).",
        )
        if not curvature.L.value < float("inf"):
            raise MissingPropertyError(
                "energy",
                given=f"a Hessian bounded by L = {curvature.L}",
                expected="a finite L",
                remedy="Let bounds() of the regularizer give L; if it does, its parameters are out "
                "of range.",
            )
        return curvature.mu.value

    def require_gradient(self, energy: str) -> Potential:
        return self.f

    def rule(self, measure: Measure) -> Rule:
        constants = constants_of(self.f)
        return ByGradient(constants) if measure == "distance" else ByStationarity(constants)

    def close(self, point: Tensor) -> Closing:
        wide, x = self.f.double(), point.double()
        domain = domain_of(wide)
        gradient = domain.slope(x, wide.grad(x))
        size = norm(gradient)
        evidence = size + rounding_of(wide, x)
        if not domain.everywhere:  # outside of its bounds an image has no certificate
            evidence = torch.where(domain.contains(x), evidence, torch.inf)
        return Closing(evidence, size, gradient, None)

    def noise(self, point: Tensor) -> Tensor:
        L = constants_of(self.f).L
        units = torch.finfo(point.dtype).eps * torch.where(torch.isfinite(L), L, 1.0)
        return units * norm(point).double()

    def theorems(self, codes: Tensor) -> tuple[str, ...]:
        return ()

    def measured(self, measure: Measure) -> Measure:
        return measure


# --- saddle functions -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SaddleView:
    """Saddle functions: they certify themselves, and the image is one variable of several."""

    f: Saddle
    most_steps: ClassVar[int] = 2000  # one of ``pdhg`` is ten iterations
    # why less: a gap has a rounding floor and may fall slowly
    reference: ClassVar[Reference] = Reference((1.0, 0.3, 0.1, 0.03, 0.01), 1e-4, 1000)

    def select(self, index: Tensor) -> SaddleView:
        return SaddleView(self.f.select(index))

    def double(self) -> SaddleView:
        return SaddleView(self.f.double())

    def natural(self) -> tuple[AnySolver, str]:
        return PDHG(), "pdhg (auto: the energy is a saddle function)"

    def check_method(self, method: AnySolver) -> None:
        if not isinstance(method, PDHG):
            _refuse(method, self.f, "pdhg")

    def check_measure(self, measure: Measure) -> None:
        if measure == "stationarity":
            raise MissingPropertyError(
                "stationarity",
                given=f"a {type(self.f).__name__}, which has no gradient",
                expected="a differentiable energy",
                remedy="Ask for a distance, eps=1e-2, with a tikhonov > 0.",
            )

    def variables(self, x0: Tensor) -> Tensor:
        return x0 if x0.dim() == 2 else self.f.pack(*self.f.start(x0))

    def result(self, found: Solution) -> Solution:
        return replace(found, value=self.f.image(found.value), state=found.value)

    def start_distance(self, x0: Tensor) -> Tensor:
        return self.f.certify(self.variables(x0)).distance

    def near_rounding(self, eps: Tensor, z: Tensor, measure: Measure) -> Tensor:
        return eps < self.f.rounding_distance(z)

    def require_strong_convexity(self) -> float:
        mu = self.f.bounds().mu
        _require_mu(mu, "Give SaddleEnergy a tikhonov > 0, for example 1e-3.")
        if offers(self.f, Constrained) and self.f.constrained:
            raise MissingPropertyError(
                "energy",
                given="a constraint K x = 0, which iterates only approach",
                expected="finite gaps on the way",
                remedy="Give the regularizer rounding > 0, or use a fixed number of steps "
                "(JointPiggyback).",
            )
        return mu.value

    def require_gradient(self, energy: str) -> Potential:
        raise MissingPropertyError(
            "energy",
            given=f"{energy}, which has no gradient",
            expected="a differentiable Energy",
            remedy="Solve it: s = solve(energy, y, eps); x is within ||x - s.value|| + s.error of "
            "the minimizer.",
        )

    def rule(self, measure: Measure) -> Rule:
        return ByCertificate()

    def close(self, point: Tensor) -> Closing:
        certificate = self.f.double().certify(point.double())
        size = norm(certificate.gradient)
        # a saddle function without derivatives has no gradient of its Lagrangian
        size = torch.where(size > 0, size, torch.nan)
        return Closing(certificate.distance, size, certificate.gradient, certificate.theorem)

    def noise(self, point: Tensor) -> Tensor:
        return self.f.rounding_distance(point)

    def theorems(self, codes: Tensor) -> tuple[str, ...]:
        return tuple(self.f.theorems[i] for i in codes.tolist())

    def measured(self, measure: Measure) -> Measure:
        return self.f.measure if offers(self.f, Measuring) else measure


def _require_mu(mu: Bound, remedy: str) -> None:
    if not (0 < mu.value < float("inf")):
        raise MissingPropertyError(
            "energy",
            given=f"strong convexity mu = {mu}",
            expected="mu > 0, which certified distances need",
            remedy=remedy,
        )


def _refuse(method: AnySolver, f: Potential | Saddle, expected: str) -> NoReturn:
    raise MissingPropertyError(
        "solver",
        given=f"{method.name!r} for a {type(f).__name__}",
        expected=expected,
        remedy="Leave the choice to solver='auto'.",
    )
