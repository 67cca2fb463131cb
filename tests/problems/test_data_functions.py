"""Data terms against formulas written down once more, difference quotients and dense matrices."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from learnreg.core.bounds import Constants, Kind
from learnreg.problems import KL, L2, Foreign, Huber, WeightedL2
from learnreg.problems.fidelity import data_constants

SHAPE = (3, 1, 4, 5)
H = 1e-6


def random(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(SHAPE, generator=g, dtype=torch.float64)


def of_counts(a: float, y: float, background: float = 0.7, gain: float = 2.5) -> float:
    """u - y log u with u = a / gain + r; below a = 0 its parabola there."""
    if a >= 0:
        u = a / gain + background
        return u - y * math.log(u)
    r, t = background, a / gain
    return r - y * math.log(r) + (1 - y / r) * t + 0.5 * y / r**2 * t**2


def of_huber(a: float, y: float, threshold: float = 0.3, weight: float = 1.7) -> float:
    t = abs(a - y)
    return weight * (0.5 * t * t if t <= threshold else threshold * (t - 0.5 * threshold))


WEIGHTS = 0.1 + random(1)[:1]

TERMS = {
    "l2": (L2(0.4), lambda a, y: 0.5 * (a - y) ** 2 / 0.4**2),
    "huber": (Huber(0.3, 1.7), of_huber),
    "counts": (KL(0.7, 2.5), of_counts),
    "foreign": (
        Foreign(lambda a, y: (a - 2 * y).cosh().flatten(1).sum(dim=1)),
        lambda a, y: math.cosh(a - 2 * y),
    ),
    "weighted": (WeightedL2(WEIGHTS), None),
}

each = pytest.mark.parametrize("name", TERMS)


def setting(name: str):
    """The function, and points on all of its branches."""
    y = (4 * random(2)).round() if name == "counts" else random(2)
    a = 6 * random(3) - 2 if name == "counts" else y + 2 * random(3) - 1
    return TERMS[name][0].tie(y), a, y


def test_values_are_those_of_the_formulas():
    for name, (_, formula) in TERMS.items():
        f, a, y = setting(name)
        if formula is None:
            expected = (0.5 * WEIGHTS * (a - y) ** 2).flatten(1).sum(dim=1)
        else:
            entries = zip(a.flatten(1).tolist(), y.flatten(1).tolist(), strict=True)
            sums = [sum(map(formula, *both)) for both in entries]
            expected = torch.tensor(sums, dtype=torch.float64)
        torch.testing.assert_close(f.value(a), expected)


def test_slopes_and_curvatures_are_difference_quotients():
    for name in TERMS:
        f, a, _ = setting(name)
        v = random(4) - 0.5
        slope = (f.value(a + H * v) - f.value(a - H * v)) / (2 * H)
        torch.testing.assert_close((f.grad(a) * v).flatten(1).sum(dim=1), slope, msg=name)
        bend = (f.grad(a + H * v) - f.grad(a - H * v)) / (2 * H)
        found = f.linearize(a)(v)
        torch.testing.assert_close(found, bend, rtol=1e-5, atol=1e-6, msg=name)


def test_constants_hold_and_are_attained():
    for name in ("l2", "huber", "counts", "weighted"):
        f, a, y = setting(name)
        constants = f.constants()
        seen = torch.cat([f.curvature(p) for p in (a, y, 0 * y, y + 100)], dim=1).flatten(1)
        assert (seen >= constants.mu[:, None] * (1 - 1e-12)).all(), name
        assert (seen <= constants.L[:, None] * (1 + 1e-12)).all(), name
        attained = constants.L.expand(SHAPE[0])
        torch.testing.assert_close(seen.amax(dim=1), attained, msg=name)
        least = constants.mu.expand(SHAPE[0])
        torch.testing.assert_close(seen.amin(dim=1), least, rtol=1e-9, atol=1e-3, msg=name)


def test_what_is_passed_back_to_the_data_is_a_difference_quotient():
    for name, (term, _) in TERMS.items():
        f, a, y = setting(name)
        w, e = random(5) - 0.5, random(6)
        # to one side only: no counts below zero
        moved = (term.tie(y + H * e).grad(a) - term.tie(y).grad(a)) / H
        expected = -(moved * w).flatten(1).sum(dim=1)
        found = (f.to_data(a, w) * e).flatten(1).sum(dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=name)


# --- with an operator in between ------------------------------------------------------------------


def constants(mu: float, L: float, kinds: tuple[Kind, Kind]) -> Constants:
    return Constants(*(torch.tensor([v], dtype=torch.float64) for v in (mu, L)), *kinds)


def bounds_of(m: float, M: float, singular: Tensor, kinds=(Kind.EXACT,) * 2, of_map=None):
    s, S = float(singular.min()) ** 2, float(singular.max()) ** 2
    spectrum = constants(s, S, of_map or (Kind.EXACT,) * 2)
    function = SimpleNamespace(constants=lambda: constants(m, M, kinds))
    operator = SimpleNamespace(spectrum=lambda x: spectrum)
    return data_constants(function, operator, torch.zeros(1))


@pytest.mark.parametrize("m, M", [(0.5, 2.0), (0.0, 1.0), (-0.4, 1.0), (-3.0, 1.0)])
def test_curvature_through_an_operator_is_bounded_and_the_bound_attained(m, M):
    g = torch.Generator().manual_seed(0)
    singular = torch.tensor([0.3, 0.7, 1.0, 1.6], dtype=torch.float64)
    found = bounds_of(m, M, singular)
    for trial in range(200):
        square = torch.randn(2, 4, 4, generator=g, dtype=torch.float64)
        U, V = torch.linalg.qr(square).Q
        A = U @ torch.diag(singular) @ V
        weights = m + (M - m) * torch.rand(4, generator=g, dtype=torch.float64)
        if trial % 2:
            weights = torch.tensor([m, M], dtype=torch.float64)[(weights > 0.5 * (m + M)).long()]
        values = torch.linalg.eigvalsh(A.T @ torch.diag(weights) @ A)
        assert values.min() >= float(found.mu) - 1e-12
        assert values.abs().max() <= float(found.L) + 1e-12
    extremes = [w * s**2 for w in (m, M) for s in singular.tolist()]
    assert float(found.mu) == pytest.approx(min(extremes))
    assert float(found.L) == pytest.approx(max(map(abs, extremes)))


def test_a_negative_curvature_is_known_as_well_as_the_norm_that_it_is_multiplied_with():
    singular = torch.ones(2, dtype=torch.float64)
    guessed = (Kind.BOUND, Kind.ESTIMATE)
    assert bounds_of(0.5, 1.0, singular, of_map=guessed).mu_kind == Kind.BOUND
    assert bounds_of(-0.5, 1.0, singular, of_map=guessed).mu_kind == Kind.ESTIMATE
    assert bounds_of(0.5, 1.0, singular, of_map=guessed).L_kind == Kind.ESTIMATE
