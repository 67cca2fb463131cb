"""Energy: h(x; theta, y) = D(Ax, y) + R(x; theta), batched over images."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.batch import check_images
from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.errors import InputError, MissingPropertyError
from ..core.guards import check_parts
from ..core.protocols import Hessian
from .fidelity import L2
from .tied import Tied


class RegularizerLike(Protocol):
    """What an Energy needs of a regularizer; any ``nn.Module`` that offers it will do."""

    def value(self, x: Tensor) -> Tensor: ...
    def grad(self, x: Tensor) -> Tensor: ...
    def linearize(self, x: Tensor) -> Hessian: ...
    def directional(self, x: Tensor, v: Tensor) -> Tensor: ...
    def bounds(self) -> Curvature: ...


class Energy(Tied):
    """h(x; theta, y) = D(Ax, y) + R(x; theta), one value per image.

    Args:
        physics: a linear ``deepinv`` physics A.
        regularizer: R, with parameters theta; ``learnreg.regularizers`` or your own module with the
            same methods.
        fidelity: D, ``L2()`` when None.

    Raises:
        InputError: not a physics, or a regularizer that lacks a method (the message names it).
        MissingPropertyError: a physics without an adjoint.
        AdjointError: at the first use of an image shape, if the adjoint fails the dot test.
    """

    def __init__(
        self, physics: nn.Module, regularizer: nn.Module, fidelity: L2 | None = None
    ) -> None:
        check_parts(physics, regularizer, fidelity)
        if getattr(regularizer, "saddle", False):
            raise InputError(
                "regularizer",
                given=f"{type(regularizer).__name__}, which has no gradient",
                expected="a differentiable regularizer",
                remedy="Use SaddleEnergy in the place of Energy.",
            )
        if fidelity is not None and not hasattr(fidelity, "grad"):
            raise InputError(
                "fidelity",
                given=f"{type(fidelity).__name__}, which has no gradient",
                expected="L2 with a differentiable regularizer",
                remedy="Use SaddleEnergy and a saddle regularizer such as ExactTV.",
            )
        missing = [
            m
            for m in ("value", "grad", "linearize", "directional", "bounds")
            if not hasattr(regularizer, m)
        ]
        if missing:
            raise InputError(
                "regularizer",
                given=f"{type(regularizer).__name__} without {', '.join(missing)}",
                expected="the methods value, grad, linearize, directional, bounds",
                remedy="See CONTRIBUTING.md, add a regularizer in five steps.",
            )
        super().__init__(physics, regularizer, fidelity or L2())

    def at(self, y: Tensor, x: Tensor | None = None) -> EnergyAt:
        """The potentials x -> h(x; theta, y), one per image.

        Args:
            y: measurements, (b, ...).
            x: images of the shape to be reconstructed; A^T y when None.

        Raises:
            InputError: y is not a finite floating-point batch.
        """
        check_images(y, "y")
        like = (y if self.operator.is_identity else self.operator.adjoint(y)) if x is None else x
        self.operator.check(like)
        return EnergyAt(
            self, y, self.fidelity.bounds(self.operator, like) + self.regularizer.bounds()
        )

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """(b, c, h, w), (b, ...) -> (b,)."""
        return self.fidelity.value(self.operator, x, y) + self.regularizer.value(x)

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradient in x: (b, c, h, w), (b, ...) -> (b, c, h, w)."""
        return self.fidelity.grad(self.operator, x, y).add_(self.regularizer.grad(x))

    def hvp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Hessian-vector product in x."""
        return self.at(y, x).linearize(x)(v)

    def directional(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """<grad_x h, v> per image (b,), differentiable in theta: up to terms free of theta."""
        return self.regularizer.directional(x, v)

    def data_adjoint(self, x: Tensor, y: Tensor, q: Tensor) -> Tensor:
        """-(d/dy grad_x h)^T q, shape of y: what a solution map passes back to the measurements."""
        return self.fidelity.data_adjoint(self.operator, q)

    def bounds(self, x: Tensor | None = None) -> Curvature:
        """mu <= Hessian <= L for images like ``x`` (needed when the spectrum of A depends on the
        image size).
        """
        if x is None and not self.operator.is_identity:
            raise InputError(
                "x",
                given=None,
                expected="an image (b, c, h, w)",
                remedy="The norm of A depends on the image size; call bounds(x).",
            )
        like = torch.zeros(1, 1, 1, 1) if x is None else x
        return self.fidelity.bounds(self.operator, like) + self.regularizer.bounds()

    def certificate(self, name: str, *args: Any) -> Any:
        """``hessian_change``, ``mixed_change`` ... of the regularizer, None if it does not offer
        them.

        The data term is quadratic and free of theta, so it adds nothing.
        """
        method = getattr(self.regularizer, name, None)
        return None if method is None else method(*args)

    def hessian_lipschitz(self) -> Bound:
        """Lipschitz constant of the Hessian in x."""
        return self.certificate("hessian_lipschitz") or Bound.unknown()

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        """Lipschitz constant of the mixed derivative on images with |x| <= reach."""
        return self.certificate("mixed_lipschitz", reach) or Bound.unknown()


class _DataPlusRegularizer:
    """A^T A / sigma^2 + Hessian of R at one point."""

    def __init__(self, energy: Energy, hessian: Hessian) -> None:
        self.energy, self.hessian = energy, hessian

    def __call__(self, v: Tensor) -> Tensor:
        return self.hessian(v) + self.energy.fidelity.hessian(self.energy.operator, v)

    def select(self, index: Tensor) -> _DataPlusRegularizer:
        return _DataPlusRegularizer(self.energy, self.hessian.select(index))


class EnergyAt:
    """An Energy tied to its data y: a batch of potentials (see ``core.protocols.Potential``)."""

    def __init__(self, energy: Energy, y: Tensor, curvature: Curvature) -> None:
        self.energy, self.y, self._curvature = energy, y, curvature

    def value(self, x: Tensor) -> Tensor:
        return self.energy.value(x, self.y)

    @torch.no_grad()
    def grad(self, x: Tensor) -> Tensor:
        return self.energy.grad(x, self.y)

    @torch.no_grad()
    def linearize(self, x: Tensor) -> _DataPlusRegularizer:
        return _DataPlusRegularizer(self.energy, self.energy.regularizer.linearize(x))

    @property
    def averages(self) -> bool:
        """Whether ``mean_curvature`` has an answer."""
        return bool(
            getattr(
                self.energy.regularizer,
                "averages",
                hasattr(self.energy.regularizer, "mean_curvature"),
            )
        )

    @torch.no_grad()
    def mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        """Averages of the Hessian around x, for preconditioners; None when the regularizer does not
        offer them.
        """
        of_data = self.energy.fidelity.mean_curvature(self.energy.operator, x)
        of_regularizer = self.energy.certificate("mean_curvature", x)
        return None if of_regularizer is None else of_data + of_regularizer

    @torch.no_grad()
    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        """The slopes of the regularizer's potentials at x as variables of their own (see
        ``solvers.newton``).
        """
        return self._dual("dual_start")(x)

    @torch.no_grad()
    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> _DataPlusRegularizer:
        """The Hessian of the primal-dual Newton method."""
        return _DataPlusRegularizer(self.energy, self._dual("dual_linearize")(x, dual))

    @torch.no_grad()
    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        """The dual variable after x has moved by ``move``."""
        return self._dual("dual_update")(x, dual, move)

    def _dual(self, name: str) -> Any:
        method = getattr(self.energy.regularizer, name, None)
        if method is None:
            raise MissingPropertyError(
                "regularizer",
                given=f"{type(self.energy.regularizer).__name__} without {name}",
                expected="a dual variable",
                remedy="Use solver='newton' or solver='lbfgs', which need none.",
            )
        return method

    def noise(self) -> float:
        """Rounding of a gradient over machine epsilon times ||x||, measured.

        0.3 per unit of curvature of an operator that works by FFT or interpolation (0.03 to 1.6
        were seen, and a wrong guess costs little: images that stall go on in float64), 0.1 of
        everything else.
        """
        energy = self.energy
        simple = energy.operator.is_identity or energy.operator.is_mask
        of_regularizer = energy.regularizer.bounds().L.value
        return 0.1 * of_regularizer + (0.1 if simple else 0.3) * (
            self._curvature.L.value - of_regularizer
        )

    def effort(self) -> float:
        """What a gradient costs, in operations on one vector of pixels; a rough number that steers
        ``auto``.
        """
        return self.energy.operator.effort + float(getattr(self.energy.regularizer, "effort", 10.0))

    def bounds(self) -> Curvature:
        return self._curvature

    def select(self, index: Tensor) -> EnergyAt:
        return EnergyAt(self.energy, self.y[index], self._curvature)

    def double(self) -> EnergyAt:
        if self.y.dtype == torch.float64:
            return self
        return EnergyAt(self.energy.double(), self.y.double(), self._curvature)
