"""Unrolled hypergradients: the derivative of a fixed number of lower-level iterations, by reverse
mode on checkpoints.

Recursion, k = 0, ..., K - 1, with x_{-1} = x_0:
    z_k = x_k + beta (x_k - x_{k-1}),   x_{k+1} = z_k - tau grad h(z_k; theta).
Backwards, with l_k the derivative of the loss with respect to x_k, l_K = grad g(x_K):
    m_k = l_{k+1} - tau H(z_k) l_{k+1},   l_k = (1 + beta) m_k - beta m_{k+1}   (m_K = 0),
    dg/dtheta = -tau sum_k J(z_k)^T l_{k+1}.
Within bounds both x_{k+1} and z_k are projected, and backwards l_{k+1} and m_k lose the pixels that
the projection has put at a bound.
Reverse mode through an optimizer: Domke, AISTATS 2012; Maclaurin, Duvenaud, Adams, ICML 2015, arXiv
1502.03492. Checkpoints: Griewank, Optimization Methods and Software 1, 1992 (here the plain
two-level schedule).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import dot, expand, norm
from ..core.bounds import constants_of
from ..core.certificates import distance_from_gradient
from ..core.constraints import domain_of, masked
from ..core.cost import Cost
from ..core.errors import MissingPropertyError
from ..core.grants import STEADY, Grants
from ..core.maps import Ask, Limits, Posed, Pullback, Upper, View
from ..core.params import trainable
from ..core.protocols import Potential
from ..core.ranges import check_choice, check_integer, check_positive, tidy
from ..core.results import Solution
from ..core.status import Status
from ..solvers.iterate import require_strong_convexity, rounding_of
from .implicit import MixedLevel, mixed_product, smooth_level, smooth_potential
from .posed import solved


@dataclass(frozen=True)
class Unrolled:
    """The derivative of ``steps`` iterations of a lower-level method, from the data or from a
    solution.

    - ``start="data"``: x_0 = A^T y. The lower level *is* the map of K steps: the reconstruction is
      x_K, whatever eps asks for, and z is the gradient of the mean loss of x_K. This is the
      baseline of learning by unrolling. Learners that certify a decrease or adapt their accuracy
      refuse it (it does not grant ADAPTIVE). What was trained is the reconstruction by K steps,
      ``lr.Reconstructor(energy, hypergradient=Unrolled(K))``; a solve to eps is another one. The
      dependence of A^T y on a learned operator and on y is part of the derivative.
    - ``start="solution"``: x_0 = x~, held constant: truncated unrolling through the last K
      iterations (Shaban, Cheng, Hatch, Boots, AISTATS 2019, arXiv 1810.10667), for every learner.
      The reconstruction is the certified x~; z tends to the implicit hypergradient as K grows.

    The steps are those of Nesterov's method with constant momentum, tau = 1 / L and beta = (1 -
    sqrt(mu tau)) / (1 + sqrt(mu tau)) (``agd``; Nesterov, Lectures on Convex Optimization, scheme
    2.2.22), or gradient steps with tau = 2 / (L + mu) and beta = 0 (``gd``). tau and beta are held
    constant in the differentiation, although L and mu may depend on theta: z is the derivative at
    frozen step sizes. With ``step`` given it is the exact derivative of the loss of K steps (for
    ``agd`` as long as mu does not depend on theta). Learners that search along lines want it with
    ``start="data"``: after few steps the frozen derivative is not the slope of the loss that they
    see.

    Nothing is differentiated by autograd but grad h in theta. Only the iterates at the starts of
    segments are kept, and those inside a segment are computed again when their turn comes: about 3
    sqrt(K) images per image of the batch (2 sqrt(K) for ``gd``) instead of K, for less than K
    further gradients.

    The error is neither estimated nor bounded. With ``start="solution"`` the descent test of MAID
    and of its fixed-accuracy baseline is therefore void: a direction that happens to be wrong is
    noticed by the line search only. The decrease of every accepted step is certified as ever,
    because it rests on the bracket of the loss.

    Args:
        steps: K, at least 1.
        start: see above.
        method: ``agd`` or ``gd``.
        step: tau in the place of the one above; steps that are too long diverge, which the status
            shows.
        segment: steps between two iterates that are kept; ceil(sqrt(K)) when None. It changes cost
            and memory only.
        group: images differentiated at a time in the reverse-mode calls.

    Raises:
        InputError: a value out of range.
    """

    steps: int = 20
    start: Literal["data", "solution"] = "data"
    method: Literal["gd", "agd"] = "agd"
    step: float | None = None
    segment: int | None = None
    group: int = 4

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("steps", self.steps, 1)
        check_integer("group", self.group, 1)
        check_integer("segment", self.segment, 1, optional=True)
        check_positive("step", self.step, optional=True)
        check_choice("start", self.start, ("data", "solution"))
        check_choice("method", self.method, ("gd", "agd"))

    @property
    def view(self) -> View:
        """Differentiable lower levels."""
        return "smooth"

    @property
    def grants(self) -> Grants:
        """ADAPTIVE where the reconstruction is the certified x~, and not x_K."""
        adaptive = Grants.ADAPTIVE if self.start == "solution" else Grants.NONE
        return Grants.GRADIENT | STEADY | adaptive

    @torch.no_grad()
    def solve(
        self,
        posed: Posed,
        eps: float | Tensor,
        start: Tensor | None,
        limits: Limits,
        upper: Upper | None = None,
    ) -> Solution:
        """x~ to the distance eps, or x_K from A^T y and how far it is from the minimizer.

        Neither eps nor a warm start may change the map that is differentiated, so that
        ``start="data"`` has no use for them.

        Returns:
            Solution; for x_K the status is CONVERGED for every finite image, since steps are all
            that was asked for, else NOT_FINITE (with the start as value).

        Raises:
            MissingPropertyError: the lower level is a saddle point, or not strongly convex, or L is
                unknown.
        """
        smooth_level(posed.energy, "Unrolled")
        if self.start == "solution":
            return solved(posed, eps, start, limits)
        first = posed.energy.start(posed.y)
        return self._iterated(smooth_potential(posed, first), first)

    def _iterated(self, potential: Potential, x0: Tensor) -> Solution:
        """x_K from x0."""
        recursion = self._recursion(potential)
        x0 = recursion.domain.project(x0)
        at = _At(x0, x0)
        for _ in range(self.steps):
            at = recursion.advance(at)

        closing = recursion.close(at.x)
        finite = torch.isfinite(norm(closing))
        size = torch.where(finite, norm(closing), torch.inf)
        keep, mu = expand(finite, x0), potential.bounds().mu
        return Solution(
            torch.where(keep, at.x, x0),
            self._distance(potential, at.x, size),
            mu.kind,
            _statuses(finite),
            torch.full_like(finite, self.steps, dtype=torch.int64),
            recursion.cost,
            f"unrolled {self.method}, {self.steps} steps",
            size,
            torch.where(keep, closing, 0.0).to(x0.dtype),
        )

    @torch.no_grad()
    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        """See ``core.maps.SolutionMap``; there is no linear system, and no error is known.

        ``start="data"`` repeats the forward pass: the iterates on the way are needed, and those of
        the last segment serve the backward pass at once. The adjoint is tau sum_k l_{k+1}, which
        tends to H^-1 grad g.

        Raises:
            MissingPropertyError: the lower level is not strongly convex, or L is unknown.
        """
        level = smooth_level(posed.energy, "Unrolled")
        from_data = self.start == "data"
        x0 = level.start(posed.y) if from_data else solution.value.detach()
        potential = smooth_potential(posed, x0)
        recursion = self._recursion(potential)
        x0 = recursion.domain.project(x0)

        end, points = self._forward(recursion, x0)
        back = _Backward(self, recursion, level, posed, ask.data, from_data)
        theta, q, to_data, first = back.run(points, upper.grad(end))
        if first is not None:  # x_0 is made from the data, by an operator that may be learned
            first = masked(first, recursion.domain.inside(x0))
            more_theta, more_data = _through_start(posed, potential, first)
            theta = theta + more_theta
            to_data = None if to_data is None else to_data + more_data
        unknown = torch.full((x0.shape[0],), torch.nan, dtype=torch.float64, device=x0.device)
        return Pullback(
            theta,
            q,
            unknown,
            _statuses(torch.isfinite(norm(q))),
            recursion.cost,
            data=to_data,
        )

    @staticmethod
    def _distance(potential: Potential, x: Tensor, size: Tensor) -> Tensor:
        """The certified distance (b,) of x from the norm of its closing gradient in float64."""
        wide = potential.double()
        allowed = size + rounding_of(wide, x.double())
        distance = distance_from_gradient(allowed, constants_of(potential).mu)
        return distance.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _recursion(self, potential: Potential) -> _Recursion:
        require_strong_convexity(potential)
        curvature = potential.bounds()
        mu, L = curvature.mu.value, curvature.L.value
        if self.method == "gd":
            return _Recursion(potential, self.step or 2 / (L + mu), 0.0)
        tau = self.step or 1 / L
        root = math.sqrt(min(mu * tau, 1.0))  # a step beyond 1 / mu leaves nothing to accelerate
        return _Recursion(potential, tau, (1 - root) / (1 + root))

    def _forward(self, recursion: _Recursion, x0: Tensor) -> tuple[Tensor, Iterator[_Point]]:
        """x_K, and z_{K-1}, ..., z_0 with all but the last segment yet to be computed again."""
        length = self.segment or math.ceil(math.sqrt(self.steps))
        at, kept = _At(x0, x0), []
        whole, rest = divmod(
            self.steps - 1, length
        )  # at least one step remains for the last segment
        for _ in range(whole):
            kept.append(at)
            for _ in range(length):
                at = recursion.advance(at)
        last = recursion.points(at, rest + 1)
        end = recursion.step(last[-1].z)
        last[-1] = _Point(last[-1].z, recursion.domain.inside(end))
        return end, _backwards(recursion, kept, length, last, at)


class _Backward:
    """The reverse pass of ``unrolling`` from the slope at x_K.

    Args:
        of: steps and groups.
        recursion: made the forward pass.
        data: also differentiate with respect to the measurements.
        to_start: also hand over l_0.
    """

    def __init__(
        self,
        of: Unrolled,
        recursion: _Recursion,
        level: MixedLevel,
        posed: Posed,
        data: bool,
        to_start: bool,
    ) -> None:
        self.of, self.recursion, self.level, self.posed = of, recursion, level, posed
        self.data, self.to_start = data, to_start and (data or learns_start(level))

    def run(
        self, points: Iterator[_Point], slope: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The derivative (d,), tau sum_k l_{k+1} (b, ...), that in the data, and l_0."""
        tau, beta, size = self.recursion.tau, self.recursion.beta, slope.shape[0]
        to_theta: Tensor | None = None
        to_data: Tensor | None = None
        total, later = torch.zeros_like(slope), torch.zeros_like(slope)
        for k, (z, kept) in zip(reversed(range(self.of.steps)), points, strict=True):
            slope = masked(slope, kept)
            mixed = mixed_product(self.level, z, self.posed.y, slope, self.of.group)
            self.recursion.cost += Cost(mixed_products=size)
            to_theta = mixed if to_theta is None else to_theta + mixed
            if self.data:
                part = tau * self.level.data_adjoint(z, self.posed.y, slope)
                to_data = part if to_data is None else to_data + part
            total = total + slope
            if k == 0 and not self.to_start:
                break
            back = slope - tau * self.recursion.curved(z, slope)
            back = masked(back, self.recursion.domain.inside(z)) if k else back
            # z_0 is x_0 itself, for x_{-1} = x_0
            slope, later = (1 + beta if k else 1.0) * back - beta * later, back
        assert to_theta is not None
        return -tau * to_theta, tau * total, to_data, slope if self.to_start else None


class _OfData(Protocol):
    """Potentials that know their operator and real measurements."""

    @property
    def operator(self) -> _Operator: ...

    @property
    def y(self) -> Tensor: ...


class _Operator(Protocol):
    """A and A^T of a batch."""

    @property
    def is_identity(self) -> bool: ...

    def forward(self, x: Tensor) -> Tensor: ...

    def adjoint(self, y: Tensor) -> Tensor: ...


def learns_start(level: MixedLevel) -> bool:
    """Whether A^T y depends on theta."""
    physics = dict(level.named_children()).get("physics") if isinstance(level, nn.Module) else None
    return physics is not None and bool(trainable(physics))


def _through_start(posed: Posed, potential: Potential, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The derivatives of <slope, x_0> in theta (d,) and in the real measurements, with x_0 = t A^T
    y and the t that fits the data best.

    Raises:
        MissingPropertyError: a lower level of another kind, whose start nobody can differentiate.
    """
    if not offers(potential, _OfData):
        raise MissingPropertyError(
            "hypergradient",
            given=f"the derivative of the start of a {type(posed.energy).__name__} in its data",
            expected="an Energy, whose start is A^T y",
            remedy="Use Unrolled(start='solution') or Implicit().",
        )
    params = trainable(posed.energy) if isinstance(posed.energy, nn.Module) else []
    with torch.enable_grad():
        y = potential.y.detach().requires_grad_()
        image = y if potential.operator.is_identity else potential.operator.adjoint(y)
        if not potential.operator.is_identity:
            again = potential.operator.forward(image)
            t = dot(image, image) / dot(again, again)
            image = image * expand(torch.where(torch.isfinite(t), t, 1.0), image)
        found = torch.autograd.grad((slope * image).sum(), [y, *params], allow_unused=True)
    to_theta = [
        torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1)
        for g, p in zip(found[1:], params, strict=True)
    ]
    zero = slope.new_zeros(0)
    return torch.cat(to_theta) if to_theta else zero, found[0]


class _At(NamedTuple):
    """x_k and x_{k-1}."""

    x: Tensor
    before: Tensor


class _Point(NamedTuple):
    """z_k, and the pixels of x_{k+1} strictly between their bounds, None for all."""

    z: Tensor
    kept: Tensor | None


class _Recursion:
    """The steps of the method, each counted."""

    def __init__(self, potential: Potential, tau: float, beta: float) -> None:
        self.potential, self.tau, self.beta = potential, tau, beta
        self.domain = domain_of(potential)
        self.cost = Cost()

    def step(self, z: Tensor) -> Tensor:
        """x_{k+1} from z_k."""
        self.cost += Cost(gradients=z.shape[0])
        return self.domain.project(z - self.tau * self.potential.grad(z))

    def ahead(self, at: _At) -> Tensor:
        """z_k."""
        if not self.beta:
            return at.x
        return self.domain.project(at.x + self.beta * (at.x - at.before))

    def advance(self, at: _At, z: Tensor | None = None) -> _At:
        """x_{k+1} and x_k; ``z`` is z_k if that is known."""
        x = self.step(self.ahead(at) if z is None else z)
        return _At(
            x, at.x if self.beta else x
        )  # without momentum nobody asks for x_k, so it need not be kept

    def points(self, at: _At, count: int, after: _At | None = None) -> list[_Point]:
        """z_k, ..., z_{k + count - 1} from x_k and x_{k-1}; the step after the last is not made,
        and leads to ``after`` where that is known.
        """
        points = []
        for left in reversed(range(count)):
            z = self.ahead(at)
            at = self.advance(at, z) if left else after or at
            points.append(_Point(z, self.domain.inside(at.x)))
        return points

    def curved(self, z: Tensor, v: Tensor) -> Tensor:
        """H(z) v."""
        self.cost += Cost(linearizations=z.shape[0], hessian_products=z.shape[0])
        return self.potential.linearize(z)(v)

    def close(self, x: Tensor) -> Tensor:
        """The (projected) gradient in float64, which certifies the distance of x."""
        self.cost += Cost(gradients=x.shape[0])
        wide = self.potential.double()
        return domain_of(wide).slope(x.double(), wide.grad(x.double()))


def _backwards(
    recursion: _Recursion, kept: list[_At], length: int, points: list[_Point], after: _At
) -> Iterator[_Point]:
    """z_{K-1}, ..., z_0: first ``points``, those of the last segment, then segment by segment what
    was not kept.

    Both lists are emptied on the way, so that nothing is held for longer than it is needed.

    Args:
        after: where the last segment starts.
    """
    while True:
        while points:
            yield points.pop()
        if not kept:
            return
        start = kept.pop()
        points, after = recursion.points(start, length, after), start


def _statuses(finite: Tensor) -> tuple[Status, ...]:
    """(b,) -> one Status per image: steps are all that was asked for, so a finite image has what it
    should.
    """
    return tuple(Status.CONVERGED if f else Status.NOT_FINITE for f in finite.tolist())
