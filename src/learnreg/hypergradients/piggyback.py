"""Hypergradients of saddle-point lower levels: the linear saddle point of the derivative, solved by
the same iteration.

For min_x max_p <K(theta) x + b(theta), p> + g(x) - f*(p) with solution (x, p) and adjoint (X, Y)
    z = d/dtheta [ <K x + b, Y> + <K X, p> ].
Two ways to get (X, Y): ``Piggyback`` solves to a certified accuracy, then freezes the derivatives
there and solves the linear problem to a residual (the variant whose error is bounded; Bogensperger,
Ehrhardt, Pock, Salehi, Wong, arXiv 2412.06436); ``JointPiggyback`` makes one linear step after each
of a fixed number of primal-dual steps (Griewank and Faure 2003; Bogensperger, Chambolle, Pock, SIAM
J. Math. Data Sci. 4, 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..core.batch import norm
from ..core.certificates import distance_from_residuals
from ..core.cost import Cost
from ..core.errors import InputError
from ..core.grants import STEADY, Grants
from ..core.maps import Ask, Cotangent, Limits, Posed, Pullback, Upper, View
from ..core.params import reparametrized, trainable
from ..core.protocols import Blocks, SplitSaddle
from ..core.ranges import check_flag, check_integer, check_positive, shown, tidy
from ..core.results import Solution
from ..core.status import Status
from ..solvers.pdhg import PDHG, block_steps
from ..solvers.solve import solve_potential
from .adjoint_minres import nearer
from .adjoint_saddle import linearized
from .posed import ToAccuracy
from .saddle_bound import (
    SaddleConstants,
    adjoint_distances,
    conjugate_change,
    constants_bound,
    length,
    omega,
)
from .saddle_nouns import Tied, as_saddle, solved_state, tied_saddle

POLISH = 10
"""Solver steps of a polish, or a quarter of those of the solution. A certified third takes hundreds
where mu is tiny, and the true distance has fallen long before.
"""


@dataclass(frozen=True)
class Piggyback(ToAccuracy):
    """The hypergradient of a saddle point by the two-phase piggyback method, with its error.

    Args:
        solver: the primal-dual method of the linear problem.
        estimate: solve on, to a third of the distance or for ``POLISH`` steps, and recompute z
            there; the change estimates the error, and the new z is returned.
        certify: also compute the proven bound; for smooth problems whose parameters have a known
            sensitivity.
        max_steps: of the linear problem (a step is ``solver.interval`` iterations).
        minres: begin the linear problem with minimal residuals, which take fewer iterations where A
            does not stand in K; the primal-dual method confirms the residual, or goes on.
        group: images differentiated at a time in the reverse-mode call.

    Raises:
        InputError: a value out of range.
    """

    solver: PDHG = PDHG()
    estimate: bool = False
    certify: bool = True
    max_steps: int = 1000
    group: int = 8
    minres: bool = True

    def __post_init__(self) -> None:
        tidy(self)
        check_flag("minres", self.minres)
        if not isinstance(self.solver, PDHG):
            raise InputError(
                "solver",
                given=shown(self.solver),
                expected="a PDHG",
                remedy="For example solver=solvers.PDHG(interval=10).",
            )
        check_flag("estimate", self.estimate)
        check_flag("certify", self.certify)
        check_integer("max_steps", self.max_steps, 1)
        check_integer("group", self.group, 1)

    @property
    def view(self) -> View:
        """Saddle points."""
        return "saddle"

    @property
    def grants(self) -> Grants:
        """Everything: solved to an accuracy, with an error that can be estimated and bounded."""
        return Grants.GRADIENT | Grants.ADAPTIVE | Grants.ESTIMATE | Grants.BOUND | STEADY

    @torch.no_grad()
    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        """See ``core.maps.SolutionMap``; the adjoint is minus the packed (X, Y).

        Raises:
            MissingPropertyError: the lower level is no saddle point.
        """
        estimate = self.estimate if ask.error is None else ask.error == "estimate"
        certify = self.certify if ask.error is None else ask.error == "certify"
        state = solved_state(posed, solution, "Piggyback")
        f = tied_saddle(posed, state, "Piggyback")
        found = self._adjoint(f, upper, state, ask.delta, None if ask.warm is None else -ask.warm)

        theta, size = mixed_saddle(f, state, found.value, self.group), state.shape[0]
        cost = found.cost + Cost(mixed_products=size, linearizations=size)
        certified = self._certified(f, upper, state, solution, found) if certify else None
        correction = point = None
        if estimate:
            first = theta
            theta, found, extra, point = self._polished(
                f, upper, state, solution, ask.delta, found.value
            )
            correction, cost = first - theta, cost + extra
        return Pullback(
            theta,
            -found.value,
            found.error,
            found.status,
            cost,
            certified,
            correction,
            f.to_data(found.value) if ask.data else None,
            point,
        )

    def _adjoint(
        self, f: Tied, upper: Upper, state: Tensor, delta: float | Tensor, start: Tensor | None
    ) -> Solution:
        """(X, Y) packed, its residual as ``error`` and ``gradient``."""
        x, p = f.unpack(state)
        linear = linearized(f, x, p, upper.grad(x[0]))
        first = torch.zeros_like(state) if start is None else start.to(state)
        cost = Cost()
        # why not with A in K: steps in a metric are far ahead there
        if self.minres and linear.majorants() is None:
            first, cost = nearer(linear, delta, first, self.max_steps * self.solver.interval)
        found = solve_potential(linear, delta, first, self.solver, max_steps=self.max_steps)
        return replace(found, cost=found.cost + cost)

    def _polished(
        self,
        f: Tied,
        upper: Upper,
        state: Tensor,
        solution: Solution,
        delta: float | Tensor,
        adjoint: Tensor,
    ) -> tuple[Tensor, Solution, Cost, Tensor]:
        """The derivative nearer to the solution, at a third of the residual, its adjoint, what it
        cost, and the images there.
        """
        limit = max(POLISH, int(solution.steps.max()) // 4)
        better = solve_potential(as_saddle(f), solution.error / 3, state, max_steps=limit)
        assert better.state is not None
        found = self._adjoint(f, upper, better.state, delta / 3, adjoint)
        size = state.shape[0]
        cost = better.cost + found.cost + Cost(mixed_products=size, linearizations=size)
        theta = mixed_saddle(f, better.state, found.value, self.group)
        return theta, found, cost, f.image(better.state)

    def _certified(
        self, f: Tied, upper: Upper, state: Tensor, solution: Solution, found: Solution
    ) -> Tensor | None:
        """The smaller of the two proven bounds per image (b,); None where a constant is missing."""
        kappa, beta = f.energy.regularizer.sensitivity(solution.value)
        if trainable(f.operator.physics):
            # a row of K, with parameters of its own: |<dK x, Y>| has the root of both squares
            of_operator = f.sensitivity(solution.value)
            known = f.data and of_operator.certified
            kappa = math.hypot(kappa, of_operator.value) if known else math.inf
        known = kappa < math.inf and beta < math.inf and upper.smooth.certified
        known = known and not reparametrized(f.energy.regularizer)
        if not (f.smooth and known):
            return None
        slope = upper.grad(solution.value)
        return saddle_error(f, state, solution, found, upper.smooth.value, slope, kappa, beta)


def mixed_saddle(f: Tied, state: Tensor, adjoint: Tensor, group: int) -> Tensor:
    """d/dtheta [ <K x + b, Y> + <K X, p> ], summed over images, as one vector (d,)."""
    regularizer, first = f.energy.regularizer, f.above
    params = trainable(cast(nn.Module, f.energy))
    learns_operator = f.data and bool(trainable(f.operator.physics))
    (x, p), (X, Y) = f.unpack(state), f.unpack(adjoint)
    total = torch.zeros(sum(q.numel() for q in params), dtype=state.dtype, device=state.device)
    for start in range(0, state.shape[0], group):
        part = slice(start, start + group)
        with torch.enable_grad():
            rows, moved = (regularizer.linear(*(t[part] for t in blocks)) for blocks in (x, X))
            scalar = state.new_zeros(())
            for a, b in (*zip(rows, Y[first:], strict=True), *zip(moved, p[first:], strict=True)):
                scalar = scalar + (a * b[part]).sum()
            for row, q in zip(regularizer.offset(x[0][part]) or (), Y[first:], strict=False):
                scalar = scalar if row is None else scalar + (row * q[part]).sum()
            if learns_operator:
                everyone = torch.arange(state.shape[0], device=state.device)
                operator = f.operator.select(everyone[part])
                scalar = scalar + (operator.forward(x[0][part]) * Y[0][part]).sum()
                scalar = scalar + (operator.forward(X[0][part]) * p[0][part]).sum()
            found = torch.autograd.grad(scalar, params, allow_unused=True) if params else ()
        parts = [
            torch.zeros_like(q).reshape(-1) if g is None else g.reshape(-1)
            for g, q in zip(found, params, strict=True)
        ]
        total = total + torch.cat(parts) if parts else total
    return total


def saddle_error(
    f: Tied,
    state: Tensor,
    solution: Solution,
    found: Solution,
    loss_smoothness: float,
    slope: Tensor,
    kappa: float,
    beta: float,
) -> Tensor | None:
    """A proven bound of ||z - grad f|| per image (b,), in float64; None where a constant is
    missing.

    Args:
        solution: with ``gradient``, that of the Lagrangian from the closing evaluation.
        found: the adjoint, with its residual in ``gradient``.
        kappa, beta: sensitivity of K and b to theta.
    """
    moduli, first = f.moduli(), len(f.primal) + f.above
    (x, p), (X, Y) = f.unpack(state.double()), f.unpack(found.value.double())
    (rx, rp), (qx, qp) = f.unpack(solution.gradient.double()), f.unpack(found.gradient.double())
    eps = distance_from_residuals([norm(r) for r in (*rx, *rp)], moduli)
    eps[0] = torch.minimum(eps[0], solution.error)
    wide = f.double()
    moved = adjoint_distances(
        wide.primal, wide.dual, x, p, X, Y, eps, (*qx, *qp), moduli, loss_smoothness
    )
    if moved is None:
        return None
    # only rows of the regularizer depend on theta
    sizes = [length(x), length(p[f.above :]), length(X), length(Y[f.above :])]
    eps_x, eps_p = (_total(part) for part in (eps[: len(f.primal)], eps[first:]))
    d_x, d_y = (_total(part) for part in (moved[: len(f.primal)], moved[first:]))
    size_x, size_p, size_X, size_Y = sizes
    sharp = kappa * omega(size_x, size_p, size_X, size_Y, eps_x, eps_p, d_x, d_y) + beta * d_y
    plain = _constants(f, eps, sizes, (qx, qp), loss_smoothness, slope, kappa)
    bound = sharp if plain is None or beta else torch.minimum(sharp, plain)
    known = torch.isfinite(solution.error) & torch.isfinite(
        found.error
    )  # an image that broke down left no residual
    return torch.where(known, bound, torch.inf)


def _constants(
    f: Tied,
    eps: list[Tensor],
    sizes: list[Tensor],
    residual: tuple[Blocks, Blocks],
    loss_smoothness: float,
    slope: Tensor,
    kappa: float,
) -> Tensor | None:
    """``constants_bound`` with the constants of all blocks together; for problems without a data
    block.
    """
    if f.data:
        return None
    count, moduli = len(f.primal), f.moduli()
    mu_g, mu_f = min(moduli[:count]), min(moduli[count:])
    third = max(g.hessian_lipschitz for g in f.primal)
    delta = distance_from_residuals([norm(r) for r in (*residual[0], *residual[1])], moduli)
    inverse_f = max(phi.hessian_lipschitz / phi.strong for phi in f.dual)
    c = SaddleConstants(
        mu_g,
        mu_f,
        float(torch.linalg.matrix_norm(torch.tensor(f.norms, dtype=torch.float64), 2)),
        third,
        max(conjugate_change(phi) for phi in f.dual),
        third / mu_g**3 * max(g.smooth for g in f.primal),
        inverse_f,
        loss_smoothness,
    )
    return kappa * constants_bound(
        c,
        eps_x=_total(eps[:count]),
        eps_p=_total(eps[count:]),
        delta_x=_total(delta[:count]),
        delta_p=_total(delta[count:]),
        x=sizes[0],
        p=sizes[1],
        X=sizes[2],
        Y=sizes[3],
        slope_x=norm(slope.double()),
    )


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).norm(dim=0)


@dataclass(frozen=True)
class JointPiggyback:
    """A fixed number of primal-dual iterations, each followed by the same iteration of the linear
    problem.

    The baseline without accuracy control: fixed step sizes (``basic``), the derivatives of the
    proximal maps taken at the running iterates, both variables started where the call before ended.
    The lower level *is* the map of so many steps from there, so learners that certify or adapt
    accuracy refuse it. No error is known.

    Args:
        steps: iterations per call.
        balance: t of the step sizes, see ``solvers.pdhg``.
        group: images differentiated at a time in the reverse-mode call.

    Raises:
        InputError: a value out of range.
    """

    steps: int = 100
    balance: float = 1.0
    group: int = 8

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("steps", self.steps, 1)
        check_positive("balance", self.balance)
        check_integer("group", self.group, 1)

    @property
    def view(self) -> View:
        """Saddle points."""
        return "saddle"

    @property
    def grants(self) -> Grants:
        """Gradients, and no accuracy."""
        return Grants.GRADIENT | Grants.DATA

    @torch.no_grad()
    def solve(
        self,
        posed: Posed,
        eps: float | Tensor,
        start: Tensor | None,
        limits: Limits,
        upper: Upper | None = None,
    ) -> Solution:
        """The steps from ``start``: images, or the state (b, 2 n) of an earlier call.

        Returns:
            Solution with ``state`` the packed (x, p) and (X, Y) side by side; ``error`` is the
            certified distance. Without an upper loss (X, Y) stays zero, and ``pull`` makes the
            steps again.

        Raises:
            MissingPropertyError: the lower level is no saddle point.
        """
        first = posed.energy.start(posed.y) if start is None else start
        f = tied_saddle(posed, first, "JointPiggyback")
        if first.dim() == 2:
            z, w = first.tensor_split(2, dim=1)
        else:
            z = f.pack(*f.start(first))
            w = torch.zeros_like(z)
        unasked = Cotangent(f.image(torch.zeros_like(z)))
        return self._finished(f, *self._run(f, z, w, upper or unasked))

    def _finished(self, f: Tied, z: Tensor, w: Tensor) -> Solution:
        """The result of the steps."""
        certificate = f.double().certify(z.double())
        size = z.shape[0]
        status = tuple(
            Status.CONVERGED if ok else Status.NOT_FINITE
            for ok in torch.isfinite(z).all(dim=1).tolist()
        )
        return Solution(
            f.image(z),
            certificate.distance,
            f.bounds().mu.kind,
            status,
            torch.full((size,), self.steps, device=z.device),
            Cost(gradients=(self.steps + 2) * size, hessian_products=(self.steps + 1) * size),
            f"joint piggyback, {self.steps} steps",
            certificate.distance,
            certificate.gradient.to(z.dtype),
            torch.cat([z, w], dim=1),
        )

    def _run(self, f: Tied, z: Tensor, w: Tensor, upper: Upper) -> tuple[Tensor, Tensor]:
        """Both recursions; x, p and the adjoint X, Y with the same tau and sigma."""
        rule = block_steps(cast(SplitSaddle, f), "basic", self.balance)
        tau, sigma = [self.balance * a for a in rule.primal], [a / self.balance for a in rule.dual]
        (x, p), (X, Y) = f.unpack(z), f.unpack(w)
        kx, kX = f.apply(x), f.linear(X)
        ahead, ahead_X = kx, kX
        for _ in range(self.steps):
            slope = upper.grad(x[0])
            inputs = [q + s * a for q, s, a in zip(p, sigma, ahead, strict=True)]
            p = tuple(
                phi.prox_conjugate(a, s) for phi, a, s in zip(f.dual, inputs, sigma, strict=True)
            )
            Y = tuple(
                phi.prox_conjugate_tangent(a, s)(q + s * k)
                for phi, a, s, q, k in zip(f.dual, inputs, sigma, Y, ahead_X, strict=True)
            )
            inputs = [a - t * k for a, t, k in zip(x, tau, f.adjoint(p), strict=True)]
            x = tuple(g.prox(a, t) for g, a, t in zip(f.primal, inputs, tau, strict=True))
            ktY = list(f.adjoint(Y))
            ktY[0] = ktY[0] + slope
            X = tuple(
                g.prox_tangent(a, t)(v - t * k)
                for g, a, t, v, k in zip(f.primal, inputs, tau, X, ktY, strict=True)
            )
            before, before_X, kx, kX = kx, kX, f.apply(x), f.linear(X)
            ahead = tuple(2 * a - b for a, b in zip(kx, before, strict=True))
            ahead_X = tuple(2 * a - b for a, b in zip(kX, before_X, strict=True))
        return f.pack(x, p), f.pack(X, Y)

    @torch.no_grad()
    def pull(self, posed: Posed, solution: Solution, upper: Upper, ask: Ask) -> Pullback:
        """The derivative that the steps have arrived at; ``ask`` only says whether to
        differentiate in the data.

        A cotangent that ``solve`` did not know (autograd's) is taken along the same steps, from
        the data.
        """
        state, cost = solved_state(posed, solution, "JointPiggyback"), Cost()
        if isinstance(upper, Cotangent):
            again = self.solve(posed, 1.0, None, Limits(), upper)
            assert again.state is not None
            state, cost = again.state, again.cost
        z, w = state.tensor_split(2, dim=1)
        f, size = tied_saddle(posed, z, "JointPiggyback"), z.shape[0]
        return Pullback(
            mixed_saddle(f, z, w, self.group),
            None,  # the adjoint goes on in the state
            torch.full((size,), float("nan"), dtype=torch.float64, device=z.device),
            solution.status,
            cost + Cost(mixed_products=size),
            data=f.to_data(w) if ask.data else None,
        )
