"""Bounds of pixels as they are said, and tied to images."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.core.constraints import EVERYWHERE, Interval, as_constraint, domain_of, masked
from learnreg.core.errors import InputError

INF = math.inf


def images(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 4, 5, generator=g, dtype=dtype)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lr.NonNegative(), "x >= 0"),
        (lr.Between(), "x >= 0"),
        ((0, 1), "0 <= x <= 1"),
        ([None, 2.5], "x <= 2.5"),
        (lr.Between(-INF, 1), "x <= 1"),
        (lr.Between(torch.zeros(1, 1, 4, 5), INF), "x >= lower"),
        (lr.Between(torch.tensor(0.5), None), "x >= 0.5"),
    ],
)
def test_a_constraint_reads_as_it_was_said(given, words):
    constraint = as_constraint(given)
    assert constraint is not None and constraint.words == words and words in repr(constraint)


@pytest.mark.parametrize("nothing", [None, (None, None), lr.Between(None), (-INF, INF)])
def test_what_bounds_nothing_is_no_constraint(nothing):
    assert as_constraint(nothing) is None


def test_constraints_are_values():
    per_pixel = torch.rand(1, 1, 4, 5)
    for one in (lr.NonNegative(), lr.Between(0, 1), lr.Between(per_pixel, 2.0)):
        again = pickle.loads(pickle.dumps(one))
        assert again == one and hash(again) == hash(one)
    assert lr.NonNegative() == lr.Between(0.0) != lr.Between(0, 1)
    assert lr.Between(per_pixel) != lr.Between(per_pixel + 1) != lr.Between(0.0) != "x >= 0"


@pytest.mark.parametrize(
    "arguments",
    [
        {"lower": math.nan},
        {"lower": INF},
        {"upper": -INF},
        {"lower": 1, "upper": 0},
        {"lower": True},
        {"lower": 1j},
        {"lower": "0"},
        {"upper": 1e300},
        {"lower": torch.zeros(5)},
        {"lower": torch.zeros(1, 1, dtype=torch.complex64)},
        {"lower": torch.ones(1, 2) > 0},
        {"lower": torch.zeros(1, 2, requires_grad=True)},
        {"lower": torch.full((1, 2), math.nan)},
        {"lower": torch.zeros(1, 2).to_sparse()},
        {"lower": torch.zeros(1, 3), "upper": torch.zeros(1, 2)},
        {"lower": torch.tensor([[0.0, 2.0]]), "upper": 1.0},
    ],
)
def test_what_is_no_bound_is_refused(arguments):
    with pytest.raises(InputError) as error:
        lr.Between(**arguments)
    assert (error.value.remedy and "lower" in str(error.value)) or "upper" in str(error.value)


@pytest.mark.parametrize("wrong", [0.0, "x >= 0", (0,), (0, 1, 2), torch.zeros(2), lr.Between])
def test_what_is_no_constraint_is_refused(wrong):
    with pytest.raises(InputError, match="constraint"):
        as_constraint(wrong)


@pytest.mark.parametrize(
    "shape", [(2, 4, 5), (1, 4, 5), (1, 1, 4, 6), (2, 2, 4, 5), (1, 1, 1, 4, 5)]
)
def test_bounds_of_other_images_are_refused(shape):
    with pytest.raises(InputError, match=r"constraint\.upper") as error:
        lr.Between(-10.0, torch.zeros(shape)).tied(images())
    assert error.value.remedy
    assert ("params" in error.value.remedy) == (shape == (2, 2, 4, 5))


@pytest.mark.parametrize("seed", range(4))
def test_bounds_are_the_same_numbers_in_every_type_and_lie_inside(seed):
    """Whatever is inside in float32 is so in float64, at the bound included, and back."""
    g = torch.Generator().manual_seed(seed)
    low = torch.randn(1, 2, 4, 5, generator=g, dtype=torch.float64)
    width = 10.0 ** (-12 * torch.rand(low.shape, generator=g, dtype=torch.float64))
    width[..., 0] = 0
    constraint = lr.Between(low, low + width)
    narrow, wide = constraint.tied(images().float()), constraint.tied(images())
    assert narrow.lower.dtype == torch.float32 and wide.lower.dtype == torch.float64
    assert torch.equal(narrow.double().lower, wide.lower)
    assert torch.equal(narrow.double().upper, wide.upper)
    assert (wide.lower <= wide.upper).all()
    apart = width > 1e-6
    assert (wide.lower >= low)[apart].all() and (wide.upper <= low + width)[apart].all()
    assert ((wide.lower - low).abs() <= 1.2e-7 * low.abs()).all()

    x = 3 * images(seed)
    inside = narrow.project(x.float())
    assert narrow.contains(inside).all() and wide.contains(inside.double()).all()
    assert narrow.contains(wide.project(x).float()).all()
    at = (inside == narrow.lower) | (inside == narrow.upper)
    assert torch.equal(at, (inside.double() == wide.lower) | (inside.double() == wide.upper))


def test_the_projection_is_the_nearest_image_inside():
    x, box = 2 * images(), lr.Between(-0.5, torch.rand(1, 2, 4, 5)).tied(images())
    near = box.project(x)
    assert box.contains(near).all() and not box.contains(x).any()
    for seed in range(20):
        other = box.project(3 * images(seed))
        assert ((x - near).flatten(1).norm(dim=1) <= (x - other).flatten(1).norm(dim=1)).all()
    assert torch.equal(box.project(near), near)


def test_nan_is_inside_of_nothing():
    x = images()
    x[1, 0, 0, 0] = math.nan
    box = lr.NonNegative().tied(x)
    assert box.contains(box.project(x)).tolist() == [True, False, True]


def test_the_projected_gradient_is_the_gradient_less_what_a_bound_holds():
    """It is the derivative of -t -> P(x + t d), d = -g, at t = 0 from the right."""
    x, g = images(1), images(2)
    box = lr.Between(-0.5, 0.5).tied(x)
    x = box.project(x)
    assert ((x.abs() == 0.5).sum(), (x.abs() < 0.5).sum()) != (0, 0)
    t = 1e-9
    expected = (x - box.project(x - t * g)) / t
    torch.testing.assert_close(box.slope(x, g), expected, rtol=1e-5, atol=1e-5)
    fixed = lr.Between(0.25, 0.25).tied(x)
    assert (fixed.slope(fixed.project(x), g) == 0).all()


def test_certain_sets_are_certain_and_the_others_undecided():
    """All x* within eps, and all gradients within L eps, that agree with the optimality system have
    the certain pixels in the set that was told.
    """
    g = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, 40, 50, generator=g, dtype=torch.float64)
    x[torch.rand(x.shape, generator=g) < 0.4] = 0
    slope = torch.randn(x.shape, generator=g, dtype=torch.float64)
    eps, L = torch.tensor([0.1]), 3.0
    box = lr.Between(0.0, 0.9).tied(x)
    x = box.project(x)
    active, undecided = box.undecided(x, slope, eps.double(), L * eps.double())
    assert 0 < int(undecided.sum()) < x.numel() and not (active & undecided).any()
    free = ~(active | undecided)
    assert ((x[free] > 0.1) & (x[free] < 0.8)).all()
    assert (slope[active].abs() > 0.3).all()
    # a pixel inside whose slope is far from zero is told to be at its bound
    assert (active & (x > 0) & (x < 0.9)).any()


def test_parts_of_the_batch_and_windows():
    x, lower = images(), torch.rand(3, 1, 4, 5)
    box = lr.Between(lower, 2.0).tied(x)
    index = torch.tensor([2, 0])
    assert torch.equal(box.select(index).project(x[index]), box.project(x)[index])
    rows, columns = slice(1, 3), slice(0, 4)
    part = box.window(rows, columns).project(x[..., rows, columns])
    assert torch.equal(part, box.project(x)[..., rows, columns])
    plain = lr.Between(0, 1).tied(x)
    assert plain.select(index).lower.shape == (1, 1, 1, 1)
    assert torch.equal(plain.window(rows, columns).upper, plain.upper)


def test_without_bounds_nothing_is_touched():
    x, g = images(1), images(2)
    domain = domain_of(object())
    assert domain is EVERYWHERE and domain.everywhere
    assert domain.project(x) is x and domain.slope(x, g) is g and domain.contains(x).all()
    assert domain.inside(x) is None and domain.movable(x, g, torch.ones(3)) is None
    assert masked(g, None) is g
    assert not Interval(x, x).everywhere
