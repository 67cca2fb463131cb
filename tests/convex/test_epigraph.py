"""The projection onto epigraphs against brute force along the graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learnreg.convex import Epigraph
from learnreg.core.errors import InputError

from .cases import normal, random

ALL = [(a, r) for a in (0.0, 0.2) for r in (0.0, 0.01, 0.5)]
each = pytest.mark.parametrize(("slope", "rounding"), ALL)


def leaky(s: Tensor, slope: float, rounding: float) -> Tensor:
    """The activation, piece by piece."""
    if rounding == 0:
        return torch.where(s > 0, s, slope * s)
    h = torch.where(
        s <= 0, 0.0, torch.where(s <= rounding, s * s / (2 * rounding), s - rounding / 2)
    )
    return slope * s + (1 - slope) * h


def nearest(p: Tensor, slope: float, rounding: float) -> Tensor:
    """Nearest point of the epigraph: a scan of the graph, refined four times around the best point;
    p: (n, 2).
    """
    s, t = p.unbind(dim=1)
    centre, width = torch.zeros_like(s), 12.0
    for _ in range(5):
        x = centre[:, None] + width * torch.linspace(-1, 1, 1001, dtype=p.dtype)
        distance = (x - s[:, None]).square() + (leaky(x, slope, rounding) - t[:, None]).square()
        centre, width = x.gather(1, distance.argmin(dim=1, keepdim=True))[:, 0], width / 100
    foot = torch.stack((centre, leaky(centre, slope, rounding)), dim=1)
    return torch.where((t >= leaky(s, slope, rounding))[:, None], p, foot)


def sample(seed: int, n: int = 400) -> Tensor:
    """Points near the corner as well as far away."""
    return normal((n, 2), seed) * 10 ** (3 * random((n, 1), seed + 1) - 2.5)


@each
def test_it_projects(slope: float, rounding: float):
    p = sample(31)
    found, expected = Epigraph(slope, rounding).prox(p, 1.0), nearest(p, slope, rounding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # the scan is coarse in position but sharp in distance: nothing is nearer than what was found
    assert ((found - p).norm(dim=1) <= (expected - p).norm(dim=1) + 1e-12).all()
    assert (found[:, 1] >= leaky(found[:, 0], slope, rounding) - 1e-12).all()


@each
def test_every_piece_is_visited(slope: float, rounding: float):
    f, p = Epigraph(slope, rounding), sample(31)
    x = f.prox(p, 1.0)[:, 0]
    moved = p[:, 1] < leaky(p[:, 0], slope, rounding)
    pieces = {
        "above": ~moved,
        "left": moved & (x < 0),
        "right": moved & (x > rounding),
        "between": moved & ((x > 0) & (x < rounding) if rounding else x == 0),
    }
    assert all(int(piece.sum()) >= 3 for piece in pieces.values()), {
        k: int(v.sum()) for k, v in pieces.items()
    }


@each
def test_moreau_splits_every_point(slope: float, rounding: float):
    f, p = Epigraph(slope, rounding), sample(33)
    for step in (0.25, 3.0):
        a, s = f.prox(p / step, 1 / step), f.prox_conjugate(p, step)
        torch.testing.assert_close(step * a + s, p, rtol=1e-13, atol=1e-13)
        assert (f.gap(a, s) <= 1e-12 * (1 + p.square().sum(dim=1))).all()


@each
def test_what_is_above_stays(slope: float, rounding: float):
    f, p = Epigraph(slope, rounding), sample(35)
    p[:, 1] = leaky(p[:, 0], slope, rounding) + p[:, 1].abs()
    assert torch.equal(f.prox(p, 1.0), p) and not f.prox_conjugate(p, 1.0).any()
    assert torch.isfinite(f.value(p)).all()
    assert torch.isinf(f.value(p - torch.tensor([0.0, 100.0]))).all()


@each
def test_float32_keeps_its_digits_at_every_size(slope: float, rounding: float):
    f, p = Epigraph(slope, rounding), sample(37).float()
    for which in ("prox", "prox_conjugate"):
        rough, exact = getattr(f, which)(p, 0.7), getattr(f, which)(p.double(), 0.7)
        assert ((rough - exact).abs().amax(dim=1) <= 4e-7 * (rounding + p.abs().amax(dim=1))).all()
    assert torch.isfinite(f.value(f.prox(p, 0.7))).all()
    assert torch.isfinite(f.conjugate(f.prox_conjugate(p, 0.7))).all()


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_far_points_need_no_more_newton_steps(slope: float):
    """The cubic is solved from a start that knows the scale: any distance to the graph, any
    rounding.
    """
    for rounding in (1e-4, 0.5, 20.0):
        f = Epigraph(slope, rounding)
        x = rounding * torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
        m = slope + (1 - slope) * x / rounding
        for distance in (1e-6, 1.0, 1e4):
            p = torch.stack((x + distance * m, leaky(x, slope, rounding) - distance), dim=1)
            size = 1e-13 * (rounding + distance)
            assert ((f.prox(p, 1.0)[:, 0] - x).abs() <= size).all()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 1, 2)])
def test_blocks_that_are_no_pairs_are_refused(shape):
    with pytest.raises(InputError, match=r"\(b, 2, \.\.\.\).*torch\.stack"):
        Epigraph().prox(torch.zeros(shape), 1.0)
