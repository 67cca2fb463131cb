"""Curvature pairs: the two-loop recursion is BFGS, and only clear positive curvature is learned."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learnreg.learners.curvature import FORGET, CurvaturePairs, diagonal_metric, mean_squares

D = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(seed: int = 9) -> Tensor:
    """Scales that differ by orders of magnitude."""
    return torch.exp(2 * normal(D, seed=seed))


def spd(seed: int = 1) -> Tensor:
    """A Hessian in natural units, so that quadratic pairs have positive curvature."""
    a, u = normal(D, D, seed=seed), units()
    return (a @ a.T + 0.1 * torch.eye(D, dtype=torch.float64)) / torch.outer(u, u)


def collected(
    count: int, memory: int = 20, u: Tensor | None = None
) -> tuple[CurvaturePairs, list[tuple]]:
    """Pairs of a quadratic, added one after the other, and the list of all."""
    u = units() if u is None else u
    pairs, given, hessian = CurvaturePairs.empty(torch.zeros(D, dtype=torch.float64)), [], spd()
    for k in range(count):
        s = u * normal(D, seed=100 + k)
        given.append((s, hessian @ s))
        pairs = pairs.add(*given[-1], memory, u)
    return pairs, given


def dense_bfgs(given: list[tuple[Tensor, Tensor]], u: Tensor) -> Tensor:
    """The inverse BFGS matrix: H <- (I - rho s y^T) H (I - rho y s^T) + rho s s^T, from scaled
    squared units.
    """
    h, eye = torch.diag(u**2), torch.eye(D, dtype=torch.float64)
    if given:
        s, y = given[-1]
        h = h * (s @ y) / (y @ h @ y)
    for s, y in given:
        rho = 1 / (s @ y)
        left = eye - rho * torch.outer(s, y)
        h = left @ h @ left.T + rho * torch.outer(s, s)
    return h


def matrix(pairs: CurvaturePairs, u: Tensor) -> Tensor:
    """P as a dense matrix, column by column."""
    return torch.stack([pairs.direction(e, u**2) for e in torch.eye(D, dtype=torch.float64)], dim=1)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("scaled", [True, False], ids=["units", "no_units"])
def test_the_two_loops_are_the_dense_matrix(count, scaled):
    u = units() if scaled else torch.ones(D, dtype=torch.float64)
    pairs, given = collected(count, u=u)
    assert len(pairs) == count
    expected = dense_bfgs(given, u)
    assert torch.allclose(
        matrix(pairs, u), expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max())
    )


def test_without_pairs_it_is_scaled_steepest_descent():
    pairs, _ = collected(0)
    z = normal(D)
    assert pairs.direction(z, units() ** 2).equal(units() ** 2 * z)
    assert pairs.direction(z, torch.ones_like(z)).equal(z)


@pytest.mark.parametrize("count", [1, 3, 9])
def test_it_is_symmetric_and_positive_definite(count):
    pairs, _ = collected(count)
    u = units()
    natural = matrix(pairs, u) / torch.outer(u, u)  # congruent, and of a sensible scale
    assert torch.allclose(natural, natural.T, rtol=1e-8, atol=1e-10 * float(natural.abs().max()))
    assert torch.linalg.eigvalsh(0.5 * (natural + natural.T)).min() > 0
    for seed in range(20):
        z = normal(D, seed=seed) / u
        assert pairs.direction(z, u**2) @ z > 0


def test_the_newest_pair_is_met_exactly():
    """The secant equation: P y = s."""
    pairs, given = collected(4)
    s, y = given[-1]
    assert torch.allclose(pairs.direction(y, units() ** 2), s, rtol=1e-10, atol=0)


def test_a_change_of_units_changes_nothing_but_the_units():
    """In theta' = theta / c the pairs are s / c and c y, and the direction is d / c."""
    pairs, _ = collected(4)
    c, u, z = torch.exp(normal(D, seed=3)), units(), normal(D, seed=4)
    moved = CurvaturePairs(pairs.s / c, pairs.y * c)
    assert torch.allclose(
        moved.direction(c * z, (u / c) ** 2), pairs.direction(z, u**2) / c, rtol=1e-9
    )


@pytest.mark.parametrize("curvature", [-1.0, 0.0, 1e-6], ids=["negative", "zero", "faint"])
def test_what_is_not_clearly_positive_curvature_is_refused(curvature):
    pairs, _ = collected(2)
    u = units()
    s = torch.zeros(D, dtype=torch.float64)
    s[0] = 1
    y = torch.zeros_like(s)
    y[0], y[1] = (
        curvature / u[0],
        1 / u[1],
    )  # <s, y> is ``curvature`` times the natural sizes of both
    assert pairs.add(s, y, 20, u) is pairs


def test_a_pair_that_is_not_finite_is_refused():
    pairs, given = collected(1)
    s, y = given[0]
    assert pairs.add(s, y * float("nan"), 20, units()) is pairs


def test_the_measure_of_curvature_knows_the_units():
    """s along a coordinate with a large unit and y along its small partner: fine in natural units,
    faint without.
    """
    u = torch.tensor([1e4, 1e-4, 1, 1, 1, 1], dtype=torch.float64)
    s = torch.tensor([1e4, 1e-4, 0, 0, 0, 0], dtype=torch.float64)
    y = torch.tensor([1e-4, 1e4, 0, 0, 0, 0], dtype=torch.float64)
    empty, _ = collected(0)
    assert len(empty.add(s, y, 20, u)) == 1
    assert len(empty.add(s, y, 20, torch.ones_like(u))) == 0


@pytest.mark.parametrize("memory", [0, 1, 3])
def test_memory_is_a_limit_and_the_oldest_goes_first(memory):
    pairs, given = collected(5, memory)
    assert len(pairs) == memory
    kept = given[len(given) - memory :]
    assert all(row.equal(s) for row, (s, _) in zip(pairs.s, kept, strict=True))
    assert all(row.equal(y) for row, (_, y) in zip(pairs.y, kept, strict=True))


def test_adding_leaves_the_old_pairs_as_they_were():
    pairs, _ = collected(2)
    before = pairs.s.clone(), pairs.y.clone()
    s = normal(D, seed=55) * units()
    longer = pairs.add(s, spd() @ s, 20, units())
    assert len(longer) == 3 and len(pairs) == 2
    assert pairs.s.equal(before[0]) and pairs.y.equal(before[1])


def test_the_metric_without_a_history_is_that_of_the_units():
    assert diagonal_metric(None, units()).equal(units() ** 2)
    assert diagonal_metric(torch.zeros(D, dtype=torch.float64), units()).equal(units() ** 2)


@given(seed=st.integers(0, 2**31), spread=st.floats(0.0, 20.0), power=st.floats(-100.0, 100.0))
def test_the_metric_is_positive_and_knows_ratios_only(seed, spread, power):
    """Gradients sixteen times as large take a quarter of the step; a factor common to all changes
    nothing.
    """
    squares = torch.exp(spread * normal(D, seed=seed))
    metric = diagonal_metric(squares, units())
    assert bool((metric > 0).all()) and bool(torch.isfinite(metric).all())
    assert torch.allclose(diagonal_metric(10**power * squares, units()), metric, rtol=1e-9)
    assert math.isclose(float((metric / units() ** 2).log().mean()), 0.0, abs_tol=1e-9)
    larger = torch.ones(D, dtype=torch.float64)
    larger[0] = 256.0
    ratio = diagonal_metric(larger, torch.ones_like(larger))
    assert float(ratio[1] / ratio[0]) == pytest.approx(4.0, rel=0.02)  # 256 to the power 1/4


def test_the_mean_of_squares_is_taken_in_units_and_forgets():
    z, other, u = normal(D, seed=1), normal(D, seed=2), units()
    first = mean_squares(None, z, u)
    assert first.equal((u * z) ** 2)
    assert torch.allclose(
        mean_squares(first, other, u), FORGET * first + (1 - FORGET) * (u * other) ** 2
    )
