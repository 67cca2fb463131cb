"""Regularizer: what every R(x; theta) offers, and how sums and scalings compose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.bounds import Bound, Curvature
from ..core.curvature import MeanCurvature
from ..core.errors import InputError, MissingPropertyError
from ..core.offers import CurvatureNear, reach_of
from ..core.protocols import Hessian
from ..core.ranges import check_number, check_positive
from .described import Described
from .proximal import proximal_point


class LinearizedHessian:
    """A Hessian from a list of per-image tensors and a product that uses them.

    Args:
        product: (v, *weights) -> H v.
        weights: tensors (b, ...), one slice per image.
    """

    def __init__(self, product: Callable[..., Tensor], *weights: Tensor) -> None:
        self.product, self.weights = product, weights

    def __call__(self, v: Tensor) -> Tensor:
        return self.product(v, *self.weights)

    def select(self, index: Tensor) -> LinearizedHessian:
        return LinearizedHessian(self.product, *(w[index] for w in self.weights))


class Regularizer(Described):
    """R(x; theta) for images x: (b, c, h, w), one value per image; theta are the module's trainable
    parameters. Some take signals (b, c, n) and volumes (b, c, d, h, w) as well.

    Autograd follows ``value`` and ``grad`` where x requires a gradient (in a subclass decorated as
    in ``derivatives.py``, with ``formula``). ``deepinv.optim`` takes it as a prior (``as_prior``).

    A subclass implements ``value``, ``grad``, ``linearize``, ``directional`` and ``bounds``. The
    certificate methods ``hessian_change``, ``mixed_change``, ``mixed_norm`` return None by default:
    hypergradient errors are then estimated, never called certified.
    """

    explicit_prior = True
    """Tells ``deepinv.optim`` that there is a value."""

    @property
    def effort(self) -> float:
        """What a gradient costs, in operations on one vector of pixels; roughly, to steer
        ``auto``.
        """
        return 10.0

    def value(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b,)."""
        raise NotImplementedError

    def formula(self, x: Tensor) -> Tensor:
        """The same in operations that autograd follows to any order, in x and in theta; slower."""
        raise NotImplementedError

    def forward(self, x: Tensor, *parameters: object, **options: object) -> Tensor:
        """``value``; what else ``deepinv`` hands to its priors has no effect."""
        return self.value(x)

    def grad(self, x: Tensor, *parameters: object) -> Tensor:
        """Gradient in x: (b, c, h, w) -> (b, c, h, w); no autograd graph unless x requires a
        gradient.
        """
        raise NotImplementedError

    def prox(
        self, x: Tensor, *parameters: object, gamma: float | Tensor = 1.0, tol: float = 1e-5
    ) -> Tensor:
        """argmin_z gamma R(z) + 1/2 ||z - x||^2 to a distance of tol ||x||; see ``proximal``."""
        return proximal_point(self, x, gamma, tol)

    def as_prior(self) -> nn.Module:
        """This regularizer (shared, not copied) as a ``deepinv.optim.Prior``; its gradient is
        differentiable in theta where x requires none as well.
        """
        from .prior import RegularizerPrior

        return RegularizerPrior(self)

    def linearize(self, x: Tensor) -> Hessian:
        """The Hessian in x at x, with its curvature weights computed once."""
        raise NotImplementedError

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        """Hessian-vector product: (b, c, h, w), (b, c, h, w) -> (b, c, h, w)."""
        return self.linearize(x)(v)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        """<grad R(x), v> per image (b,), differentiable in theta.

        Its gradient in theta is J^T v with J the mixed derivative; ONE reverse-mode call serves all
        parameters.
        """
        raise NotImplementedError

    def bounds(self) -> Curvature:
        """mu <= Hessian <= L for every image, at the present theta."""
        raise NotImplementedError

    def bounds_for(self, x: Tensor) -> Curvature:
        """``bounds`` for images like x, where they depend on the number of axes."""
        return self.bounds()

    @property
    def averages(self) -> bool:
        """Whether ``mean_curvature`` has an answer."""
        return type(self).mean_curvature is not Regularizer.mean_curvature

    def mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        """Averages of the Hessian around x (b, c, h, w), for preconditioners; None if not
        offered.
        """
        return None

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        """Slopes p of the potentials at x, for the primal-dual Newton method; tensors (b, ...).

        Raises:
            MissingPropertyError: this regularizer has no such splitting.
        """
        raise MissingPropertyError(
            "regularizer",
            given=f"{type(self).__name__}, which has no dual variable",
            expected="potentials of linear maps of x, as TV and FoE",
            remedy="Use solver='newton' or solver='lbfgs'.",
        )

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> Hessian:
        """The Hessian with the curvatures of the primal-dual Newton method."""
        raise NotImplementedError

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        """p after x has moved, by its linearized equation, kept in |p| <= 1."""
        raise NotImplementedError

    def hessian_lipschitz(self) -> Bound:
        """Lipschitz constant of x -> Hessian of R in the spectral norm, for every x."""
        return Bound.unknown()

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        """Lipschitz constant of x -> J(x) on images with all pixels in [-reach, reach]."""
        return Bound.unknown()

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        """Bound of ||(H(x') - H(x)) q|| over ||x' - x|| <= radius: (b,) or None if no bound is
        known.
        """
        return None

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        """Bound of ||(J(x') - J(x))^T q|| over ||x' - x|| <= radius: (b,) or None."""
        return None

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor | None:
        """Bound of ||J(x')|| over ||x' - x|| <= radius: (b,) or None."""
        return None

    def __add__(self, other: Regularizer) -> Sum:
        return Sum([self, other])

    def __mul__(self, factor: float) -> Scaled:
        return Scaled(factor, self)

    __rmul__ = __mul__


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Sum of bounds; None when one of them is not known."""
    known = [p for p in parts if p is not None]
    return torch.stack(known).sum(dim=0) if len(known) == len(parts) else None


def _near(r: Regularizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """mu and L (b,) float64 of one term: its bounds, or what they are around x."""
    bounds = r.bounds_for(x)
    declared = math.isfinite(bounds.mu.value + bounds.L.value)
    if offers(r, CurvatureNear) and not declared:
        return r.curvature_near(x)

    like = torch.ones(x.shape[0], dtype=torch.float64, device=x.device)
    return bounds.mu.value * like, bounds.L.value * like


def _farthest(terms: Iterable[Regularizer]) -> int | None:
    """How far the gradient of a sum sees; None where one of its terms does not say."""
    found = [reach_of(r) for r in terms]
    known = [n for n in found if n is not None]
    return max(known) if len(known) == len(found) else None


class _Combined:
    """The Hessian of a weighted sum."""

    def __init__(self, parts: Sequence[tuple[float, Hessian]]) -> None:
        self.parts = parts

    def __call__(self, v: Tensor) -> Tensor:
        (factor, first), *others = self.parts
        out = first(v) if factor == 1 else factor * first(v)
        for c, h in others:
            out = torch.add(out, h(v), alpha=c)
        return out

    def select(self, index: Tensor) -> _Combined:
        return _Combined([(c, h.select(index)) for c, h in self.parts])


class Sum(Regularizer):
    """R_1 + R_2 + ...; theta is the concatenation."""

    def __init__(self, terms: Sequence[Regularizer]) -> None:
        super().__init__()
        if not terms:
            raise InputError("terms", given="an empty list", expected="at least one regularizer")
        self.terms = nn.ModuleList(terms)

    def _parts(self) -> Iterable[Regularizer]:
        """``terms`` under the type of its elements, which a ModuleList forgets."""
        return cast("Iterable[Regularizer]", self.terms)

    @property
    def effort(self) -> float:
        return sum(r.effort for r in self._parts())

    @property
    def reach(self) -> int | None:
        """The farthest of its terms."""
        return _farthest(self._parts())

    def value(self, x: Tensor) -> Tensor:
        return torch.stack([r.value(x) for r in self._parts()]).sum(dim=0)

    def formula(self, x: Tensor) -> Tensor:
        return torch.stack([r.formula(x) for r in self._parts()]).sum(dim=0)

    def grad(self, x: Tensor, *parameters: object) -> Tensor:
        return torch.stack([r.grad(x) for r in self._parts()]).sum(dim=0)

    def linearize(self, x: Tensor) -> _Combined:
        return _Combined([(1.0, r.linearize(x)) for r in self._parts()])

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.stack([r.directional(x, v) for r in self._parts()]).sum(dim=0)

    def bounds(self) -> Curvature:
        parts = [r.bounds() for r in self._parts()]
        return sum(parts[1:], parts[0])

    def bounds_for(self, x: Tensor) -> Curvature:
        parts = [r.bounds_for(x) for r in self._parts()]
        return sum(parts[1:], parts[0])

    def curvature_near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Constants (b,) around x, estimated for terms whose bounds nobody declared."""
        found = [_near(r, x) for r in self._parts()]
        return sum(mu for mu, _ in found), sum(L for _, L in found)  # type: ignore[return-value]

    @property
    def averages(self) -> bool:
        return all(r.averages for r in self._parts())

    def mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        known = [m for m in (r.mean_curvature(x) for r in self._parts()) if m is not None]
        return sum(known[1:], known[0]) if len(known) == len(self.terms) else None

    def _shares(
        self, x: Tensor, dual: tuple[Tensor, ...]
    ) -> Iterable[tuple[Regularizer, tuple[Tensor, ...]]]:
        """Every term with its part of the dual variable; a term without potentials has none."""
        rest = list(dual)
        for r in self._parts():
            count = len(r.dual_start(x[:1]))
            yield r, tuple(rest[:count])
            rest = rest[count:]

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(p for r in self._parts() for p in r.dual_start(x))

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> _Combined:
        return _Combined([(1.0, r.dual_linearize(x, p)) for r, p in self._shares(x, dual)])

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        return tuple(new for r, p in self._shares(x, dual) for new in r.dual_update(x, p, move))

    def hessian_lipschitz(self) -> Bound:
        return sum((r.hessian_lipschitz() for r in self._parts()), Bound.exact(0.0))

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        return sum((r.mixed_lipschitz(reach) for r in self._parts()), Bound.exact(0.0))

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        return _total([r.hessian_change(x, q, radius) for r in self._parts()])

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        return _total([r.mixed_change(x, q, radius) for r in self._parts()])

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor | None:
        return _total([r.mixed_norm(x, radius) for r in self._parts()])

    def units(self) -> Tensor:
        return torch.cat([r.units() for r in self._parts()])

    def scaling(self) -> Tensor:
        """Of all terms together; one that has no scale of its own stays as it is."""
        return torch.cat([r.scaling() for r in self._parts()])

    def spec(self) -> dict[str, object]:
        return {"type": "Sum", "terms": [r.spec() for r in self._parts()]}

    def filters(self) -> dict[str, Tensor] | None:
        return next((f for f in (r.filters() for r in self._parts()) if f is not None), None)

    def extra_repr(self) -> str:
        return f"{len(self.terms)} terms"


class Scaled(Regularizer):
    """factor * R with a fixed non-negative factor.

    Args:
        factor: finite and non-negative.
        regularizer: R.
    """

    def __init__(self, factor: float, regularizer: Regularizer) -> None:
        super().__init__()
        self.factor = float(
            check_number("factor", factor, lambda v: v >= 0, "a finite non-negative number")
        )
        self.regularizer = regularizer

    @property
    def effort(self) -> float:
        return self.regularizer.effort

    @property
    def reach(self) -> int | None:
        """That of R."""
        return reach_of(self.regularizer)

    def value(self, x: Tensor) -> Tensor:
        return self.factor * self.regularizer.value(x)

    def formula(self, x: Tensor) -> Tensor:
        return self.factor * self.regularizer.formula(x)

    def grad(self, x: Tensor, *parameters: object) -> Tensor:
        gradient = self.regularizer.grad(x)
        return gradient * self.factor if gradient.requires_grad else gradient.mul_(self.factor)

    def linearize(self, x: Tensor) -> _Combined:
        return _Combined([(self.factor, self.regularizer.linearize(x))])

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        return self.factor * self.regularizer.directional(x, v)

    def bounds(self) -> Curvature:
        return self.factor * self.regularizer.bounds()

    def bounds_for(self, x: Tensor) -> Curvature:
        return self.factor * self.regularizer.bounds_for(x)

    def curvature_near(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As that of a sum."""
        mu, L = _near(self.regularizer, x)
        return self.factor * mu, self.factor * L

    @property
    def averages(self) -> bool:
        return self.regularizer.averages

    def mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        mean = self.regularizer.mean_curvature(x)
        return None if mean is None else self.factor * mean

    def dual_start(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.regularizer.dual_start(x)

    def dual_linearize(self, x: Tensor, dual: tuple[Tensor, ...]) -> _Combined:
        return _Combined([(self.factor, self.regularizer.dual_linearize(x, dual))])

    def dual_update(self, x: Tensor, dual: tuple[Tensor, ...], move: Tensor) -> tuple[Tensor, ...]:
        return self.regularizer.dual_update(x, dual, move)

    def hessian_lipschitz(self) -> Bound:
        return self.factor * self.regularizer.hessian_lipschitz()

    def mixed_lipschitz(self, reach: float = 1.0) -> Bound:
        return self.factor * self.regularizer.mixed_lipschitz(reach)

    def hessian_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        return self._scale(self.regularizer.hessian_change(x, q, radius))

    def mixed_change(self, x: Tensor, q: Tensor, radius: Tensor) -> Tensor | None:
        return self._scale(self.regularizer.mixed_change(x, q, radius))

    def mixed_norm(self, x: Tensor, radius: Tensor) -> Tensor | None:
        return self._scale(self.regularizer.mixed_norm(x, radius))

    def _scale(self, bound: Tensor | None) -> Tensor | None:
        return None if bound is None else self.factor * bound

    def units(self) -> Tensor:
        return self.regularizer.units()

    def scaling(self) -> Tensor:
        return self.regularizer.scaling()

    def spec(self) -> dict[str, object]:
        return {"type": "Scaled", "factor": self.factor, "regularizer": self.regularizer.spec()}

    def filters(self) -> dict[str, Tensor] | None:
        return self.regularizer.filters()

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def positive(name: str, value: float) -> float:
    """``value`` if it is a positive finite number.

    Raises:
        InputError: otherwise, naming the argument.
    """
    return float(check_positive(name, value))
