"""The contract of a data term: ``tie(y)`` gives the functions a -> D(a, y), one per image."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.batch import dot, expand, norm
from ..problems.data_functions import Diagonal
from ..problems.per_image import of_images
from .claims import expect, expect_close, expect_derivative, normal, relative
from .nouns import Function, Term


@torch.no_grad()
def check_data_term(
    term: Term, y: Tensor, a: Tensor | None = None, *, tolerance: float = 1e-5, seed: int = 0
) -> None:
    """Whether a data term is what an energy takes it for.

    ``term.tie(y)`` is a ``DataFunction``: ``value(a) -> (b,)``, ``grad(a)``, ``linearize(a)``,
    ``constants()``, ``select(index)`` and ``double()``. Checked in float64: the gradient against
    difference quotients of the value, the Hessian against those of the gradient and for symmetry,
    mu and L (where they are finite) against Rayleigh quotients, the entries of a diagonal Hessian
    and slopes of the gradient, independence of the batch, repeatability, ``select``, ``double``,
    and float32 against float64.

    Args:
        term: the data term.
        y: measurements (b, ...).
        a: where it is evaluated, shaped as y; near y when None. Give points of the domain if that
            is not everything.
        tolerance: relative, for comparisons with difference quotients.
        seed: of the directions.

    Raises:
        AssertionError: what was given, what was expected.
    """
    name = type(term).__name__
    wide = torch.complex128 if y.is_complex() else torch.float64
    y = y.detach().to(wide)
    near = y + 0.3 * y.abs().mean().clamp_min(1e-3) * normal(y, seed)
    a = near if a is None else a.detach().to(wide)
    if y.shape[0] == 1:
        y, a = torch.cat([y, y]), torch.cat([a, a + 0.01 * (a - y)])

    f = term.tie(y)
    _shapes(f, a, name)
    _derivatives(f, a, tolerance, name, seed)
    _bounds(f, a, name, seed)
    _strangers(term, f, y, a, name)
    _precision(term, y, a, name)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return dot(torch.view_as_real(a), torch.view_as_real(b)) if a.is_complex() else dot(a, b)


def _shapes(f: Function, a: Tensor, name: str) -> None:
    value, grad, curved = f.value(a), f.grad(a), f.linearize(a)(a)
    b = (a.shape[0],)
    expect(tuple(value.shape) == b, f"value of {name}", given=tuple(value.shape), expected=b)
    expect(not value.is_complex(), f"value of {name}", given=value.dtype, expected="real numbers")
    expect(
        grad.shape == a.shape, f"grad of {name}", given=tuple(grad.shape), expected=tuple(a.shape)
    )
    for word, found in (("value", value), ("grad", grad), ("Hessian", curved)):
        sound = bool(found.isfinite().all())
        expect(sound, f"{word} of {name}", given="NaN or Inf", expected="finite numbers")
    kept = a.clone()
    expect_close(f.value(a), value, 1e-12, f"value of {name}", "the same at every call")
    expect_close(f.grad(a), grad, 1e-12, f"grad of {name}", "the same at every call")
    expect(torch.equal(a, kept), f"a call of {name}", given="a changed argument", expected="none")


def _derivatives(f: Function, a: Tensor, tolerance: float, name: str, seed: int) -> None:
    v, g = normal(a, seed + 1), f.grad(a)
    size = max(float(a.abs().mean()), 1e-6)
    expect_derivative(
        _inner(g, v),
        lambda t: f.value(a + t * v),
        size,
        tolerance,
        f"grad of {name}",
        "the difference quotient of value",
        1e-9 * float((norm(g) * norm(v)).abs().max()) + 1e-300,
    )
    hessian = f.linearize(a)
    expect_derivative(
        hessian(v),
        lambda t: f.grad(a + t * v),
        size,
        tolerance,
        f"Hessian of {name}",
        "the difference quotient of grad",
    )
    w = normal(a, seed + 9)
    expect_close(
        _inner(hessian(v), w),
        _inner(v, hessian(w)),
        1e-9,
        f"Hessian of {name}",
        "<H v, w> = <v, H w>",
        float((norm(hessian(v)) * norm(w)).max()),
    )


def _bounds(f: Function, a: Tensor, name: str, seed: int) -> None:
    claimed = f.constants()
    lower, upper = (t.expand(a.shape[0]) for t in (claimed.mu, claimed.L))
    what = f"constants of {name}"
    expect(bool((lower <= upper).all()), what, given="a mu above its L", expected="mu <= L")

    hessian, v = f.linearize(a), normal(a, seed + 1)
    quotient = _inner(hessian(v), v) / _inner(v, v)
    _between(quotient, quotient, lower, upper, what, "a Rayleigh quotient")
    if isinstance(hessian, Diagonal):
        flat = hessian(torch.ones_like(a)).flatten(1)
        flat = flat.real if flat.is_complex() else flat
        _between(flat.amin(dim=1), flat.amax(dim=1), lower, upper, what, "a curvature")
    for k in range(4):
        step = normal(a, seed + 2 + k) * 10.0 ** (1 - k) * a.abs().mean().clamp_min(1e-6)
        other = a + step if k % 2 else a + step.abs()
        if not bool(f.value(other).isfinite().all()):
            continue  # outside the domain
        slope = _inner(f.grad(other) - f.grad(a), other - a) / _inner(other - a, other - a)
        _between(slope, slope, lower, upper, what, "a slope of the gradient")


def _between(low: Tensor, high: Tensor, lower: Tensor, upper: Tensor, what: str, of: str) -> None:
    slack = 1e-7 * torch.maximum(low.abs(), high.abs())
    below, above = int((low - lower).argmin()), int((high - upper).argmax())
    expect(
        bool((low >= lower - slack).all()),
        what,
        given=f"mu = {float(lower[below]):.6g}",
        expected=f"at most {float(low[below]):.6g}, {of} that occurs",
    )
    expect(
        bool((high <= upper + slack).all()),
        what,
        given=f"L = {float(upper[above]):.6g}",
        expected=f"at least {float(high[above]):.6g}, {of} that occurs",
    )


def _strangers(term: Term, f: Function, y: Tensor, a: Tensor, name: str) -> None:
    index = torch.arange(y.shape[0] - 1, -1, -1)
    some = f.select(index)
    what = f"select of {name}"
    expect_close(some.value(a[index]), f.value(a)[index], 1e-12, what, "the selected functions")
    expect_close(some.grad(a[index]), f.grad(a)[index], 1e-12, what, "the selected functions")
    mine, whole = some.constants(), f.constants()
    for word, claimed, of_all in (("mu", mine.mu, whole.mu), ("L", mine.L, whole.L)):
        found, wanted = claimed.expand(y.shape[0]), of_all.expand(y.shape[0])[index]
        expect(
            bool(torch.isclose(found, wanted, rtol=1e-12, atol=0).all()),
            f"{word} after {what}",
            given=found.tolist(),
            expected=f"{wanted.tolist()}, those of the selected",
        )
    for i in range(y.shape[0]):
        alone = of_images(term, torch.tensor([i])).tie(y[i : i + 1])
        what = f"{name} for image {i} alone"
        expect_close(
            alone.grad(a[i : i + 1]),
            f.grad(a)[i : i + 1],
            1e-12,
            f"grad of {what}",
            "that of the same image in a batch",
        )
        expect_close(
            alone.value(a[i : i + 1]),
            f.value(a)[i : i + 1],
            1e-12,
            f"value of {what}",
            "that of the same image in a batch",
        )


def _precision(term: Term, y: Tensor, a: Tensor, name: str) -> None:
    narrow = torch.complex64 if y.is_complex() else torch.float32
    single, coarse = term.tie(y.to(narrow)), a.to(narrow)
    grad = single.grad(coarse)
    expect(grad.dtype == narrow, f"grad of {name} in {narrow}", given=grad.dtype, expected=narrow)
    double = single.double()
    fine = double.grad(coarse.to(y.dtype))
    expect(fine.dtype == y.dtype, f"double of {name}", given=fine.dtype, expected=y.dtype)
    scale = float(expand(norm(fine), fine).abs().max())
    difference = relative(grad.to(y.dtype).abs(), fine.abs(), scale)
    expect(
        difference <= 1e-3,
        f"grad of {name} in {narrow}",
        given=f"a relative difference of {difference:.2e}",
        expected="that of its float64 copy, up to 1e-03",
    )
