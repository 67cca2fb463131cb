"""The contract of a regularizer: every case of ``cases.py`` inherits every test of this file."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.regularizers.cases import CASES, PLAIN, Case, foe, hessian, plain, tv
from torch import Tensor, nn

from learnreg.core.bounds import Kind
from learnreg.core.errors import InputError, ModelFileError
from learnreg.core.params import flatten, trainable, with_theta
from learnreg.operators import taylor_test
from learnreg.regularizers import (
    TV,
    BlackBox,
    FoE,
    HuberTV,
    Regularizer,
    Scaled,
    Sum,
    Tikhonov,
    from_spec,
    profiles,
)

RADII = (1e-3, 3e-2, 0.3, 1.0)


@pytest.fixture(params=[c for c in CASES if c.certified], ids=lambda case: case.name)
def certified_case(request):
    """Those that offer ``hessian_change`` and its like."""
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def theta_of(r: Regularizer) -> Tensor:
    return flatten(trainable(r)).double()


def mixed_adjoint(r: Regularizer, x: Tensor, v: Tensor) -> Tensor:
    """J(x_i)^T v_i for every image of the batch: (b, d)."""
    params, b = trainable(r), x.shape[0]
    if not params:
        return torch.zeros(b, 0, dtype=x.dtype)
    grads = torch.autograd.grad(
        r.directional(x, v), params, torch.eye(b, dtype=x.dtype), is_grads_batched=True
    )
    return torch.cat([g.reshape(b, -1) for g in grads], dim=1)


def mixed_matrix(r: Regularizer, x: Tensor) -> Tensor:
    """J(x), (n, d), for one image (1, c, h, w)."""
    n = x.numel()
    return mixed_adjoint(
        r, x.expand(n, *x.shape[1:]), torch.eye(n, dtype=x.dtype).view(n, *x.shape[1:])
    )


def dense(r: Regularizer, x: Tensor) -> Tensor:
    """The Hessian at one image (1, c, h, w) as a matrix."""
    return hessian(r.linearize(x.expand(x.numel(), *x.shape[1:])), tuple(x.shape[1:]))


def spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0


# --- derivatives ----------------------------------------------------------------------------------


def test_value_is_that_of_the_plain_formula(case):
    r = case.make()
    if type(r) not in PLAIN:
        pytest.skip("no plain formula is given")
    x = case.images()
    assert r.value(x).shape == (x.shape[0],)
    same(r.value(x), plain(r, x))


def test_derivatives_are_autograd_of_the_plain_formula(case):
    r, x = case.make(), case.images().requires_grad_()
    if type(r) not in PLAIN:
        pytest.skip("no plain formula is given")
    v = normal(*x.shape)
    (gradient,) = torch.autograd.grad(plain(r, x).sum(), x, create_graph=True)
    same(r.grad(x.detach()), gradient.detach())
    slope = (gradient * v).sum()
    (product,) = torch.autograd.grad(slope, x, retain_graph=True)
    same(r.hvp(x.detach(), v), product)
    params = trainable(r)
    mixed = torch.autograd.grad(slope, params, allow_unused=True) if params else ()
    wanted = torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.reshape(-1)
            for p, g in zip(params, mixed, strict=True)
        ]
        or [torch.zeros(0)]
    )
    same(mixed_adjoint(r, x.detach(), v).sum(dim=0), wanted.double())


def test_gradient_is_the_difference_quotient_of_the_value(case):
    r, h = case.make(), 1e-6
    for x in case.images()[[0, 2, 4]]:
        steps = h * torch.eye(case.pixels, dtype=torch.float64).view(-1, *case.shape)
        quotient = (r.value(x + steps) - r.value(x - steps)) / (2 * h)
        same(r.grad(x[None]).flatten(), quotient, 1e-7)


def test_gradient_passes_the_taylor_test(case):
    r, x = case.make(), case.images()[[0, 4, 6]]
    remainder_is_rounding = r.value(x).abs().max() == 0  # scaled by zero
    assert remainder_is_rounding or (taylor_test(r.value, r.grad, x) > 1.7).all()


def test_hessian_is_the_difference_quotient_of_the_gradient(case):
    r, x = case.make(), case.images()
    v, h = normal(*x.shape), 1e-6
    quotient = (r.grad(x + h * v) - r.grad(x - h * v)) / (2 * h)
    curvature = (
        r.bounds().L.value / 0.01 if case.bounded else 1.0
    )  # a sharp potential leaves a larger remainder
    same(r.hvp(x, v), quotient, 1e-9 * (1 + curvature))


def test_hessian_is_symmetric(case):
    r, x = case.make(), case.images()
    v, w = normal(*x.shape), normal(*x.shape, seed=2)
    left, right = (r.hvp(x, v) * w).flatten(1).sum(dim=1), (v * r.hvp(x, w)).flatten(1).sum(dim=1)
    same(left, right)


def test_a_selected_hessian_is_that_of_the_selected_images(case):
    r, x = case.make(), case.images()
    v, index = normal(*x.shape), torch.tensor([5, 0, 3])
    h = r.linearize(x)
    same(h.select(index)(v[index]), h(v)[index])
    same(h.select(index).select(torch.tensor([2]))(v[3:4]), h(v)[3:4])


def test_directional_is_the_product_with_the_gradient(case):
    r, x = case.make(), case.images()
    v = normal(*x.shape)
    same(r.directional(x, v).detach(), (r.grad(x) * v).flatten(1).sum(dim=1))


def test_mixed_products_are_difference_quotients_over_theta(case):
    r, x = case.make(), case.images()
    v, theta, h = normal(*x.shape), theta_of(r), 1e-6
    d = theta.numel()
    directions = torch.eye(d, dtype=torch.float64) if d <= 60 else normal(20, d) / math.sqrt(d)

    def slope(t: Tensor) -> Tensor:
        return with_theta(r, t).directional(x, v).detach()

    product = mixed_adjoint(r, x, v)
    assert product.shape == (x.shape[0], d)
    for e in directions:
        same(product @ e, (slope(theta + h * e) - slope(theta - h * e)) / (2 * h), 2e-7)


# --- bounds ---------------------------------------------------------------------------------------


def test_the_spectrum_lies_between_mu_and_L(case):
    r = case.make()
    bounds = r.bounds()
    if not case.bounded:
        pytest.skip("nothing is known of its curvature")
    assert bounds.mu.certified and bounds.L.certified
    extremes = [torch.linalg.eigvalsh(dense(r, x[None]))[[0, -1]] for x in case.images()]
    lowest, highest = (float(e) for e in (min(e[0] for e in extremes), max(e[1] for e in extremes)))
    assert bounds.mu.value <= lowest + 1e-12
    assert highest <= bounds.L.value * (1 + 1e-12)
    if bounds.mu.kind == Kind.EXACT == bounds.L.kind and bounds.L.value > 0:
        assert bounds.L.value == pytest.approx(highest)
    assert bounds.L.value <= 13 * highest, "a bound this loose is of no use"


def test_power_iterations_on_flat_images_stay_below_L(case):
    r = case.make()
    if not case.bounded:
        pytest.skip("nothing is known of its curvature")
    c = case.shape[0]
    x = torch.stack([torch.zeros(c, 20, 20), torch.full((c, 20, 20), 0.5)]).double()
    v, h = normal(*x.shape), r.linearize(x)
    for _ in range(30):
        v = h(v)
        size = v.flatten(1).norm(dim=1)
        v = v / size.clamp_min(1e-300).view(-1, 1, 1, 1)
    assert (size <= r.bounds().L.value * (1 + 1e-12)).all()


def candidates(x: Tensor, q: Tensor, radius: float, seed: int) -> Tensor:
    """Points on the sphere of ``radius`` around one image x (1, ...): along q, single pixels, at
    random.
    """
    n = x.numel()
    axes = torch.eye(n, dtype=x.dtype).view(n, *x.shape[1:])
    flat = torch.ones_like(x)
    directions = torch.cat([q, -q, flat, -flat, axes, -axes, normal(12, *x.shape[1:], seed=seed)])
    return on_sphere(x, directions, radius)


def on_sphere(x: Tensor, directions: Tensor, radius: float) -> Tensor:
    return x + radius * directions / directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def worst(objective, x: Tensor, radius: float, pool: Tensor, tries: int = 8) -> float:
    """The largest value of ``objective`` found in the ball: a pool of points, then a climb from the
    best of them.
    """
    values = objective(pool)
    best, top = pool[values.argmax()], float(values.max())
    for round_ in range(3):
        noise = (
            normal(tries, *x.shape[1:], seed=10 + round_)
            * (0.5**round_)
            * radius
            / math.sqrt(x.numel())
        )
        pool = on_sphere(x, best - x + noise, radius)
        values = objective(pool)
        if float(values.max()) > top:
            best, top = pool[values.argmax()], float(values.max())
    return top


def probes(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Pairs of an image and an adjoint, (1, c, h, w) each."""
    x = case.images()
    spike = torch.zeros_like(x[:1])
    spike[..., 0, 1] = 1
    return [
        (x[:1], normal(1, *case.shape)),
        (x[2:3], spike),
        (x[4:5], normal(1, *case.shape, seed=3)),
        (x[5:6], spike),
    ]


@pytest.mark.parametrize("radius", RADII)
def test_no_hessian_changes_by_more_than_certified(certified_case, radius):
    r = certified_case.make()
    for x, q in probes(certified_case):

        def change(points: Tensor, x: Tensor = x, q: Tensor = q) -> Tensor:
            return (r.linearize(points)(q.expand_as(points)) - r.hvp(x, q)).flatten(1).norm(dim=1)

        certified = float(r.hessian_change(x, q, torch.tensor([radius], dtype=torch.float64)))
        assert (
            worst(change, x, radius, candidates(x, q, radius, seed=5))
            <= certified * (1 + 1e-9) + 1e-14
        )


@pytest.mark.parametrize("radius", RADII)
def test_no_mixed_product_changes_by_more_than_certified(certified_case, radius):
    r = certified_case.make()
    for x, q in probes(certified_case):

        def change(points: Tensor, x: Tensor = x, q: Tensor = q) -> Tensor:
            return (mixed_adjoint(r, points, q.expand_as(points)) - mixed_adjoint(r, x, q)).norm(
                dim=1
            )

        certified = float(r.mixed_change(x, q, torch.tensor([radius], dtype=torch.float64)))
        assert (
            worst(change, x, radius, candidates(x, q, radius, seed=5))
            <= certified * (1 + 1e-9) + 1e-14
        )


@pytest.mark.parametrize("radius", RADII[::2])
def test_no_mixed_derivative_is_larger_than_certified(certified_case, radius):
    r = certified_case.make()
    for x, q in probes(certified_case)[:3]:

        def size(points: Tensor) -> Tensor:
            return torch.tensor(
                [spectral(mixed_matrix(r, p[None])) for p in points], dtype=torch.float64
            )

        directions = torch.cat([q, torch.ones_like(x), x, normal(1, *certified_case.shape)])
        few = torch.cat([x, on_sphere(x, directions, radius)])
        certified = float(r.mixed_norm(x, torch.tensor([radius], dtype=torch.float64)))
        assert worst(size, x, radius, few, tries=3) <= certified * (1 + 1e-9) + 1e-14


def test_hessian_and_mixed_derivative_are_lipschitz_as_stated(certified_case):
    r = certified_case.make()
    hessian_bound, mixed_bound = r.hessian_lipschitz(), r.mixed_lipschitz(reach=2.0)
    assert hessian_bound.certified and mixed_bound.certified
    for x, q in probes(certified_case):
        for radius in RADII[::2]:
            for point in on_sphere(x, torch.cat([q, normal(1, *certified_case.shape)]), radius)[
                :, None
            ]:
                change = spectral(dense(r, point) - dense(r, x))
                assert change <= hessian_bound.value * radius * (1 + 1e-9)
                if max(point.abs().max(), x.abs().max()) <= 2:
                    change = spectral(mixed_matrix(r, point) - mixed_matrix(r, x))
                    assert change <= mixed_bound.value * radius * (1 + 1e-9)


def test_certificates_grow_with_the_radius_and_are_local(certified_case):
    r, x = certified_case.make(), certified_case.images()
    q = normal(*x.shape)
    radii = [torch.full((x.shape[0],), radius, dtype=torch.float64) for radius in RADII]
    for certified in (
        lambda t: r.hessian_change(x, q, t),
        lambda t: r.mixed_change(x, q, t),
        lambda t: r.mixed_norm(x, t),
    ):
        values = [certified(t) for t in radii]
        assert all(v.shape == (x.shape[0],) and v.dtype == torch.float64 for v in values)
        assert all((a <= b * (1 + 1e-12)).all() for a, b in pairwise(values))
    local = r.hessian_change(x, q, radii[0])
    everywhere = r.hessian_lipschitz().value * radii[0] * q.flatten(1).norm(dim=1)
    assert (local <= everywhere * (1 + 1e-12)).all()


# --- scalar potentials: what the certificates are made of -----------------------------------------


GRID = torch.linspace(-6, 6, 2401, dtype=torch.float64)


def third(u: Tensor) -> Tensor:
    return (-3 * u * (1 + u * u) ** -2.5).abs()


def test_scalar_derivatives_are_those_of_the_smoothed_absolute_value():
    u = GRID.clone().requires_grad_()
    wanted, s = [], torch.sqrt(1 + u * u)
    for _ in range(3):
        (s,) = torch.autograd.grad(s.sum(), u, create_graph=True)
        wanted.append(s.detach())
    same(profiles.slope(GRID), wanted[0])
    same(profiles.curvature(GRID), wanted[1])
    same(third(GRID), wanted[2].abs())
    same(profiles.smoothing_slope(GRID), GRID * wanted[1])
    same(profiles.size_minus_one(GRID), torch.sqrt(1 + GRID**2) - 1)
    assert float(
        profiles.size_minus_one(torch.tensor(1e-12, dtype=torch.float64))
    ) == pytest.approx(5e-25)
    assert pytest.approx(float(third(GRID).max()), rel=1e-6) == profiles.THIRD_MAX


@pytest.mark.parametrize("radius", [0.0, 0.1, 0.4, 1.5])
def test_suprema_over_an_interval_are_attained(radius):
    near = GRID[:, None] + radius * torch.linspace(-1, 1, 401, dtype=torch.float64)
    for supremum, function in (
        (profiles.third_sup, third),
        (profiles.curvature_sup, profiles.curvature),
    ):
        seen = function(near).amax(dim=1)
        assert (seen <= supremum(GRID, radius) + 1e-12).all()
        torch.testing.assert_close(seen, supremum(GRID, radius), rtol=1e-2, atol=1e-4)


def test_the_radial_third_derivative_is_bounded():
    """D^3 s(|v|)[a, a, a] over all unit directions a, at |v| = r, by automatic differentiation
    along lines.
    """
    angle = torch.linspace(0, math.pi, 181, dtype=torch.float64)
    r = torch.linspace(0, 6, 241, dtype=torch.float64)[:, None]
    t = torch.zeros(241, 181, dtype=torch.float64, requires_grad=True)
    s = torch.sqrt(1 + r**2 + 2 * r * t * angle.cos() + t**2)
    for _ in range(3):
        (s,) = torch.autograd.grad(s.sum(), t, create_graph=True)
    seen = s.detach().abs().amax(dim=1)
    r = r[:, 0]
    assert (seen <= profiles.third_sup_radial(r, 0.0) + 1e-12).all()
    assert (profiles.third_sup_radial(r, 0.0) <= 1.4 * seen)[r >= 0.5].all(), (
        "and the bound is not absurd"
    )
    for radius in (0.2, 1.0):
        for shift in (-radius, 0.0, radius):
            assert (seen <= profiles.third_sup_radial((r + shift).abs(), radius) + 1e-12).all()


# --- averages of the curvature, for preconditioners -----------------------------------------------


def averages(r: Regularizer, x: Tensor) -> list[Tensor]:
    """The diagonal and the mean symbol at x."""
    mean = r.mean_curvature(x)
    assert (mean is not None) == r.averages
    return [] if mean is None else [mean.diagonal, mean.symbol]


def response(r: Regularizer, channels: int, size: int = 21) -> Tensor:
    """What the Hessian at zero answers to a pixel in the middle, in its own channel: (c, size,
    size).
    """
    spikes = torch.zeros(channels, channels, size, size, dtype=torch.float64)
    own = torch.arange(channels)
    spikes[own, own, size // 2, size // 2] = 1
    return r.hvp(torch.zeros_like(spikes), spikes)[own, own]


def wrapped(kernel: Tensor, h: int, w: int) -> Tensor:
    """(c, s, s) around its middle -> (c, h, w) around pixel 0, on an image that is continued
    periodically.
    """
    s, out = kernel.shape[-1], torch.zeros(kernel.shape[0], h, w, dtype=kernel.dtype)
    for i in range(s):
        for j in range(s):
            out[:, (i - s // 2) % h, (j - s // 2) % w] += kernel[:, i, j]
    return out


def test_averages_of_the_curvature_have_their_shapes_and_signs(case):
    r, x = case.make(), case.images()
    if not r.averages:
        pytest.skip("no averages are offered")
    diagonal, symbol = averages(r, x)
    assert diagonal.shape == x.shape and diagonal.dtype == x.dtype
    assert symbol.shape == (*x.shape[:-1], x.shape[-1] // 2 + 1) and symbol.dtype == x.dtype
    assert diagonal.isfinite().all() and symbol.isfinite().all() and (symbol >= 0).all()
    assert (diagonal > 0).all() or r.bounds().L.value == 0
    assert (diagonal <= r.bounds().L.value * (1 + 1e-9)).all() and (
        symbol <= r.bounds().L.value * (1 + 1e-9)
    ).all()


@pytest.mark.parametrize("size", [None, (5, 5), (5, 8), (9, 8)])
def test_where_curvature_is_constant_the_averages_are_exact(case, size):
    """At zero every potential has its largest curvature, so the Hessian is a convolution up to its
    boundary.
    """
    r, (c, h, w) = case.make(), case.shape if size is None else (case.shape[0], *size)
    if not r.averages:
        pytest.skip("no averages are offered")
    diagonal, symbol = averages(r, torch.zeros(2, c, h, w, dtype=torch.float64))
    kernel = response(r, c)
    periodic = torch.fft.rfft2(wrapped(kernel, h, w))
    strength = 1e-13 + float(kernel.abs().sum())
    assert periodic.imag.abs().max() <= 1e-12 * strength
    same(symbol, periodic.real.expand_as(symbol), 1e-12 * strength)
    if size == (9, 8):
        matrix = dense(r, torch.zeros(1, c, h, w, dtype=torch.float64)).diagonal().view(c, h, w)
        margin = reflected(r)
        inside = (..., slice(margin, h - margin), slice(margin, w - margin))
        assert diagonal[inside].numel() > 0
        same(diagonal[inside], matrix[inside].expand_as(diagonal[inside]))


def reflected(r: Regularizer) -> int:
    """How far from the edge the diagonal is another: copies in the padding (FoE), fewer neighbours
    (TV).
    """
    return max(
        (
            p.kernels.shape[-1] // 2 + 1 if isinstance(p, FoE) else 1
            for p in r.modules()
            if isinstance(p, TV | HuberTV) or (isinstance(p, FoE) and p.padding == "reflect")
        ),
        default=0,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: tv(True),
        lambda: tv(False),
        lambda: foe(padding="zero", init="random"),
        lambda: foe(filters=2, padding="zero", zero_mean=False, init="random"),
    ],
)
def test_where_curvature_varies_its_weights_are_those_between_hessian_and_majorant(make):
    """Potentials sqrt(t^2 + nu^2) have curvature s^-3, their majorants 1 / s: the geometric mean is
    s^-2.
    """
    r, x = make(), Case("", make).images()
    diagonal, symbol = averages(r, x)
    for i in range(x.shape[0]):
        weights, operator = squared_weights(r, x[i : i + 1])
        if isinstance(r, TV):  # its diagonal is flat: that of the mean weights, away from the edges
            same(
                diagonal[i].flatten(),
                (2 * weights.sum(dim=0).mean(dim=(-2, -1)).sum()).expand(x[0].numel()),
            )
        else:
            same(diagonal[i].flatten(), (operator.square() * weights.reshape(-1, 1)).sum(dim=0))
            assert (diagonal[i].flatten() >= dense(r, x[i : i + 1]).diagonal() * (1 - 1e-12)).all()
    flat = averages(r, torch.zeros_like(x))
    assert (diagonal <= flat[0] * (1 + 1e-12)).all() and (symbol <= flat[1] + 1e-12).all()
    assert (symbol[0] < flat[1][0]).any()


def squared_weights(r: Regularizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """(w / nu) / (1 + u^2) of every feature of one image, and the matrix (features, pixels) that
    makes them.
    """
    eye = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    if isinstance(r, TV):
        w, nu = r.log_weight.exp().detach(), r.log_smoothing.exp().detach()
        features = torch.stack([torch.stack(differences(image)) for image in torch.cat([x, eye])])
        square = (features[0] / nu).square()
        square = square.sum(dim=0, keepdim=True).expand_as(square) if r.isotropic else square
        scale = w / nu
    else:
        c, w, nu = r.effective()
        features = nn.functional.conv2d(torch.cat([x, eye]), c, padding=c.shape[-1] // 2)
        square, scale = (features[0] / nu.view(-1, 1, 1)).square(), (w / nu).view(-1, 1, 1)
    return scale / (1 + square), features[1:].flatten(1).T


def differences(image: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = torch.zeros_like(image), torch.zeros_like(image)
    rows[..., :-1, :], columns[..., :-1] = image.diff(dim=-2), image.diff(dim=-1)
    return rows, columns


# --- the batch, precision, storage ----------------------------------------------------------------


def everything(r: Regularizer, x: Tensor, v: Tensor, radius: Tensor) -> list[Tensor]:
    """All results per image; the certificates, which are in float64, last."""
    certificates = (
        r.hessian_change(x, v, radius),
        r.mixed_change(x, v, radius),
        r.mixed_norm(x, radius),
    )
    return [
        *averages(r, x),
        r.value(x),
        r.grad(x),
        r.hvp(x, v),
        r.directional(x, v).detach(),
        mixed_adjoint(r, x, v),
        *(c for c in certificates if c is not None),
    ]


def test_an_image_does_not_see_its_neighbours(case):
    r, x = case.make(), case.images()
    v, radius = normal(*x.shape), torch.logspace(-3, 0, x.shape[0]).double()
    whole = everything(r, x, v, radius)
    order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
    for a, b in zip(everything(r, x[order], v[order], radius[order]), whole, strict=True):
        same(a, b[order], 1e-13)
    parts = zip(
        *(everything(r, x[i], v[i], radius[i]) for i in (slice(0, 1), slice(1, 5), slice(5, 7))),
        strict=True,
    )
    for part, b in zip(parts, whole, strict=True):
        same(torch.cat(part), b, 1e-13)


def test_many_images_are_worked_on_in_chunks(case, monkeypatch):
    r, x = case.make(), case.images()
    v = normal(*x.shape)
    whole = [r.value(x), r.grad(x), r.hvp(x, v), *averages(r, x)]
    monkeypatch.setattr("learnreg.regularizers.foe.CHUNK_BYTES", 1)
    for a, b in zip([r.value(x), r.grad(x), r.hvp(x, v), *averages(r, x)], whole, strict=True):
        same(a, b, 1e-13)


def test_float32_is_close_to_float64(case):
    single = case.make().float()
    r, x = copy.deepcopy(single).double(), case.images().float()
    v, radius = normal(*x.shape).float(), torch.full((x.shape[0],), 0.1, dtype=torch.float64)
    coarse, fine = everything(single, x, v, radius), everything(r, x.double(), v.double(), radius)
    for a, b in zip(coarse[:-3], fine[:-3], strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-7
    for a, b in zip(coarse[-3:], fine[-3:], strict=True) if case.certified else ():
        assert a.dtype == torch.float64, "certificates are computed in float64"
        same(a, b, 1e-5)
    assert single.bounds().L.kind == r.bounds().L.kind
    assert single.bounds().L.value == pytest.approx(r.bounds().L.value, rel=1e-5)


def test_spec_and_state_rebuild_the_function(case):
    r, x = case.make(), case.images()
    if isinstance(r, BlackBox):
        pytest.skip("its module is not in the spec")
    rebuilt = from_spec(r.spec()).double()
    rebuilt.load_state_dict(r.state_dict())
    v, radius = normal(*x.shape), torch.full((x.shape[0],), 0.1, dtype=torch.float64)
    for a, b in zip(everything(rebuilt, x, v, radius), everything(r, x, v, radius), strict=True):
        assert torch.equal(a, b)
    assert [p.requires_grad for p in rebuilt.parameters()] == [
        p.requires_grad for p in r.parameters()
    ]
    assert rebuilt.bounds() == r.bounds()


def test_copies_are_independent(case):
    r, x = case.make(), case.images()
    before, theta = r.value(x), theta_of(r)
    twin, moved = copy.deepcopy(r), with_theta(r, theta + 0.3)
    assert torch.equal(twin.value(x), before)
    assert torch.equal(theta_of(moved), theta + 0.3) and torch.equal(theta_of(r), theta)
    if theta.numel() and before.abs().max() > 0:
        assert not torch.allclose(moved.value(x), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    twin.value(x)
    assert torch.equal(r.value(x), before)
    same(moved.value(x), with_theta(case.make(), theta + 0.3).value(x), 1e-14)


def test_nothing_lent_is_changed(case):
    r = case.make()
    lent = [case.images(), normal(7, *case.shape), torch.full((7,), 0.1, dtype=torch.float64)]
    kept, state = [t.clone() for t in lent], copy.deepcopy(r.state_dict())
    wants_grad, random = [p.requires_grad for p in r.parameters()], torch.get_rng_state()
    everything(r, *lent)
    r.bounds(), r.hessian_lipschitz(), r.mixed_lipschitz(), r.spec(), r.filters(), repr(r)
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(lent, kept, strict=True))
    assert all(torch.equal(r.state_dict()[k], state[k]) for k in state)
    assert [p.requires_grad for p in r.parameters()] == wants_grad and all(
        p.grad is None for p in r.parameters()
    )
    assert torch.equal(torch.get_rng_state(), random), "global random state"
    assert not r.grad(lent[0]).requires_grad and not r.hvp(lent[0], lent[1]).requires_grad


def test_repr_and_spec_name_the_class(case):
    r = case.make()
    assert type(r).__name__ in repr(r) and r.spec()["type"] == type(r).__name__


# --- caches: a regularizer is a function of the parameters it has now -----------------------------


def optimizer_step(make):
    def change(r: Regularizer) -> None:
        optimizer = make([p for p in r.parameters() if p.requires_grad])
        for p in r.parameters():
            p.grad = torch.full_like(p, 0.1) if p.requires_grad else None
        optimizer.step()

    return change


def in_place(r: Regularizer) -> None:
    with torch.no_grad():
        for p in r.parameters():
            p.mul_(0.9).add_(0.05)


def through_data(r: Regularizer) -> None:
    for p in r.parameters():
        p.data.mul_(0.9).add_(0.05)


def from_vector(r: Regularizer) -> None:
    nn.utils.vector_to_parameters(theta_of(r) + 0.1, trainable(r))


def from_state(r: Regularizer) -> None:
    r.load_state_dict({k: 0.9 * t + 0.05 for k, t in r.state_dict().items()})


CHANGES = {
    "sgd": optimizer_step(lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.5)),
    "adam": optimizer_step(lambda p: torch.optim.Adam(p, lr=0.1)),
    "adam_foreach": optimizer_step(lambda p: torch.optim.Adam(p, lr=0.1, foreach=True)),
    "adam_fused": optimizer_step(lambda p: torch.optim.Adam(p, lr=0.1, fused=True)),
    "in_place": in_place,
    "data": through_data,
    "vector_to_parameters": from_vector,
    "load_state_dict": from_state,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "make", [lambda: foe(), lambda: tv(True) + 0.5 * foe()], ids=["foe", "sum"]
)
def test_a_changed_parameter_is_seen_at_once(make, change):
    r, x = make(), Case("", make).images()
    v, radius = normal(*x.shape), torch.full((x.shape[0],), 0.1, dtype=torch.float64)
    stale, stale_bounds = everything(r, x, v, radius), r.bounds()
    CHANGES[change](r)
    fresh = from_spec(r.spec()).double()
    fresh.load_state_dict(r.state_dict())
    assert r.bounds() == fresh.bounds() and r.bounds() != stale_bounds
    for now, wanted, before in zip(
        everything(r, x, v, radius), everything(fresh, x, v, radius), stale, strict=True
    ):
        assert torch.equal(now, wanted) and not torch.equal(now, before)


def test_precision_may_change_after_use():
    r, x = foe(), CASES[0].images()
    before = r.value(x)
    same(r.float().value(x.float()).double(), before, 1e-5)
    same(r.double().value(x), before, 1e-5)


# --- how regularizers compose ---------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0, 1e3), inner=st.floats(0, 10))
def test_scaling_scales_everything_it_should(factor, inner):
    r, x = tv(False), CASES[0].images()
    scaled = factor * (inner * r)
    total = factor * inner
    v, radius = normal(*x.shape), torch.full((x.shape[0],), 0.1, dtype=torch.float64)
    for a, b in zip(everything(scaled, x, v, radius), everything(r, x, v, radius), strict=True):
        torch.testing.assert_close(a, total * b, rtol=1e-12, atol=1e-200)
    assert scaled.bounds().L.value == pytest.approx(total * r.bounds().L.value)
    assert scaled.hessian_lipschitz().value == pytest.approx(total * r.hessian_lipschitz().value)
    assert scaled.mixed_lipschitz().value == pytest.approx(total * r.mixed_lipschitz().value)


def test_sums_add_functions_bounds_and_parameters():
    parts = [tv(True), foe(), Tikhonov(0.1).double()]
    r, x = parts[0] + parts[1] + parts[2], CASES[0].images()
    same(r.value(x), sum(p.value(x) for p in parts))
    same(r.grad(x), sum(p.grad(x) for p in parts))
    for whole, *shares in zip(averages(r, x), *(averages(p, x) for p in parts), strict=True):
        same(whole, sum(shares))
    assert r.bounds().mu.value == pytest.approx(0.1) and r.bounds().mu.certified
    assert r.bounds().L.value == pytest.approx(sum(p.bounds().L.value for p in parts))
    assert theta_of(r).numel() == sum(theta_of(p).numel() for p in parts)
    flat = Sum(parts)
    same(flat.value(x), r.value(x))
    assert (
        flat.filters() is not None
        and (2 * flat).filters() is not None
        and tv(True).filters() is None
    )


class Bare(Regularizer):
    """The least a regularizer can offer: no certificate."""

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(dim=1)


def test_a_term_without_certificates_leaves_the_sum_without():
    x = CASES[0].images()
    radius = torch.full((x.shape[0],), 0.1, dtype=torch.float64)
    for r in (Bare(), tv(True) + Bare(), 2 * (Bare() + foe())):
        assert r.hessian_change(x, x, radius) is None
        assert r.mixed_change(x, x, radius) is None
        assert r.mixed_norm(x, radius) is None
        assert not r.hessian_lipschitz().certified and not r.mixed_lipschitz().certified
        assert r.mean_curvature(x) is None


# --- bad values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TV(weight=0), r"weight: given 0; expected a positive finite number"),
        (lambda: TV(weight=-1.0), "weight: given -1.0"),
        (lambda: TV(smoothing=math.nan), "smoothing: given nan"),
        (lambda: TV(smoothing="sharp"), "smoothing: given 'sharp'"),
        (lambda: TV(isotropic="yes"), "isotropic: given 'yes'; expected True or False"),
        (lambda: Tikhonov(math.inf), "weight: given inf"),
        (lambda: FoE(filters=0), "filters: given 0; expected a positive integer"),
        (lambda: FoE(filters=2.5), "filters: given 2.5"),
        (lambda: FoE(size=4), "size: given 4; expected an odd filter size. Use 5"),
        (lambda: FoE(channels=-1), "channels: given -1"),
        (lambda: FoE(filters=9, size=3), "filters: given 9; expected at most 8"),
        (lambda: FoE(init="gabor"), "init: given 'gabor'"),
        (
            lambda: FoE(padding="circular"),
            "padding: given 'circular'; expected 'reflect' or 'zero'",
        ),
        (lambda: FoE(weight=0.0), "weight: given 0.0"),
        (lambda: FoE(smoothing=-0.1), "smoothing: given -0.1"),
        (
            lambda: FoE(least_smoothing=0.5),
            r"least_smoothing: given 0.5; expected a number in \[0, smoothing=0.01\)",
        ),
        (lambda: FoE(least_smoothing=-0.1), "least_smoothing: given -0.1"),
        (lambda: FoE(least_smoothing=math.nan), "least_smoothing: given nan"),
        (lambda: -1 * TV(), "factor: given -1"),
        (lambda: TV() * math.inf, "factor: given inf"),
        (lambda: Scaled(math.nan, TV()), "factor: given nan"),
        (lambda: Sum([]), "terms: given an empty list"),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("shape", [(1, 2, 6, 6), (1, 1, 2, 6), (1, 1, 6, 2), (1, 6, 6)])
def test_images_that_do_not_fit_the_filters_are_refused(shape):
    r, x = foe(), torch.zeros(shape, dtype=torch.float64)
    for call in (r.value, r.grad, r.linearize, r.mean_curvature, lambda x: r.directional(x, x)):
        with pytest.raises(
            InputError, match=r"x: given shape .*expected \(b, 1, h, w\) with h, w >= 3"
        ):
            call(x)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"type": "Wavelets"},
        {"type": "TV", "order": 2},
        {"type": "Sum"},
        {"type": "FoE", "filters": -1},
        {"type": "Scaled", "factor": 1.0},
    ],
)
def test_a_foreign_description_is_refused(spec):
    with pytest.raises(
        ModelFileError, match=r"expected one of TV, HuberTV, FoE, Tikhonov, .*Sum, Scaled"
    ):
        from_spec(spec)
