"""Whether a physics is linear, repeatable, and has the adjoint that it says it has."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..core.errors import LearnregError
from ..operators.physics import LinearMap
from .claims import expect, expect_close, normal
from .nouns import Operator
from .spectra import extremes

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
"""Relative to the norm of what is compared; float32 with room for FFT and interpolation."""


@torch.no_grad()
def check_operator(
    physics: nn.Module, x: Tensor, *, tolerance: float | None = None, seed: int = 0
) -> None:
    """Whether ``A`` is linear and the same at every call, and ``A_adjoint`` its transpose.

    In the precision of x, and for float32 once more in a float64 copy: certificates close there.
    The transpose is compared entry by entry with automatic differentiation of A where that works,
    so that one wrong pixel is seen, and by products with random and single-pixel images where it
    does not. Where the library takes singular values from the physics (masks, decomposable
    operators), they are compared with Rayleigh quotients.

    Args:
        physics: with ``A`` and ``A_adjoint``.
        x: (b, c, h, w), an image of the size in question: an operator may be right at one size and
            wrong at another.
        tolerance: relative; 2e-5 in float32, 1e-10 in float64 when None.
        seed: of the random images.

    Raises:
        AssertionError: what differs, by how much, and where.

    >>> import deepinv, torch
    >>> check_operator(deepinv.physics.Decolorize(), torch.rand(1, 3, 4, 4))
    """
    name = type(physics).__name__
    x = x.detach()
    one = x[:1]
    operator = cast(Operator, physics)
    allowed = TOLERANCE[x.dtype] if tolerance is None else tolerance

    _forward(operator, one, allowed, name, seed)
    _adjoint(operator, one, allowed, name, seed)
    _batch(operator, x, allowed, name, seed)
    if x.dtype == torch.float32:
        _copy(physics, one, allowed, name, seed)
    _spectrum(physics, one, name)


def _forward(physics: Operator, x: Tensor, allowed: float, name: str, seed: int) -> None:
    u, v = normal(x, seed + 1), normal(x, seed + 2)
    first, of_v = physics.A(u), physics.A(v)
    what = f"A of {name}"
    expect(bool(first.isfinite().all()), what, given="NaN or Inf", expected="finite numbers")

    zero = float(physics.A(torch.zeros_like(x)).abs().max())
    size = float(first.abs().max())
    expect(
        zero <= 1e-7 * size, what, given=f"A(0) with entries up to {zero:.2e}", expected="A(0) = 0"
    )

    expect_close(physics.A(u), first, allowed / 10, what, "the same at every call")
    mixed = physics.A(2 * u - 3 * v)
    expect_close(mixed, 2 * first - 3 * of_v, allowed, what, "A(2u - 3v) = 2 A u - 3 A v")
    for t in (1e-3, 1e3):
        expect_close(physics.A(t * u), t * first, allowed, what, f"A({t:g} u) = {t:g} A u")
    expect_close(physics.A(u), first, allowed / 10, what, "the same after some calls")


def _adjoint(physics: Operator, x: Tensor, allowed: float, name: str, seed: int) -> None:
    y = physics.A(x)
    w, z = normal(y, seed + 3), normal(y, seed + 4)
    back = physics.A_adjoint(w)
    what = f"A_adjoint of {name}"
    expect(back.shape == x.shape, what, given=f"shape {tuple(back.shape)}", expected=tuple(x.shape))
    expect(not back.is_complex(), what, given=back.dtype, expected="real images")

    zero = float(physics.A_adjoint(torch.zeros_like(w)).abs().max())
    expect(
        zero <= 1e-7 * float(back.abs().max()),
        what,
        given=f"A^T 0 with entries up to {zero:.2e}",
        expected="0",
    )
    expect_close(physics.A_adjoint(w), back, allowed / 10, what, "the same at every call")
    mixed = physics.A_adjoint(2 * w - 3 * z)
    expect_close(mixed, 2 * back - 3 * physics.A_adjoint(z), allowed, what, "a linear map")

    transposed = _transposed(physics, x, w)
    if transposed is None:
        _products(physics, x, w, back, allowed, name, seed)
        return
    expect_close(back, transposed, allowed, what, "A^T w by automatic differentiation of A")
    _entries(back, transposed, 10 * allowed, what)


def _entries(back: Tensor, transposed: Tensor, allowed: float, what: str) -> None:
    """No entry is off by more than the typical size of entries allows."""
    difference = (back - transposed).abs()
    worst = int(difference.argmax())
    place = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), difference.shape))
    size = float(transposed.abs().double().square().mean().sqrt())
    expect(
        float(difference.max()) <= allowed * size,
        what,
        given=f"{float(back.flatten()[worst]):.6g} at {place[1:]}",
        expected=f"{float(transposed.flatten()[worst]):.6g} there",
    )


def _transposed(physics: Operator, x: Tensor, w: Tensor) -> Tensor | None:
    """A^T w by automatic differentiation; None where A does not allow it."""
    try:
        with torch.enable_grad():
            u = torch.zeros_like(x).requires_grad_()
            (back,) = torch.autograd.grad(physics.A(u), u, w)
    except RuntimeError:
        return None
    return back


def _products(
    physics: Operator, x: Tensor, w: Tensor, back: Tensor, allowed: float, name: str, seed: int
) -> None:
    """<A u, w> = <u, A^T w> for random images and for single pixels spread over the image."""
    what = f"A_adjoint of {name}"
    n = x.numel()
    chosen = sorted({0, n - 1, n // 2, *range(0, n, max(1, n // 40))})
    size = float(back.double().norm()) / n**0.5
    for index in chosen:
        u = torch.zeros_like(x)
        u.view(-1)[index] = 1
        wanted = float((physics.A(u).conj() * w).real.double().sum())
        found = float(back.view(-1)[index])
        expect(
            abs(found - wanted) <= 10 * allowed * max(size, abs(wanted)),
            what,
            given=f"{found:.6g} at pixel {index}",
            expected=f"{wanted:.6g} there",
        )
    u = normal(x, seed + 5)
    left = (physics.A(u).conj() * w).real.double().sum()[None]
    right = (u.double() * back.double()).sum()[None]
    size = float(physics.A(u).abs().double().norm() * w.abs().double().norm()) / n**0.5
    expect_close(right, left, allowed, what, "<u, A^T w> = <A u, w>", size)


def _batch(physics: Operator, x: Tensor, allowed: float, name: str, seed: int) -> None:
    """No image sees another one."""
    several = x if x.shape[0] > 1 else x.expand(2, *x.shape[1:])
    u = normal(several, seed + 6)
    if physics.A(u[:1]).shape[0] != 1:
        return  # parameters per image: then A belongs to one batch
    together = physics.A(u)
    w = normal(together, seed + 7)
    back = physics.A_adjoint(w)
    for i in range(u.shape[0]):
        alone, backwards = physics.A(u[i : i + 1]), physics.A_adjoint(w[i : i + 1])
        what = f"{name} for image {i} of a batch"
        expect_close(together[i : i + 1], alone, allowed, f"A of {what}", "that of the image alone")
        expect_close(
            back[i : i + 1], backwards, allowed, f"A_adjoint of {what}", "that of the image alone"
        )


def _copy(physics: nn.Module, x: Tensor, allowed: float, name: str, seed: int) -> None:
    """The float64 copy is the same operator, with an adjoint of its own."""
    operator = cast(Operator, physics)
    what = f"a float64 copy of {name}"
    try:
        twin = cast(Operator, LinearMap(physics).double().physics)
        u = normal(x, seed + 8)
        single, double = operator.A(u), twin.A(u.double())
        back = twin.A_adjoint(double)
    except (RuntimeError, TypeError, LearnregError) as error:
        raise AssertionError(
            f"{what}: given an operator that fails ({error}); expected tensors in buffers or "
            f"parameters (register_buffer), so that they can be promoted."
        ) from error
    wide = torch.complex128 if single.is_complex() else torch.float64
    expect(double.dtype == wide, f"A of {what}", given=double.dtype, expected=wide)
    expect(
        back.dtype == torch.float64, f"A_adjoint of {what}", given=back.dtype, expected="float64"
    )
    expect_close(double, single.to(wide), allowed, f"A of {what}", "that of the original")
    expect_close(
        back,
        operator.A_adjoint(single).double(),
        10 * allowed,
        f"A_adjoint of {what}",
        "the original's",
    )
    _adjoint(twin, x.double(), 1e-8, f"the float64 copy of {name}", seed)


def _spectrum(physics: nn.Module, x: Tensor, name: str) -> None:
    """mu <= A^T A <= ||A||^2 as far as the library certifies them."""
    try:
        known = LinearMap(physics).spectrum(x)
    except LearnregError:
        return
    if not (known.mu.value > 0 or known.L.certified):
        return
    operator = cast(Operator, physics)
    low, high = extremes(
        lambda v: operator.A_adjoint(operator.A(v)), torch.zeros_like(x), known.L.value
    )
    slack = 1e-3 * max(high, known.L.value)
    expect(
        low >= known.mu.value - slack,
        f"singular values of {name}",
        given=f"all squares >= {known.mu.value:.6g}, taken from its mask",
        expected=f"at most {low:.6g}, which occurs",
    )
    expect(
        not known.L.certified or high <= known.L.value + slack,
        f"singular values of {name}",
        given=f"all squares <= {known.L.value:.6g}, taken from its mask",
        expected=f"at least {high:.6g}, which occurs",
    )
