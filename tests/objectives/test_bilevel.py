"""What a value of the bilevel objective says of its loss: brackets, residuals, corrections."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from learnreg.core.bounds import Kind
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem, gallery
from learnreg.problems.losses import Custom, ScaledSquaredError, SquaredError


def objective(loss: object | None = None, penalty: object = None) -> Bilevel:
    """Of quadratics, whose solutions are known."""
    problem = gallery.quadratic()
    return Bilevel(BilevelProblem(problem.energy, problem.pairs, loss, penalty))


def test_the_penalty_is_part_of_the_loss_and_of_both_ends_of_its_bracket():
    plain, other = objective(), objective(penalty=lambda theta: 3 + theta.square().sum())
    one, two = (o.evaluate(o.theta, 0.1) for o in (plain, other))
    extra = 3 + float(plain.theta.square().sum())
    assert one.lower < one.loss < one.upper
    for end in ("lower", "loss", "upper"):
        assert getattr(two, end) == pytest.approx(getattr(one, end) + extra, rel=1e-12)


@pytest.mark.parametrize("kind", Kind, ids=lambda k: k.name)
def test_a_bracket_is_known_no_better_than_its_solution_and_its_loss(kind):
    exact = objective()
    point = exact.evaluate(exact.theta, 0.1)
    known = exact._value(exact.theta, point.posed, replace(point.solution, kind=kind), 0.1)
    assert known.kind == min(kind, Kind.EXACT)
    estimated = objective(Custom(SquaredError().value))
    known = estimated._value(exact.theta, point.posed, replace(point.solution, kind=kind), 0.1)
    assert known.kind == min(kind, Kind.ESTIMATE)


@pytest.mark.parametrize("factor", [0.09, 1.0, 16.0])
def test_residuals_are_as_exact_as_they_are_asked_for_and_no_more(factor):
    """sqrt(2 g) changes by at most sqrt(L_g) ||x~ - x||; at that distance it is attained."""
    asked = objective(ScaledSquaredError(factor))
    tolerance = 1e-2
    eps = asked.distance_for(tolerance)
    point = asked.evaluate(asked.theta, eps)

    x, truth = point.solution.value, asked.problem.truth
    solution = replace(point.solution, error=torch.full_like(point.error, eps))
    found = replace(point, solution=solution).residuals(pixels=False)
    assert found.error == pytest.approx(tolerance, rel=1e-12)

    away = (x - truth) / (x - truth).flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
    moved = replace(point, solution=replace(point.solution, value=x + eps * away))
    change = moved.residuals(pixels=False).values - found.values
    assert torch.allclose(change, torch.full_like(change, found.error), rtol=1e-9)


def test_the_error_of_residuals_is_that_of_the_worst_image():
    asked = objective()
    point = asked.evaluate(asked.theta, 0.1)
    errors = torch.linspace(1e-3, 0.1, asked.size, dtype=torch.float64)
    worst = replace(point, solution=replace(point.solution, error=errors))
    assert worst.residuals(pixels=False).error == pytest.approx(0.1)


def test_a_corrected_loss_is_of_second_order():
    asked = objective()
    exact = asked.evaluate(asked.theta, 1e-12)
    x, errors = exact.solution.value, []
    for size in (1e-3, 1e-4):
        at = asked.problem.energy.at(asked.problem.data)
        moved = x + size * torch.ones_like(x)
        solution = replace(exact.solution, value=moved, gradient=at.grad(moved))
        point = asked._value(asked.theta, exact.posed, solution, size)
        adjoint = asked.gradient(point, 1e-12).adjoint
        assert point.corrected(None) == point.loss
        errors.append(abs(point.corrected(adjoint) - exact.loss))
        assert errors[-1] < 0.1 * abs(point.loss - exact.loss)
    assert math.log10(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1)
