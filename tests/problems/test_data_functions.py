"""Data terms against formulas written down once more, difference quotients and dense matrices."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from deepinv.physics import Blur, BlurFFT, Denoising, GaussianNoise, Inpainting
from torch import Tensor

from learnreg.core.bounds import Constants, Kind
from learnreg.problems import KL, L2, Energy, Foreign, Huber, SaddleEnergy, WeightedL2
from learnreg.problems.fidelity import data_constants
from learnreg.regularizers import TV, ExactTV

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


def test_blocks_of_saddle_points_are_the_same_functions():
    """Up to a constant: those of counts have y log y besides."""
    for name in ("l2", "huber", "counts", "weighted"):
        f, a, y = setting(name)
        term = TERMS[name][0]
        if name == "counts":  # saddle points take no gain
            a, term = a.abs(), KL(0.7)
            f = term.tie(y)
        block, b = term.of_data(y), a.flip(-1)
        expected = f.value(a) - f.value(b)
        torch.testing.assert_close(block.value(a) - block.value(b), expected, msg=name)


@pytest.mark.parametrize("tikhonov", [0.0, 0.3])
@pytest.mark.parametrize("masked", [True, False])
def test_data_terms_of_the_image_are_the_same_functions(masked, tikhonov):
    """D(Au, y) + tikhonov/2 |u|^2 up to a constant, where its prox is known."""
    mask = (random(7)[:1, 0] > 0.3).double() * (0.5 + random(8)[:1, 0])
    physics = Inpainting(SHAPE[1:], mask=mask) if masked else Denoising(GaussianNoise(0.1))
    y = physics.A(random(2))
    for term in (L2(0.4), *(() if masked else (WeightedL2(WEIGHTS),))):
        f = SaddleEnergy(physics, ExactTV(0.1), term, tikhonov=tikhonov).double().at(y)
        assert not f.data
        u, v = random(9), random(10)

        def exact(x: Tensor, term=term) -> Tensor:
            ridge = 0.5 * tikhonov * x.square().flatten(1).sum(dim=1)
            return term.tie(y).value(physics.A(x)) + ridge

        g = f.primal[0]
        torch.testing.assert_close(g.value(u) - g.value(v), exact(u) - exact(v))
        if term == L2(0.4) and not masked:
            assert f.bounds().mu.value == pytest.approx(1 / 0.4**2 + tikhonov)


@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_the_norm_of_a_data_block_is_that_of_the_operator(scale):
    kernel = random(12)[:1, :, :3, :3]
    physics = BlurFFT(SHAPE[1:], filter=scale * kernel / kernel.sum()).double()
    f = SaddleEnergy(physics, ExactTV(0.1), tikhonov=0.1).double().at(physics.A(random(2)))
    pixels = torch.eye(20, dtype=torch.float64).view(20, *SHAPE[1:])
    exact = float(torch.linalg.matrix_norm(physics.A(pixels).flatten(1), 2))
    assert f.data and f.norms[0][0] == pytest.approx(exact, rel=1e-3)


def test_any_dual_variable_is_scaled_into_the_domains_with_the_right_sign():
    """Counts have phi*(s) < inf for s < 1 only, and -K^T p is what they are asked at."""
    y = 1 + (4 * random(2)).round()
    f = SaddleEnergy(Denoising(GaussianNoise(0.1)), ExactTV(1.0), KL(0.7)).double().at(y)
    g = torch.Generator().manual_seed(0)
    one_sided = 0
    for _ in range(20):
        x, p = f.start(random(11))
        p = tuple(torch.randn(t.shape, generator=g, dtype=t.dtype) for t in p)
        p = tuple(t / t.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1) for t in p)
        ktp = f.adjoint(p)
        gap = f.gap(x, p, f.apply(x), ktp)
        assert torch.isfinite(gap).all() and (gap >= 0).all()
        least, most = ktp[0].flatten(1).amin(dim=1), ktp[0].flatten(1).amax(dim=1)
        one_sided += int(((-least > 1) & (most < -least)).sum())
    assert one_sided > 5, "a gauge of K^T p itself would leave these outside"


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


@pytest.mark.parametrize("name", ["l2", "huber", "counts"])
def test_an_energy_passes_back_what_its_slope_takes_from_the_data(name):
    """-(d/dy grad h(x))^T q, with the data term linearized at A x."""
    kernel = random(12)[:1, :, :3, :3]
    physics = Blur(filter=kernel / kernel.sum(), padding="circular").double()
    energy = Energy(physics, TV(0.1, 0.1), TERMS[name][0]).double()
    _, x, y = setting(name)
    q, e = random(13) - 0.5, random(14)
    moved = (energy.at(y + H * e).grad(x) - energy.at(y).grad(x)) / H
    found = (energy.at(y).to_data(x, q) * e).flatten(1).sum(dim=1)
    expected = -(moved * q).flatten(1).sum(dim=1)
    assert (expected.abs() > 1e-3).all()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
