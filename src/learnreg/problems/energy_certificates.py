"""What certified hypergradients need of an energy: how its derivatives change in a ball around x~,
with theta in the regularizer, in the operator, in the weights or in the data.

Notation for one image: A with a >= ||A||, u = A x, psi'(u) and psi''(u) (diagonal) the derivatives
of D, B_v : dtheta -> dA v with ||B_v|| <= beta ||v|| (less for flat images: ``Moves``), J the mixed
derivative d/dtheta grad_x h, q any image; suprema over ||x' - x|| <= eps, which moves u by at most
a eps, and every entry of it by at most a eps as well. M >= psi'' on the ball, c >= |psi''(u') -
psi''(u)| entrywise, t a Lipschitz constant of psi'', T(q) = min( ||c A q||, a eps max |t A q| ) >=
||(psi''(u') - psi''(u)) A q||.

Hessian:  ||(H(x') - H(x)) q||  <=  a T(q), zero for a quadratic D.

Theta in A: J^T w = B_w^T psi'(u) + B_x^T (psi''(u) A w), so

    ||J(x')||                 <=  beta ( ||psi'(u)|| + M a eps + M a (||x|| + eps) )
    ||(J(x') - J(x))^T q||    <=  beta ( M a eps ||q|| + eps ||psi''_sup A q|| + ||x|| T(q) ).

Theta in weights omega = W(theta) of 1/2 <omega r, r>, r = A x - y: J = A^T diag(r) DW, so

    ||J(x')||  <=  a ( ||diag(r) DW|| + a eps row ),    ||(J(x') - J(x))^T q||  <=  a eps
    ||diag(A q) DW||,

with row the largest norm of a row of DW. Theta in y: J = -A^T diag(omega) Dy, the same everywhere.
Blocks of theta that share nothing: J = [J_1, J_2, ...], so the square of each bound is the sum of
theirs. For sigma and L2 this is the page of constants with M = 1 / sigma^2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import expand, norm
from ..core.bounds import Bound
from ..core.offers import HessianLipschitz, MixedLipschitz, certificate_of
from ..core.params import reparametrized, trainable
from ..operators.physics import TiedMap
from ..operators.sensitivity import Moves, jacobian_of, moves_of
from .data_functions import DataFunction, OnBall, Quadratic
from .fidelity import WeightedL2


@dataclass(frozen=True, eq=False)
class Parts:
    """What an energy is made of, tied to its data.

    Attributes:
        physics, regularizer, fidelity: of which the trainable parameters are theta.
        operator: A of the images.
        data: D(., y).
        like: images (b, c, ...), for their shape.
    """

    physics: nn.Module
    regularizer: nn.Module
    fidelity: object
    operator: TiedMap
    data: DataFunction
    like: Tensor

    def certificate(self, name: str, *args: Tensor) -> Tensor | None:
        """``hessian_change`` (x, q, eps), ``mixed_change`` (x, q, eps) or ``mixed_norm`` (x, eps)
        per image (b,), float64; None where a constant is not known.
        """
        of_regularizer = self._of_regularizer(name, args)
        if of_regularizer is None:
            return None
        if name == "hessian_change":
            return self._hessian_change(of_regularizer, *args)
        blocks = self._mixed_blocks(name, args)
        if blocks is None:
            return None
        return torch.stack([of_regularizer, *blocks]).norm(dim=0) if blocks else of_regularizer

    def _of_regularizer(self, name: str, args: tuple[Tensor, ...]) -> Tensor | None:
        if name != "hessian_change" and not trainable(self.regularizer):
            return torch.zeros_like(args[-1], dtype=torch.float64)
        method = certificate_of(self.regularizer, name)
        found = None if method is None else method(*args)
        return None if found is None else found.double()

    def _hessian_change(
        self, of_regularizer: Tensor, x: Tensor, q: Tensor, eps: Tensor
    ) -> Tensor | None:
        if self.data.quadratic:
            return of_regularizer
        at = self._at(x, eps)
        return None if at is None else of_regularizer + at.norm * at.moved(q)

    def _mixed_blocks(self, name: str, args: tuple[Tensor, ...]) -> list[Tensor] | None:
        """One bound (b,) for each place where theta is, the regularizer left out; None where one
        is not known.
        """
        in_operator = bool(trainable(self.physics))
        in_data = isinstance(self.fidelity, nn.Module) and bool(trainable(self.fidelity))
        if not (in_operator or in_data):
            return []
        x, eps = args[0], args[-1]
        at = self._at(x, eps)
        if at is None:
            return None
        blocks = []
        if in_operator:
            moves = self._moves()
            if not moves.beta.certified:
                return None
            norm_asked = name == "mixed_norm"
            own = at.operator_norm(moves) if norm_asked else at.operator_change(moves, args[1])
            blocks.append(own)
        if in_data:
            learned = self._learned_data()
            if learned is None:
                return None
            of_data = (
                learned.mixed_norm(at) if name == "mixed_norm" else learned.change(at, args[1])
            )
            blocks.append(of_data)
        return blocks

    def _moves(self) -> Moves:
        """The sensitivity of A to the theta in it."""
        return moves_of(self.operator, self.like)

    def _at(self, x: Tensor, eps: Tensor) -> AtPoint | None:
        """The data term in the ball around x, in float64; None where a or psi'' is not proven."""
        spectrum = self.operator.spectrum(self.like)
        if not spectrum.L_kind.certifies:
            return None
        x = x.detach().double()
        operator, data = self.operator.double(), self.data.double()
        with torch.no_grad():
            a = operator.forward(x)
            size = spectrum.L.to(a.device).sqrt().expand(x.shape[0])
            radius = eps.to(a)
            ball = data.on_ball(a, expand(size * radius, a))
            if ball is None:
                return None
            return AtPoint(operator, data, x, a, data.grad(a).detach(), size, radius, ball)

    def _learned_data(self) -> LearnedData | None:
        """Jacobians of weights and measurements in the theta of the data term."""
        assert isinstance(self.fidelity, nn.Module)
        if not isinstance(self.data, Quadratic):
            return None
        parameters = trainable(self.fidelity)
        # why by identity: a subclass, or torch's parametrize, may make weights of the parameter
        weights = self.fidelity.weights if type(self.fidelity) is WeightedL2 else None
        plain = len(parameters) == 1 and parameters[0] is weights
        return learned_data(self.data, parameters, parameters[0] if plain else None)

    # --- constants for all x ----------------------------------------------------------------------
    def hessian_lipschitz(self) -> Bound:
        """Lipschitz constant of the Hessian in x; known for quadratic data terms."""
        r = self.regularizer
        if self.data.quadratic and offers(r, HessianLipschitz):
            return r.hessian_lipschitz() or Bound.unknown()
        return Bound.unknown()

    def mixed_lipschitz(self, reach: float) -> Bound:
        """Lipschitz constant of the mixed derivative on images with |x| <= reach, the largest of
        all images; known for quadratic data terms.
        """
        r, own = self.regularizer, Bound.exact(0.0)
        if trainable(r):
            found = None
            if offers(r, MixedLipschitz) and not reparametrized(r):
                found = r.mixed_lipschitz(reach)
            own = found or Bound.unknown()
        in_data = isinstance(self.fidelity, nn.Module) and bool(trainable(self.fidelity))
        blocks = [own]
        if trainable(self.physics) or in_data:
            zero = torch.zeros(self.like.shape[0], dtype=torch.float64)
            at = self._at(torch.zeros_like(self.like), zero) if self.data.quadratic else None
            if at is None:
                return Bound.unknown()
            if trainable(self.physics):
                beta = self._moves().beta
                size = 2 * float((at.norm * at.largest).max())
                blocks.append(Bound(beta.value * size, min(beta.kind, own.kind)))
            if in_data:
                learned = self._learned_data()
                if learned is None:
                    return Bound.unknown()
                blocks.append(Bound.proven(float((at.norm**2).max()) * learned.row))
        value = sum(b.value**2 for b in blocks) ** 0.5
        return Bound(value, min(b.kind for b in blocks)) if len(blocks) > 1 else own


@dataclass(frozen=True, eq=False)
class AtPoint:
    """The data term at x~ and in the ball of radius eps around it, in float64.

    Attributes:
        operator, data: A, and D(., y).
        x, a: (b, c, ...) and A x.
        slope: psi'(A x).
        norm: a >= ||A||, (b,).
        radius: eps, (b,).
        ball: psi'' on the ball.
    """

    operator: TiedMap
    data: DataFunction
    x: Tensor
    a: Tensor
    slope: Tensor
    norm: Tensor
    radius: Tensor
    ball: OnBall

    @property
    def largest(self) -> Tensor:
        """M, (b,)."""
        return self.ball.second.flatten(1).amax(dim=1)

    def seen(self, q: Tensor) -> Tensor:
        """A q."""
        with torch.no_grad():
            return self.operator.forward(q.detach().double())

    def moved(self, q: Tensor) -> Tensor:
        """T(q), (b,)."""
        aq = self.seen(q)
        steep = self.ball.third * aq.abs()
        steepest = torch.where(aq == 0, 0.0, steep).flatten(1).amax(dim=1)
        return torch.minimum(norm(self.ball.change * aq), self.norm * self.radius * steepest)

    def operator_norm(self, moves: Moves) -> Tensor:
        """||J(x')|| for theta in A."""
        M, a, eps, beta = self.largest, self.norm, self.radius, moves.beta.value
        of_slope = beta * (norm(self.slope) + M * a * eps)
        return of_slope + M * a * (moves.of(self.x) + beta * eps)

    def operator_change(self, moves: Moves, q: Tensor) -> Tensor:
        """||(J(x') - J(x))^T q|| for theta in A."""
        M, a, eps, beta = self.largest, self.norm, self.radius, moves.beta.value
        curved = norm(self.ball.second * self.seen(q))
        return M * a * eps * moves.of(q) + beta * eps * curved + moves.of(self.x) * self.moved(q)


@dataclass(frozen=True, eq=False)
class LearnedData:
    """How a quadratic data term depends on the theta in it.

    Attributes:
        weights: of the shape that broadcasts to a, for its groups; None where they are fixed.
        of_weights: DW, (entries of the weights, d), or None for the identity.
        of_data: Dy, (entries of y, d); None where y is fixed.
    """

    weights: Tensor | None
    of_weights: Tensor | None
    of_data: Tensor | None
    images: int

    @property
    def row(self) -> float:
        """The largest norm of a row of DW; zero where the weights are fixed."""
        if self.weights is None:
            return 0.0
        return 1.0 if self.of_weights is None else float(self.of_weights.norm(dim=1).max())

    def stretched(self, r: Tensor) -> Tensor:
        """||diag(r) DW|| per image (b,), r like a."""
        assert self.weights is not None
        shape = self.weights.shape
        groups = _summed_like(r.square(), shape).sqrt()  # what shares a weight, (b, ...)
        flat = groups.flatten(1)
        if self.of_weights is None:
            return flat.amax(dim=1)
        per = self.of_weights.view(shape[0], -1, self.of_weights.shape[1])
        out = []
        for i in range(r.shape[0]):
            own = per[min(i, shape[0] - 1)]
            out.append(_largest_singular_value(flat[i][:, None] * own))
        return torch.stack(out)

    def mixed_norm(self, at: AtPoint) -> Tensor:
        """||J(x')||, (b,); weights and data may share parameters, so both are added."""
        total = torch.zeros_like(at.norm)
        if self.weights is not None:
            assert isinstance(at.data, Quadratic)
            r = at.a - at.data.y
            total = total + at.norm * (self.stretched(r) + at.norm * at.radius * self.row)
        if self.of_data is not None:
            per = self.of_data.view(self.images, -1, self.of_data.shape[1])
            sizes = torch.stack([_largest_singular_value(own) for own in per])
            total = total + at.norm * at.largest * sizes
        return total

    def change(self, at: AtPoint, q: Tensor) -> Tensor:
        """||(J(x') - J(x))^T q||, (b,)."""
        if self.weights is None:
            return torch.zeros_like(at.norm)
        return at.norm * at.radius * self.stretched(at.seen(q))


DENSE = 512
"""Numbers of theta up to which singular values are computed."""


def _largest_singular_value(matrix: Tensor) -> Tensor:
    """An upper bound of ||M||: exact where every row has one entry at most, or for few columns;
    else the root of the largest row sum times the largest column sum of |M| (Schur).
    """
    if bool(((matrix != 0).sum(dim=1) <= 1).all()):
        return matrix.square().sum(dim=0).amax().sqrt()
    if matrix.shape[1] <= DENSE:
        return torch.linalg.matrix_norm(matrix, 2) * (1 + 1e-9)
    size = matrix.abs()
    return (size.sum(dim=0).amax() * size.sum(dim=1).amax()).sqrt()


def _summed_like(t: Tensor, shape: torch.Size) -> Tensor:
    """t (b, ...) summed over the axes along which something of that shape is broadcast; the images
    stay apart.
    """
    whole = (*[1] * (t.dim() - len(shape)), *shape)
    axes = [i for i in range(1, t.dim()) if whole[i] == 1 and t.shape[i] != 1]
    return t.sum(dim=axes, keepdim=True) if axes else t


def learned_data(
    data: Quadratic, parameters: list[Tensor], identity: Tensor | None
) -> LearnedData | None:
    """The Jacobians of what a quadratic data term was tied to; None where they are too large, or
    nobody sees how theta gets in.

    Args:
        data: whose ``weight`` and ``y`` still hang on the parameters.
        identity: the parameter that is the weights themselves, if one is.
    """
    weight, y = data.weight, data.y
    weights = of_weights = of_data = None
    if isinstance(weight, Tensor) and weight.requires_grad:
        weights = weight.detach().double()
        if identity is None:
            of_weights = jacobian_of(weight, parameters)
            if of_weights is None:
                return None
    if y.requires_grad:
        of_data = jacobian_of(y, parameters)
        if of_data is None:
            return None
    if weights is None and of_data is None:
        return None
    return LearnedData(weights, of_weights, of_data, y.shape[0])
