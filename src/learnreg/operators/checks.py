"""Public self-checks: is a map linear, is its adjoint one, and the Taylor test of a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm

Apply = Callable[[Tensor], Tensor]


def dot_test(forward: Apply, adjoint: Apply, x: Tensor, seed: int = 0) -> float:
    """Relative mismatch of <A u, w> and <u, A^T w>, the largest of three pairs.

    Random pairs alone would hide what is wrong everywhere a little: of two random vectors of length
    n the relative inner product is 1 / sqrt(n). So the mismatch of a random pair is related to
    ||A u|| (w has unit deviation in every entry), and two pairs look along A u and along A^T w,
    where the mismatch is the defect itself.

    Args:
        forward, adjoint: the linear maps.
        x: (b, ...), gives shape, dtype and device of the domain; its values are not used.
        seed: of the random vectors, drawn from a generator of its own.

    Returns:
        The mismatch; rounding gives up to 1e-6 in float32 and 1e-14 in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    u = _normal(x.shape, generator, x)
    a_u = forward(u)
    w = _normal(a_u.shape, generator, a_u)
    at_w = adjoint(w)

    scale = max(_size(a_u), _size(at_w))
    if scale == 0:  # the zero map is its own adjoint
        return 0.0

    found = [abs(_inner(a_u, w) - _inner(u, at_w)) / scale]
    if _size(a_u) > 0:
        ahead = a_u / _size(a_u)
        found.append(abs(_size(a_u) - _inner(u, adjoint(ahead))) / _size(a_u))
    if _size(at_w) > 0:
        back = at_w / _size(at_w)
        found.append(abs(_inner(forward(back), w) - _size(at_w)) / _size(at_w))
    return math.nan if any(math.isnan(f) for f in found) else max(found)


@dataclass(frozen=True)
class Findings:
    """What the probes of an operator have shown; relative sizes, zero for a linear one.

    Attributes:
        adjoint: mismatch of the adjoint (see ``dot_test``).
        nonlinear: of A(3 u - 2 v) from 3 A u - 2 A v, and of A 0 from 0; the same of A^T.
        unsteady: of A u asked twice, the second time beside another image.
        evaluations: applications of A and A^T to one image.
    """

    adjoint: float
    nonlinear: float
    unsteady: float
    evaluations: int

    def worst(self) -> tuple[str, float]:
        """The largest defect, with the words that name it."""
        named = {
            "an adjoint that fails the dot test": self.adjoint,
            "a map that is not linear": self.nonlinear,
            "a map that gives another result when asked again, or beside another image": (
                self.unsteady
            ),
        }
        broken = [item for item in named.items() if math.isnan(item[1])]
        return broken[0] if broken else max(named.items(), key=lambda item: item[1])


@torch.no_grad()
def probe(forward: Apply, adjoint: Apply, x: Tensor, *, alone: bool = True) -> Findings:
    """Probe an operator with random vectors: adjoint, linearity, determinism.

    Args:
        forward, adjoint: A and A^T.
        x: (b, ...), gives shape, dtype and device of the domain.
        alone: whether the map takes one image as well as two; False for a map per image.

    Random vectors see every defect that is not many orders below the tolerance times sqrt(n), with
    probability one; what depends on the values of images in a way that random vectors do not share
    cannot be found by probing.
    """
    generator = torch.Generator().manual_seed(1)
    u, v = (_normal(x.shape, generator, x) for _ in range(2))
    a_u, a_v = forward(u), forward(v)
    w, z = (_normal(a_u.shape, generator, a_u) for _ in range(2))

    mismatch = dot_test(forward, adjoint, x)
    nonlinear = max(
        _defect(forward, (u, v), (a_u, a_v)),
        _defect(adjoint, (w, z), (adjoint(w), adjoint(z))),
        key=lambda value: math.inf if math.isnan(value) else value,
    )
    both = forward(torch.cat([v, u]))[x.shape[0] :] if alone else forward(u)
    if both.shape != a_u.shape:
        unsteady = math.inf
    else:
        unsteady = _relative(both - a_u, a_u)
    return Findings(mismatch, nonlinear, unsteady, 15)


def _defect(apply: Apply, at: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor]) -> float:
    """How far a map is from linear at two points, relative."""
    (u, v), (a_u, a_v) = at, images
    expected = 3 * a_u - 2 * a_v
    combined = _relative(apply(3 * u - 2 * v) - expected, expected)
    offset = _relative(apply(torch.zeros_like(u)), a_u)
    return math.nan if math.isnan(combined + offset) else max(combined, offset)


def taylor_test(value: Apply, grad: Apply, x: Tensor, seed: int = 0) -> Tensor:
    """Observed order of the remainder |f(x + t v) - f(x) - t <grad f(x), v>| per image.

    Args:
        value: (b, ...) -> (b,).
        grad: (b, ...) -> (b, ...).
        x: (b, ...), use float64.

    Returns:
        (b,) orders, from t = 1e-2 and 1e-3; 2 for a correct gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
    v = v / expand(norm(v), v)
    f0, slope = value(x), dot(grad(x), v)
    remainders = [(value(x + t * v) - f0 - t * slope).abs().clamp_min(1e-300) for t in (1e-2, 1e-3)]
    return torch.log10(remainders[0] / remainders[1])


def _normal(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers with the dtype and device of ``like``; the same on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)


def _size(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t.double()))


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double().flatten(), b.double().flatten()))


def _relative(difference: Tensor, reference: Tensor) -> float:
    """||difference|| / ||reference||; where the reference is zero, zero or infinity."""
    size, scale = _size(difference), _size(reference)
    if scale == 0:
        return 0.0 if size == 0 else math.inf
    return size / scale


REMEDIES = {
    "adjoint": "Implement A_adjoint as the exact transpose of A (for example with "
    "deepinv.physics.adjoint_function).",
    "map": "A must be linear (no offset, no clipping, no noise), the same at every call, and "
    "treat every image of a batch by itself; put an offset into the data: y - A(0).",
}
"""What helps against a map that fails, by what is wrong with it."""
