"""Energy: h(x; theta, y) = D(Ax, y) + R(x; theta), batched over images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import check_images, dot, norm
from ..core.bounds import Bound, Constants, Curvature, Kind
from ..core.constraints import Interval
from ..core.cost import Cost
from ..core.curvature import MeanCurvature
from ..core.errors import InputError, MissingPropertyError
from ..core.guards import check_parts
from ..core.measured import Measured, Native, measured
from ..core.offers import (
    Averaged,
    BoundsPerShape,
    CurvatureNear,
    DualVariable,
    HessianLipschitz,
    MixedLipschitz,
    certificate_of,
    effort_of,
    is_saddle,
    offers_averages,
    reach_of,
)
from ..core.params import reparametrized
from ..core.protocols import Hessian
from ..core.ranges import absent
from ..operators.physics import TiedMap
from ..operators.windows import cuts, window
from .data_functions import DataFunction, weight_like
from .energy_certificates import Parts
from .fidelity import L2, DataTerm, WeightedL2, as_data_term, data_constants
from .per_image import started
from .sampling import SampledL2
from .tied import ModuleLike, Tied

NEEDED = ("value", "grad", "linearize", "directional", "bounds")
"""Methods of a regularizer that an Energy refuses to do without."""

DUAL = ("dual_start", "dual_linearize", "dual_update")
"""Methods that make a dual variable, for the primal-dual Newton method."""


class SmoothOnCondition(Protocol):
    """A data term that has a gradient for some of its settings only, and refuses others."""

    def check_smooth(self) -> None: ...


class RegularizerLike(ModuleLike):
    """What an Energy needs of a regularizer; any ``nn.Module`` that offers it will do.

    What it may offer beyond that is in ``core.offers``.
    """

    def value(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def grad(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def linearize(self, x: Tensor) -> Hessian:
        raise NotImplementedError

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def bounds(self) -> Curvature:
        raise NotImplementedError


class Energy(Tied[RegularizerLike, DataTerm]):
    """h(x; theta, y) = D(Ax, y) + R(x; theta), one value per image.

    Theta are all trainable parameters: of the regularizer, of the data term and of the physics.

    Args:
        physics: a linear ``deepinv`` physics A.
        regularizer: R; ``learnreg.regularizers`` or your own module with the same methods.
        fidelity: D, ``L2()`` when None; ``WeightedL2``, ``Huber``, ``KL``, ``Foreign``, or a data
            term of deepinv.
        constraint: bounds of the pixels of x, ``NonNegative()``, ``Between(lower, upper)`` or a
            pair; None for no bounds. Reconstructions keep to them to the last bit, and certificates
            and hypergradients are those of the constrained minimizer.

    Raises:
        InputError: not a physics, or a regularizer or data term that lacks a method (the message
            names it); a constraint that is none.
        MissingPropertyError: a physics without an adjoint.
        AdjointError: at the first use of an image shape, if the adjoint fails the dot test.
    """

    def __init__(
        self,
        physics: nn.Module,
        regularizer: nn.Module,
        fidelity: object | None = None,
        constraint: object | None = None,
    ) -> None:
        check_parts(physics, regularizer, fidelity)
        if is_saddle(regularizer):
            raise InputError(
                "regularizer",
                given=f"{type(regularizer).__name__}, which has no gradient",
                expected="a differentiable regularizer",
                remedy="Use SaddleEnergy in the place of Energy.",
            )
        data_term = as_data_term(fidelity)
        if not isinstance(data_term, DataTerm):
            raise InputError(
                "fidelity",
                given=f"{type(data_term).__name__}, which has no gradient",
                expected="a smooth data term: L2, WeightedL2, Huber, KL, PoissonGaussian",
                remedy="Use SaddleEnergy and a saddle regularizer such as ExactTV.",
            )
        asked: object = data_term
        if offers(asked, SmoothOnCondition):
            asked.check_smooth()
        missing = absent(regularizer, NEEDED)
        if missing and not isinstance(regularizer, type):
            raise InputError(
                "regularizer",
                given=f"{type(regularizer).__name__} without {', '.join(missing)}",
                expected="the methods value, grad, linearize, directional, bounds",
                remedy="See CONTRIBUTING.md, add a regularizer in five steps; a network or a "
                "deepinv Prior with a potential becomes one by lr.regularizers.BlackBox.",
            )
        super().__init__(physics, regularizer, data_term, constraint)

    def at(self, y: Native | Measured, x: Tensor | None = None) -> EnergyAt:
        """The potentials x -> h(x; theta, y), one per image.

        Args:
            y: measurements, (b, ...); real, complex, a list of tensors, or with parameters of the
                operator for every image (``Measured``).
            x: real images (b, c, ...) of the shape to be reconstructed; A^T y when None.

        Raises:
            InputError: y is not a finite floating-point batch, or the physics does not take it.
        """
        for tensor in measured(y).tensors:
            check_images(torch.view_as_real(tensor) if tensor.is_complex() else tensor, "y")
        before = self.operator.cost
        operator, data, image = self.tie(y, x, lazy=True)
        like = image if x is None else x

        # what hangs on theta keeps doing so, whoever asks: its derivative is part of certificates
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.learns_fidelity):
            function = self.data_term(y).tie(data)
        constants = data_constants(function, operator, like) + self._of_regularizer(like)
        spent = operator.map.cost - before if operator.map is self.operator else operator.map.cost
        domain = self.domain(y, operator, image)
        return EnergyAt(self, operator, function, constants, image, spent, image is not x, domain)

    def _of_regularizer(self, x: Tensor) -> Constants:
        """mu and L of R for images like x."""
        r = self.regularizer
        bounds = r.bounds_for(x) if offers(r, BoundsPerShape) else r.bounds()
        declared = math.isfinite(bounds.mu.value + bounds.L.value)
        if declared or not offers(r, CurvatureNear):
            return Constants.of(bounds, x.device)
        # what nobody declared is estimated around the start, and called an estimate
        mu, L = r.curvature_near(x)
        return Constants(mu, L, Kind.ESTIMATE, Kind.ESTIMATE)

    def value(self, x: Tensor, y: Native | Measured) -> Tensor:
        """(b, c, h, w), (b, ...) -> (b,)."""
        return self.at(y, x).value(x)

    def grad(self, x: Tensor, y: Native | Measured) -> Tensor:
        """Gradient in x: (b, c, h, w), (b, ...) -> (b, c, h, w)."""
        return self.at(y, x).grad(x)

    def hvp(self, x: Tensor, y: Native | Measured, v: Tensor) -> Tensor:
        """Hessian-vector product in x."""
        return self.at(y, x).linearize(x)(v)

    def directional(self, x: Tensor, y: Native | Measured, v: Tensor) -> Tensor:
        """<grad_x h, v> per image (b,), differentiable in theta: up to terms free of theta."""
        if self.learns_data:
            return self.at(y, x).directional(x, v)
        return self.regularizer.directional(x, v)

    def data_adjoint(self, x: Tensor, y: Native | Measured, q: Tensor) -> Tensor:
        """-(d/dy grad_x h)^T q, real, shape of the real measurements: what a solution map passes
        back to them.
        """
        return self.at(y, x).to_data(x, q)

    def bounds(self, x: Tensor | None = None) -> Curvature:
        """mu <= Hessian <= L of a quadratic data term plus R, for images like ``x``.

        Args:
            x: needed when the spectrum of A depends on the image size.

        Raises:
            InputError: x is missing, or the constants depend on the measurements.
        """
        if x is None and not self.operator.is_identity:
            raise InputError(
                "x",
                given=None,
                expected="an image (b, c, h, w)",
                remedy="The norm of A depends on the image size; call bounds(x).",
            )
        like = torch.zeros(1, 1, 1, 1) if x is None else x
        if self.operator.is_identity:
            y: Native = like
        else:
            with torch.no_grad():
                y = self.operator.for_dtype(like.dtype).physics.A(like)
        return self.at(y, like).bounds()

    @property
    def _of_regularizer_alone(self) -> bool:
        """Whether changes of Hessian and mixed derivative are those of the regularizer: a quadratic
        data term free of theta adds nothing. Otherwise they depend on the data (``EnergyAt``).
        """
        # why by type: a subclass may tie itself to a function that is not quadratic
        return type(self.fidelity) in (L2, WeightedL2, SampledL2) and not self.learns_data

    def certificate(self, name: str, *args: Tensor) -> Tensor | None:
        """``hessian_change``, ``mixed_change`` or ``mixed_norm`` of the energy (b,), None where
        nobody knows them.
        """
        method = certificate_of(self.regularizer, name) if self._of_regularizer_alone else None
        return None if method is None else method(*args)

    def hessian_lipschitz(self) -> Bound:
        """Lipschitz constant of the Hessian in x."""
        r = self.regularizer
        if type(self.fidelity) in (L2, WeightedL2) and offers(r, HessianLipschitz):
            return r.hessian_lipschitz() or Bound.unknown()
        return Bound.unknown()

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        """Lipschitz constant of the mixed derivative on images with |x| <= reach."""
        r = self.regularizer
        if self._of_regularizer_alone and offers(r, MixedLipschitz) and not reparametrized(r):
            return r.mixed_lipschitz(reach) or Bound.unknown()
        return Bound.unknown()


@dataclass(frozen=True, eq=False)
class _Total:
    """A^T D'' A + Hessian of R at one point."""

    operator: TiedMap
    of_data: Hessian
    of_regularizer: Hessian

    def __call__(self, v: Tensor) -> Tensor:
        data = self.operator.adjoint(self.of_data(self.operator.forward(v)))
        return self.of_regularizer(v) + data

    def select(self, index: Tensor) -> _Total:
        return _Total(
            self.operator.select(index),
            self.of_data.select(index),
            self.of_regularizer.select(index),
        )


@dataclass(frozen=True, eq=False)
class EnergyAt:
    """An Energy tied to its data: a batch of potentials (see ``core.protocols.Potential``).

    Attributes:
        energy: where it comes from.
        operator: A and A^T of these images.
        data: D(., y) of these images.
        constants: mu and L per image.
        back: A^T y, (b, c, ...), or images of this shape.
        spent: work that tying it has cost, checks and norms included.
        pulled: whether ``back`` is A^T y.
        domain: bounds of the pixels; None where there are none.
    """

    energy: Energy
    operator: TiedMap
    data: DataFunction
    constants: Constants
    back: Tensor
    spent: Cost = Cost()
    pulled: bool = True
    domain: Interval | None = None

    @property
    def y(self) -> Tensor:
        """The measurements, real."""
        return self.data.y

    @property
    def regularizer(self) -> RegularizerLike:
        return self.energy.regularizer

    def first(self) -> Tensor:
        """t A^T y with the t that fits the data best, within the bounds; of counts, of what they
        are without gain and background.
        """
        back = self.back if self.pulled else self.operator.adjoint(self.data.y)
        first = started(self.operator, self.data, self.data.y, back)
        return first if self.domain is None else self.domain.project(first)

    def value(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> (b,)."""
        return self.data.value(self.operator.forward(x)) + self.regularizer.value(x)

    @torch.no_grad()
    def grad(self, x: Tensor) -> Tensor:
        """(b, c, ...) -> (b, c, ...)."""
        slope = self.operator.adjoint(self.data.grad(self.operator.forward(x)))
        return slope.add_(self.regularizer.grad(x))

    @torch.no_grad()
    def linearize(self, x: Tensor) -> _Total:
        """The Hessian at x."""
        return self._total(x, self.regularizer.linearize(x))

    def _total(self, x: Tensor, of_regularizer: Hessian) -> _Total:
        # a quadratic data term has one Hessian everywhere, and needs no A x to know it
        a = x if self.data.quadratic else self.operator.forward(x)
        return _Total(self.operator, self.data.linearize(a), of_regularizer)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        """<grad h, v> per image (b,), differentiable in theta and in y."""
        a, moved = self.operator.forward(x), self.operator.forward(v)
        return dot(self.data.grad(a), moved) + self.regularizer.directional(x, v)

    @torch.no_grad()
    def to_data(self, x: Tensor, q: Tensor) -> Tensor:
        """-(d/dy grad h)^T q, shape of the real measurements."""
        moved = self.operator.forward(q)
        if self.data.quadratic:
            return self.data.to_data(moved, moved)
        return self.data.to_data(self.operator.forward(x), moved)

    @property
    def _parts(self) -> Parts:
        """What certificates are made of."""
        e = self.energy
        # the physics at theta, whose parameters are those of theta
        return Parts(e.physics, e.regularizer, e.fidelity, self.operator, self.data, self.back)

    def certificate(self, name: str, *args: Tensor) -> Tensor | None:
        """``hessian_change``, ``mixed_change`` or ``mixed_norm`` of the energy (b,) with all of
        theta, see ``energy_certificates``; None where a constant is not known.
        """
        return self._parts.certificate(name, *args)

    def hessian_lipschitz(self) -> Bound:
        """Lipschitz constant of the Hessian in x."""
        return self._parts.hessian_lipschitz()

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        """Lipschitz constant of the mixed derivative on images with |x| <= reach."""
        return self._parts.mixed_lipschitz(reach)

    @property
    def reach(self) -> int | None:
        """A gradient at a pixel depends on no pixel farther than this; None where that is not
        known, or windows cannot be looked at alone.
        """
        corner = (slice(0, 1), slice(0, 1))
        pictures = self.back.dim() == 4 and cuts(self.operator)
        local = pictures and self.data.window(corner) is not None
        return reach_of(self.regularizer) if local else None

    def windows(self, double: bool = False) -> Callable[[slice, slice], EnergyAt]:
        """(rows, columns) -> the potentials of a window of all images, as of images of their own:
        their gradients are those of the whole but for ``reach`` pixels inside the cuts.

        Args:
            double: in float64.
        """
        energy = self.energy.widened() if double else self.energy
        # copying a physics of deepinv takes a second: once, not for every window
        whole = self.operator.double() if double else self.operator

        def window_of(rows: slice, columns: slice) -> EnergyAt:
            data = self.data.window((rows, columns))
            if data is None:
                raise MissingPropertyError(
                    "energy",
                    given=f"{type(self.data).__name__}, which cannot be cut",
                    expected="a sum over pixels",
                    remedy="Solve the whole image.",
                )
            back = self.back[..., rows, columns]
            operator = window(whole, self.back, rows, columns)
            domain = None if self.domain is None else self.domain.window(rows, columns)
            if double:
                data, back = data.double(), back.double()
                domain = None if domain is None else domain.double()
            return EnergyAt(
                energy, operator, data, self.constants, back, pulled=self.pulled, domain=domain
            )

        return window_of

    @property
    def averages(self) -> bool:
        """Whether ``mean_curvature`` has an answer."""
        if not offers_averages(self.regularizer):
            return False
        return self.operator.mean_curvature(self.back) is not None

    @torch.no_grad()
    def mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        """Averages of the Hessian around x, for preconditioners; None where they are not known."""
        of_map, r = self.operator.mean_curvature(x), self.regularizer
        if of_map is None or not offers(r, Averaged):
            return None
        of_regularizer = r.mean_curvature(x)
        if of_regularizer is None:
            return None

        weight = weight_like(self.data.mean_weight(), x)
        if isinstance(weight, float):
            of_data = of_map if weight == 1 else of_map * weight
        else:
            of_data = MeanCurvature(of_map.diagonal * weight, of_map.symbol * weight)
        return of_data + of_regularizer

    @torch.no_grad()
    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        """The slopes of the regularizer's potentials at x as variables of their own (see
        ``solvers.newton``).
        """
        return self._dual.dual_start(x)

    @torch.no_grad()
    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> _Total:
        """The Hessian of the primal-dual Newton method."""
        return self._total(x, self._dual.dual_linearize(x, dual))

    @torch.no_grad()
    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        """The dual variable after x has moved by ``move``."""
        return self._dual.dual_update(x, dual, move)

    @property
    def _dual(self) -> DualVariable:
        """The regularizer as one with a dual variable."""
        r = self.regularizer
        if offers(r, DualVariable):
            return r
        first, *_ = absent(r, DUAL) or DUAL
        raise MissingPropertyError(
            "regularizer",
            given=f"{type(r).__name__} without {first}",
            expected="a dual variable",
            remedy="Use solver='newton' or solver='lbfgs', which need none.",
        )

    def noise(self) -> float:
        """Rounding of a gradient over machine epsilon times ||x||, measured.

        0.3 per unit of curvature of an operator that works by FFT or interpolation (0.03 to 1.6
        were seen, and a wrong guess costs little: images that stall go on in float64), 0.1 of
        everything else.
        """
        simple = self.operator.is_identity or self.operator.is_mask
        of_regularizer = float(self.energy._of_regularizer(self.back).L.max())
        total = self.bounds().L.value
        if not of_regularizer < float("inf"):
            return 0.3 * total
        return 0.1 * of_regularizer + (0.1 if simple else 0.3) * (total - of_regularizer)

    def rounding(self, x: Tensor) -> Tensor:
        """A bound (b,) of what rounding in the type of x makes of the norm of a gradient at x.

        ``ULPS`` units of the sizes of all that is subtracted: L ||x|| bounds what comes from x, and
        sqrt(L) times the norm of the slope of D at zero what comes from y. The number of units is
        generous where sums run over few terms, and what pairwise summation needs where they run
        over millions (Higham, Accuracy and Stability of Numerical Algorithms, Section 4.2).
        """
        eps = torch.finfo(x.dtype).eps
        # an L that nobody knows certifies nothing either way
        L = torch.where(torch.isfinite(self.constants.L), self.constants.L, 0.0)
        at_zero = norm(self.data.grad(torch.zeros_like(self.data.y))).double()
        reach = self.operator.spectrum(x).L.sqrt()
        return ULPS * eps * (L * norm(x).double() + reach * at_zero)

    def effort(self) -> float:
        """What a gradient costs, in operations on one vector of pixels; a rough number that steers
        ``auto``.
        """
        return self.operator.effort + effort_of(self.regularizer)

    def bounds(self) -> Curvature:
        """mu and L that hold for every image."""
        return self.constants.curvature

    def select(self, index: Tensor) -> EnergyAt:
        """The potentials of the images ``index``."""
        return EnergyAt(
            self.energy,
            self.operator.select(index),
            self.data.select(index),
            self.constants.select(index),
            self.back[index],
            pulled=self.pulled,
            domain=None if self.domain is None else self.domain.select(index),
        )

    def double(self) -> EnergyAt:
        """The same potentials in float64."""
        if self.data.y.dtype == torch.float64:
            return self
        return EnergyAt(
            self.energy.widened(),
            self.operator.double(),
            self.data.double(),
            self.constants,
            self.back.double(),
            pulled=self.pulled,
            domain=None if self.domain is None else self.domain.double(),
        )


ULPS = 4.0
"""Units of rounding allowed for in closing gradients."""
