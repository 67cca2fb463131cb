"""Saddle-point lower levels: min_x max_p <K(theta) x + b(theta), p> + g(x) - f*(p), batched over
images.

The primal variable is x = (u, v_1, ...): the image u (b, c, h, w) and what the regularizer adds; p
has one block per row of K. Every parameter enters through K and b, so that the hypergradient needs
no derivative of g or f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from ..convex import Box, Boxed, Convex, Zero
from ..core.batch import check_images, expand, norm
from ..core.bounds import Bound, Curvature
from ..core.certificates import distance_from_gap as by_mu
from ..core.certificates import distance_from_growth, distance_from_residuals
from ..core.constraints import Interval, domain_of
from ..core.cost import Cost
from ..core.errors import InputError, MissingPropertyError
from ..core.guards import check_parts
from ..core.measured import Measured, Native, measured
from ..core.offers import effort_of
from ..core.params import trainable
from ..core.protocols import Blocks
from ..core.ranges import absent, check_number
from ..operators.physics import LinearMap, TiedMap
from ..operators.sensitivity import moves_of
from .fidelity import L2, SaddleDataTerm, WeightedL2, as_data_term
from .noise_level import PerImage
from .per_image import in_double, of_images, started
from .saddle_regularizer import SaddleRegularizerLike
from .tied import Tied

THEOREMS = ("gap", "residual", "kkt", "growth")
"""Names of the certificates, in the order of their codes."""

NEEDED = ("auxiliary", "primal", "dual", "dual_start", "linear", "adjoint", "offset", "norms")


class SaddleEnergy(Tied[SaddleRegularizerLike, SaddleDataTerm]):
    """h(u; theta, y) = D(Au, y) + tikhonov/2 ||u||^2 + R(u; theta) with R the partial optimum of a
    saddle function.

    R need not be differentiable. The data term is a function of the image where its prox is known
    in closed form (denoising, masks), and otherwise a further dual block with the operator A.

    Args:
        physics: a linear ``deepinv`` physics A.
        regularizer: a saddle regularizer such as ``learnreg.regularizers.ExactTV()``.
        fidelity: D, ``L2()`` when None; ``L1`` and ``KL`` need no derivative either.
        tikhonov: weight >= 0 of the squared norm that makes the energy strongly convex where D does
            not.
        constraint: bounds of the pixels of u, as in ``Energy``.

    Raises:
        InputError: not a physics, a regularizer that lacks a method (the message names it), or a
            constraint that is none.
    """

    saddle: ClassVar[bool] = True

    tikhonov: float

    def __init__(
        self,
        physics: nn.Module,
        regularizer: nn.Module,
        fidelity: object | None = None,
        tikhonov: float = 0.0,
        constraint: object | None = None,
    ) -> None:
        check_parts(physics, regularizer, fidelity)
        missing = absent(regularizer, NEEDED)
        if missing:
            raise InputError(
                "regularizer",
                given=f"{type(regularizer).__name__} without {', '.join(missing)}",
                expected="a saddle regularizer such as ExactTV, TGV or LearnedTV",
                remedy="Differentiable regularizers belong to Energy.",
            )
        tikhonov = check_number("tikhonov", tikhonov, lambda v: v >= 0, "a number >= 0")
        data_term = as_data_term(fidelity)
        if not isinstance(data_term, SaddleDataTerm):
            raise InputError(
                "fidelity",
                given=f"{type(data_term).__name__}, whose proximal map is not known",
                expected="a data term of saddle points: L2, WeightedL2, Huber, L1, KL, "
                "PoissonGaussian",
                remedy="Use a differentiable Energy with it.",
            )
        super().__init__(physics, regularizer, data_term, constraint)
        if self.learns_fidelity:
            raise MissingPropertyError(
                "fidelity",
                given=f"{type(data_term).__name__} with parameters to learn, in a SaddleEnergy",
                expected="parameters in K: of the regularizer or of the physics",
                remedy="Fix them with requires_grad_(False), or use a differentiable Energy.",
            )
        self.tikhonov = float(tikhonov)

    def _like(
        self,
        regularizer: SaddleRegularizerLike,
        operator: LinearMap,
        fidelity: SaddleDataTerm,
    ) -> Self:
        clone = super()._like(regularizer, operator, fidelity)
        clone.tikhonov = self.tikhonov
        return clone

    def at(self, y: Native | Measured, x: Tensor | None = None) -> SaddleAt:
        """The saddle functions of the measurements y (b, ...), one per image.

        Args:
            x: images of the shape to be reconstructed, or a packed state (b, n) of such; A^T y when
                None.

        Raises:
            InputError: y is not a finite floating-point batch.
        """
        for tensor in measured(y).tensors:
            check_images(torch.view_as_real(tensor) if tensor.is_complex() else tensor, "y")
        before = self.operator.cost
        operator, data, back = self.tie(y, None)
        u = back if x is None or x.dim() == 2 else x
        term = self.data_term(y)
        if isinstance(term, PerImage):  # so that parts of the batch know their own numbers
            term = term.of(data)
        tied = _tie(self, operator, data, u, back, term, self.domain(y, operator, u))
        spent = operator.map.cost - before if operator.map is self.operator else operator.map.cost
        return replace(tied, spent=spent)


class Certificate(NamedTuple):
    """How far images are from the solution; (b,) each, ``theorem`` as codes of ``THEOREMS``,
    ``gradient`` (b, n).
    """

    distance: Tensor
    theorem: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class SaddleAt:
    """A SaddleEnergy tied to its data y: a batch of independent saddle functions.

    Attributes:
        energy: where it comes from.
        operator: A and A^T of these images.
        y: measurements (b, ...), real.
        primal: g_i, one per block of x.
        dual: f_j, one per block of p; f_j* is what the saddle function has.
        mu: strong convexity of the primal function in the image u.
        data: whether the first dual block belongs to the data term.
        offset: b(theta) for every dual block, or None.
        shapes: of the blocks of x and p for one image.
        domain: bounds of the pixels of u; None where there are none. g_1 keeps to them, or a row of
            K that is the identity where steps in a metric want a quadratic g_1 (``row``): u then
            only approaches them, and the images meant are those of ``image``, u projected.
    """

    energy: SaddleEnergy
    operator: TiedMap
    y: Tensor
    primal: tuple[Convex, ...]
    dual: tuple[Convex, ...]
    mu: Bound
    data: bool
    offset: tuple[Tensor | None, ...] | None
    shapes: tuple[tuple[torch.Size, ...], tuple[torch.Size, ...]]
    norms: tuple[tuple[float, ...], ...]
    back: Tensor
    fidelity: SaddleDataTerm
    spent: Cost = Cost()
    domain: Interval | None = None
    row: bool = False

    def first(self) -> Tensor:
        """t A^T y with the t that fits the data best: what a solve starts from; of counts in the
        units of the image.
        """
        # why with the background: where A x = 0 the distance to counts is nearly vertical, and
        # steps that are balanced there are short for long
        first = started(self.operator, self.fidelity, self.y, self.back, above=False)
        return domain_of(self).project(first)

    # --- the operator -----------------------------------------------------------------------------
    def linear(self, x: Blocks) -> Blocks:
        """K x."""
        rows = self.energy.regularizer.linear(*x)
        if self.row:
            rows = (x[0], *rows)
        return (self.operator.forward(x[0]), *rows) if self.data else rows

    def apply(self, x: Blocks) -> Blocks:
        """K x + b."""
        rows = self.linear(x)
        if self.offset is None:
            return rows
        return tuple(r if b is None else r + b for r, b in zip(rows, self.offset, strict=True))

    def adjoint(self, p: Blocks) -> Blocks:
        """K^T p."""
        first, *others = self.energy.regularizer.adjoint(*p[self.above :])
        if self.row:
            first = first + p[1]
        return (first + self.operator.adjoint(p[0]) if self.data else first, *others)

    @property
    def above(self) -> int:
        """Rows of K above those of the regularizer."""
        return int(self.data) + int(self.row)

    # --- variables --------------------------------------------------------------------------------
    def start(self, x0: Tensor) -> tuple[Blocks, Blocks]:
        """x and p to begin with, from images (b, c, h, w) or from a packed state (b, n)."""
        if x0.dim() == 2:
            return self.unpack(x0)
        x0 = domain_of(self).project(x0)
        regularizer = self.energy.regularizer
        zeros = (x0.new_zeros(x0.shape[0], *shape) for shape in self.shapes[1][: self.above])
        return (x0, *regularizer.auxiliary(x0)), (*zeros, *regularizer.dual_start(x0))

    @staticmethod
    def pack(x: Blocks, p: Blocks, tempo: Tensor | None = None) -> Tensor:
        """All variables as (b, n), and in the last column what a solver wants to remember (b,),
        zero for nothing.
        """
        last = x[0].new_zeros(x[0].shape[0]) if tempo is None else tempo
        return torch.cat([*(t.flatten(1) for t in (*x, *p)), last[:, None]], dim=1)

    @staticmethod
    def tempo(z: Tensor) -> Tensor:
        """The last column of a packed state, without its sign, (b,)."""
        return z[:, -1].abs()

    def unpack(self, z: Tensor) -> tuple[Blocks, Blocks]:
        """The inverse of ``pack``.

        Raises:
            InputError: a state of another problem.
        """
        sizes = [*(math.prod(s) for part in self.shapes for s in part), 1]
        if z.shape[1] != sum(sizes):
            raise InputError(
                "state",
                given=f"{z.shape[1]} variables per image",
                expected=f"{sum(sizes)}",
                remedy="Start from an image, or from the state of the same problem.",
            )
        pieces = z.split(sizes, dim=1)[:-1]
        blocks = [
            t.reshape(z.shape[0], *s)
            for t, s in zip(pieces, (*self.shapes[0], *self.shapes[1]), strict=True)
        ]
        return tuple(blocks[: len(self.primal)]), tuple(blocks[len(self.primal) :])

    def image(self, z: Tensor) -> Tensor:
        """The image in a packed state: u, within its bounds."""
        u = z[:, : math.prod(self.shapes[0][0])].reshape(z.shape[0], *self.shapes[0][0])
        return domain_of(self).project(u)

    @property
    def theorems(self) -> tuple[str, ...]:
        """The names of the codes in ``certify``."""
        return THEOREMS

    def rounding_distance(self, z: Tensor) -> Tensor:
        """Distances (b,) below which the gap of a state in its precision is mostly rounding,
        roughly.

        The gap is a sum over pixels of terms of the size of their own rounding, so its noise is
        about machine epsilon times ||u||^2 (a fifth of the square root of that was seen with TV
        denoising).
        """
        u = self.image(z) if z.dim() == 2 else z
        return 0.2 * (torch.finfo(z.dtype).eps / self.mu.value) ** 0.5 * norm(u).double()

    # --- constants --------------------------------------------------------------------------------
    def bounds(self) -> Curvature:
        """mu of the image; a saddle function has no L."""
        return Curvature(self.mu, Bound.unknown())

    @property
    def constrained(self) -> bool:
        """Whether some f_j is finite at a single point only: K x has to be there exactly for a
        finite primal value.
        """
        return any(isinstance(phi, Box) and phi.lower == phi.upper for phi in self.dual)

    @property
    def smooth(self) -> bool:
        """Whether gradients and Hessians of g and f* exist everywhere, and both are strongly
        convex.
        """
        return all(g.strong > 0 and g.smooth < math.inf for g in self.primal) and all(
            f.strong > 0 and f.smooth < math.inf for f in self.dual
        )

    # --- certificates -----------------------------------------------------------------------------
    def gap(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> Tensor:
        """P(x) - D(t p) (b,) at a multiple t p, t <= 1, that is feasible; the sum of its local
        parts, each >= 0.

        Args:
            kx, ktp: K x + b and K^T p.
        """
        return self._gap(*self._feasible(x, p, kx, ktp))

    def _feasible(
        self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks
    ) -> tuple[Blocks, Blocks, Blocks, Blocks]:
        """x and p where the gap is finite, with K x + b and K^T p."""
        lifted = self._lifted(x)
        if lifted is not None:
            x, kx = lifted, self.apply(lifted)
        repaired = self._repaired(x, p)
        if repaired is not None:
            p, ktp = repaired
        scale = self._gauge(p, ktp)
        if scale is not None:
            p = tuple(t / expand(scale, t) for t in p)
            ktp = tuple(t / expand(scale, t) for t in ktp)
        return x, p, kx, ktp

    def _gap(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> Tensor:
        parts = [g.gap(a, -s) for g, a, s in zip(self.primal, x, ktp, strict=True)]
        parts += [f.gap(a, s) for f, a, s in zip(self.dual, kx, p, strict=True)]
        return sum(parts[1:], parts[0])

    def halves(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> tuple[Tensor, Tensor]:
        """The gap in two parts (b,): what x leaves, repairs of p included, and what p leaves."""
        lifted = self._lifted(x)
        if lifted is not None:
            x, kx = lifted, self.apply(lifted)
        of_dual = torch.stack([f.gap(a, s) for f, a, s in zip(self.dual, kx, p, strict=True)]).sum(
            dim=0
        )
        tiny = torch.finfo(of_dual.dtype).tiny
        return (self.gap(x, p, kx, ktp) - of_dual).clamp_min(tiny), of_dual.clamp_min(tiny)

    def _lifted(self, x: Blocks) -> Blocks | None:
        """x where every function is finite; None where it is so already."""
        if self.row:
            x = (domain_of(self).project(x[0]), *x[1:])
        lifted = self.energy.regularizer.finite(x)
        return x if lifted is None and self.row else lifted

    def _repaired(self, x: Blocks, p: Blocks) -> tuple[Blocks, Blocks] | None:
        first = self.above
        own = self.energy.regularizer.feasible(x, p[first:])
        if own is None:
            return None
        p = (*p[:first], *own)
        return p, self.adjoint(p)

    def _gauge(self, p: Blocks, ktp: Blocks) -> Tensor | None:
        """What p must be divided by, (b,), to be in the domains; None if it may be anything."""
        found = [f.gauge(s) for f, s in zip(self.dual, p, strict=True) if _limited(f)]
        found += [g.gauge(-s) for g, s in zip(self.primal, ktp, strict=True) if _limited(g)]
        return torch.stack(found).amax(dim=0) if found else None

    def gradient(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> tuple[Blocks, Blocks]:
        """(grad g(x) + K^T p, K x + b - grad f*(p)), the gradient of the Lagrangian; for smooth
        problems only.
        """
        rx = tuple(g.grad(a) + s for g, a, s in zip(self.primal, x, ktp, strict=True))
        rp = tuple(a - f.conjugate_grad(s) for f, a, s in zip(self.dual, kx, p, strict=True))
        return rx, rp

    def sensitivity(self, x: Tensor) -> Bound:
        """beta with ||dA v|| <= beta ||dtheta|| ||v|| for images v like x."""
        return moves_of(self.operator, x).beta

    def moduli(self) -> list[float]:
        """Strong convexity of the g_i and the f_j*, in the order of the blocks."""
        return [g.strong for g in self.primal] + [1 / f.smooth for f in self.dual]

    def distances(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> list[Tensor]:
        """Certified distance (b,) of every block of x and p, from the optimality system; for smooth
        problems only.
        """
        rx, rp = self.gradient(x, p, kx, ktp)
        return distance_from_residuals([norm(r) for r in (*rx, *rp)], self.moduli())

    def _by_gap(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> tuple[Tensor, Tensor]:
        """Distances (b,) of the image from the gap: by mu, and by the growth of the data term."""
        x, p, kx, ktp = self._feasible(x, p, kx, ktp)
        gap = self._gap(x, p, kx, ktp)
        plain = by_mu(gap, self.mu.value)
        data = self.primal[0]
        if data.growth(x[0], -ktp[0], torch.ones_like(plain, dtype=torch.float64)) is None:
            return plain, plain

        def growth(radius: Tensor) -> tuple[Tensor, Tensor]:
            found = data.growth(x[0], -ktp[0], radius)
            assert found is not None
            return found[0].flatten(1).amin(dim=1), found[1]

        return plain, distance_from_growth(gap.double(), growth, plain.double()).to(plain)

    def evidence(self, x: Blocks, p: Blocks, kx: Blocks, ktp: Blocks) -> Tensor:
        """The distance of the image that is known without another application of K, (b,)."""
        distance = self._by_gap(x, p, kx, ktp)[1]
        return (
            torch.minimum(distance, self.distances(x, p, kx, ktp)[0]) if self.smooth else distance
        )

    @torch.no_grad()
    def certify(self, z: Tensor) -> Certificate:
        """The smallest certified distance of the image in a packed state (b, n), and the theorem
        behind it.
        """
        x, p = self.unpack(z)
        kx, ktp = self.apply(x), self.adjoint(p)
        distance, grown = self._by_gap(x, p, kx, ktp)
        found, gradient = {"gap": distance}, torch.zeros_like(z)
        found["growth"] = torch.where(grown < distance, grown, torch.inf)
        if self.smooth:
            rx, rp = self.gradient(x, p, kx, ktp)
            found["kkt"] = distance_from_residuals([norm(r) for r in (*rx, *rp)], self.moduli())[0]
            gradient = self.pack(rx, rp)
        if all(f.smooth < math.inf for f in self.dual):
            found["residual"] = self._residual(x, kx)
        table = torch.stack(
            [found.get(name, torch.full_like(distance, torch.inf)) for name in THEOREMS]
        )
        table = torch.where(
            table.isnan(), torch.inf, table
        )  # NaN must never look like a certificate
        smallest, which = table.min(dim=0)
        return Certificate(smallest, which, gradient)

    def _residual(self, x: Blocks, kx: Blocks) -> Tensor:
        """The distance of u with the dual variable grad f(K x + b), for which the dual part of the
        gap vanishes.
        """
        slopes = tuple(f.grad(a) for f, a in zip(self.dual, kx, strict=True))
        ktp = self.adjoint(slopes)
        gap = torch.stack([g.gap(a, -s) for g, a, s in zip(self.primal, x, ktp, strict=True)]).sum(
            dim=0
        )
        distance = by_mu(gap, self.mu.value)
        if all(g.strong > 0 and g.smooth < math.inf for g in self.primal):
            residuals = [norm(g.grad(a) + s) for g, a, s in zip(self.primal, x, ktp, strict=True)]
            distance = torch.minimum(
                distance, distance_from_residuals(residuals, [g.strong for g in self.primal])[0]
            )
        return distance

    # --- parts of the batch -----------------------------------------------------------------------
    def select(self, index: Tensor) -> SaddleAt:
        """The saddle functions of the images ``index``."""
        return replace(
            self,
            operator=self.operator.select(index),
            back=self.back[index],
            fidelity=of_images(self.fidelity, index),
            spent=Cost(),
            y=self.y[index],
            primal=tuple(g.select(index) for g in self.primal),
            dual=tuple(f.select(index) for f in self.dual),
            domain=None if self.domain is None else self.domain.select(index),
        )

    def double(self) -> SaddleAt:
        """The same in float64."""
        if self.y.dtype == torch.float64:
            return self
        u = torch.zeros(
            (self.y.shape[0], *self.shapes[0][0]), dtype=torch.float64, device=self.y.device
        )
        wide = self.energy.widened()
        fidelity = in_double(self.fidelity)
        double, y, back = self.operator.double(), self.y.double(), self.back.double()
        domain = None if self.domain is None else self.domain.double()
        return _tie(wide, double, y, u, back, fidelity, domain)

    @torch.no_grad()
    def to_data(self, adjoint: Tensor) -> Tensor:
        """What the solution map passes back to the measurements: (b, ...), the shape of real y.

        The data enter the system as -A^T w y (as a function of the image) or as -y (in a dual
        block), so a packed (X, Y) is multiplied by the transpose of that.

        Raises:
            MissingPropertyError: a data term in which y does not enter linearly.
        """
        X, Y = self.unpack(adjoint)
        if not isinstance(self.fidelity, L2 | WeightedL2):
            raise MissingPropertyError(
                "y",
                given=f"a gradient asked for with {type(self.fidelity).__name__}",
                expected="the data term L2 or WeightedL2",
                remedy="Detach the measurements.",
            )
        if self.data:
            return -Y[0]
        moved = self.operator.forward(-X[0])
        return self.fidelity.tie(self.y).to_data(moved, moved)

    def majorants(self) -> tuple[Tensor, ...] | None:
        """For every dual block j the symbol (1, c, h, w // 2 + 1) of a circulant >= K_ju^T K_ju, u
        the image.

        None where primal steps in such a metric are not worth it (cheap K) or no closed form
        (curvature that varies).
        """
        g = self.primal[0]
        if not self.data or g.strong != g.smooth:
            return None
        u = torch.zeros((1, *self.shapes[0][0]), dtype=self.y.dtype, device=self.y.device)
        with torch.no_grad():
            of_map = self.operator.majorant(u)
            if of_map is None:
                return None
            identity = (torch.ones_like(of_map),) if self.row else ()
            return (of_map, *identity, *self.energy.regularizer.majorants(u))

    @property
    def effort(self) -> float:
        """What one step costs, in operations on one vector of pixels; rough."""
        return self.operator.effort + effort_of(self.energy.regularizer)


def _tie(
    energy: SaddleEnergy,
    operator: TiedMap,
    y: Tensor,
    u: Tensor,
    back: Tensor,
    fidelity: SaddleDataTerm,
    domain: Interval | None,
) -> SaddleAt:
    """The functions and constants of images like u (b, c, h, w)."""
    regularizer = energy.regularizer
    with torch.no_grad():
        like = u[:1]
        # theta enters through K alone, so an operator that learns needs a row of its own
        learns = bool(trainable(operator.physics))
        first = None if learns else fidelity.of_image(operator, y, u, energy.tikhonov)
        if domain is not None and first is not None and not first.separable:
            first = None  # bounds cut off sums over pixels only: a row of its own then
        data = first is None
        # a metric needs a quadratic g: bounds become a row of K then, the identity
        row = data and domain is not None and operator.majorant(like) is not None
        rows, dual, offset = [], list(regularizer.dual(u)), regularizer.offset(u)
        auxiliary, starts = regularizer.auxiliary(like), regularizer.dual_start(like)
        shapes = [s.shape[1:] for s in starts]
        if first is None:
            first = fidelity.rest(energy.tikhonov)
            dual.insert(0, fidelity.of_data(y))
            rows.append((math.sqrt(float(operator.spectrum(u).L.max())), *[0.0] * len(auxiliary)))
            shapes.insert(0, y.shape[1:])
            offset = None if offset is None else (None, *offset)
            if row and domain is not None:
                dual.insert(1, Boxed(Zero(), domain))
                rows.append((1.0, *[0.0] * len(auxiliary)))
                shapes.insert(1, u.shape[1:])
                offset = None if offset is None else (None, *offset)
        rows += [tuple(float(v) for v in row) for row in regularizer.norms(u)]
        if not all(math.isfinite(n) for row in rows for n in row):
            raise MissingPropertyError(
                "energy",
                given="an operator K without finite norm",
                expected="finite parameters",
                remedy="Take smaller steps, or a box for theta.",
            )
        if domain is not None and not row:
            first = Boxed(first, domain)
        mu = fidelity.bounds(operator, u).mu + Bound.exact(energy.tikhonov)
        return SaddleAt(
            energy,
            operator,
            y,
            (first, *regularizer.primal(u)),
            tuple(dual),
            mu,
            data,
            offset,
            ((u.shape[1:], *(v.shape[1:] for v in auxiliary)), tuple(shapes)),
            tuple(rows),
            back,
            fidelity,
            domain=domain,
            row=row,
        )


def _limited(function: Convex) -> bool:
    """Whether the conjugate is infinite somewhere."""
    return type(function).gauge is not Convex.gauge
