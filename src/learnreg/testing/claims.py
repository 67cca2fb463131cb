"""What every check says when it fails: one sentence with what was given and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

STEPS = tuple(10.0**-k for k in range(2, 9))
"""Difference steps that are tried: the best of them decides, since a wrong derivative is wrong at
all of them."""


def expect(holds: bool, what: str, *, given: object, expected: object) -> None:
    """Nothing if it holds.

    Raises:
        AssertionError: ``what: given ...; expected ....``
    """
    if not holds:
        raise AssertionError(f"{what}: given {given}; expected {expected}.")


def relative(a: Tensor, b: Tensor, floor: float = 0.0) -> float:
    """||a - b|| over the larger of both norms (or ``floor``); 0 for equal tensors, inf for NaN."""
    difference = float((a.double() - b.double()).norm())
    size = max(float(a.double().norm()), float(b.double().norm()), floor)
    if difference == 0:
        return 0.0
    return difference / size if size > 0 and difference == difference else float("inf")


def expect_close(
    a: Tensor, b: Tensor, tolerance: float, what: str, expected: str, floor: float = 0.0
) -> None:
    """Tensors of one shape, equal up to a relative difference in norm.

    Raises:
        AssertionError: with both shapes, or with the difference and the factor between them.
    """
    expect(a.shape == b.shape, what, given=f"shape {tuple(a.shape)}", expected=tuple(b.shape))
    difference = relative(a, b, floor)
    expect(
        difference <= tolerance,
        what,
        given=f"a relative difference of {difference:.2e}{factor(a, b)}",
        expected=f"{expected}, up to {tolerance:.0e}",
    )


def factor(a: Tensor, b: Tensor) -> str:
    """ ", it is 2 times that" if one tensor is a multiple of the other; else nothing."""
    wanted, found = b.double().flatten(), a.double().flatten()
    square = float(wanted @ wanted)
    if square == 0 or not bool(found.isfinite().all()):
        return ""
    multiple = float(found @ wanted) / square
    return f" (it is {multiple:.6g} times that)" if relative(a, multiple * b) < 1e-3 else ""


def normal(like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers of the shape, type and device of ``like``; complex if that is.

    The global random state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = torch.view_as_real(like).shape if like.is_complex() else like.shape
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    drawn = torch.view_as_complex(drawn) if like.is_complex() else drawn
    return drawn.to(like)


def quotients(function: Callable[[float], Tensor], size: float) -> Iterator[Tensor]:
    """Central difference quotients of ``function`` at 0, of fourth order, for several steps.

    Args:
        function: of a real number.
        size: what the steps are relative to.
    """
    for step in STEPS:
        h = step * size
        near = (function(h) - function(-h)) / (2 * h)
        far = (function(2 * h) - function(-2 * h)) / (4 * h)
        yield (4 * near - far) / 3


def expect_derivative(
    claimed: Tensor,
    function: Callable[[float], Tensor],
    size: float,
    tolerance: float,
    what: str,
    expected: str,
    floor: float = 0.0,
) -> None:
    """``claimed`` is the derivative of ``function`` at 0.

    Raises:
        AssertionError: no difference quotient comes within the tolerance; the nearest is named.
    """
    found = list(quotients(function, size))
    nearest = min(found, key=lambda q: relative(claimed, q, floor))
    if relative(claimed, nearest, floor) <= tolerance and claimed.shape == nearest.shape:
        return
    steadiest = min(pairwise(found), key=lambda pair: relative(pair[0], pair[1], floor))[1]
    expect_close(claimed, steadiest, tolerance, what, expected, floor)
    expect_close(claimed, nearest, tolerance, what, expected, floor)
