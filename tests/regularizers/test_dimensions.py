"""Signals, images and volumes: differences, total variation, its derivatives and constants."""

from __future__ import annotations

import math

import deepinv
import pytest
import torch
from tests.regularizers.cases import perturbed
from torch import Tensor

import learnreg as lr
from learnreg.core.curvature import MeanCurvature
from learnreg.core.errors import InputError
from learnreg.linear.circulant import preconditioner
from learnreg.operators.differences import (
    differences,
    differences_adjoint,
    gradient,
    gradient_adjoint,
    norm_squared,
    plain_differences,
    symbols,
)
from learnreg.regularizers import ICNN, TGV, TV, ExactTV, FoE, HuberTV, LearnedTV, Tikhonov

SPACES = [(7,), (1,), (5, 4), (1, 6), (6, 1), (3, 4, 5), (4, 1, 3), (1, 3, 1), (2, 2, 2)]
VARIANTS = {
    "isotropic": {},
    "anisotropic": {"isotropic": False},
    "joint": {"channels": "joint"},
    "anisotropic joint": {"isotropic": False, "channels": "joint"},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_gradient(x: Tensor) -> Tensor:
    """(c, *axes) -> (axes, c, *axes), entry by entry."""
    out = torch.zeros(x.dim() - 1, *x.shape, dtype=x.dtype)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).view(-1, x.dim()):
        for k in range(1, x.dim()):
            here, there = tuple(index.tolist()), index.clone()
            there[k] += 1
            if there[k] < x.shape[k]:
                out[(k - 1, *here)] = x[tuple(there.tolist())] - x[here]
    return out


def slow_tv(r: TV | HuberTV, x: Tensor) -> Tensor:
    """R as its docstring writes it, from ``diff``: (b,), differentiable."""
    w, nu = r.log_weight.exp(), r.log_smoothing.exp()
    parts = []
    for axis in range(2, x.dim()):
        pad = torch.zeros_like(x.narrow(axis, 0, 1))
        parts.append(torch.cat([x.diff(dim=axis), pad], dim=axis) ** 2)
    squares = [sum(parts)] if isinstance(r, HuberTV) or r.isotropic else parts
    if r.channels == "joint":
        squares = [s.sum(dim=1) for s in squares]
    total = torch.zeros(x.shape[0], dtype=x.dtype)
    for s in squares:
        if isinstance(r, HuberTV):
            beyond = s > nu**2
            root = torch.where(beyond, s, torch.ones_like(s)).sqrt()
            each = torch.where(beyond, root - nu / 2, s / (2 * nu))
        else:
            each = torch.sqrt(s + nu**2) - nu
        total = total + each.flatten(1).sum(dim=1)
    return w * total


def make(kind: str, name: str) -> TV | HuberTV:
    if kind == "huber":
        return perturbed(HuberTV(0.3, 0.7, channels=VARIANTS[name].get("channels", "separate")))
    return perturbed(TV(0.3, 0.2, **VARIANTS[name]))


def matrix(operator, shape: tuple[int, ...]) -> Tensor:
    """Columns are the images of unit vectors: (m, n)."""
    n = math.prod(shape)
    return operator(torch.eye(n).double().view(n, *shape)).reshape(n, -1).T


# --- differences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
def test_differences_are_what_they_are_entry_by_entry(space):
    x = normal(2, 2, *space)
    wanted = torch.stack([slow_gradient(image) for image in x])
    assert torch.equal(gradient(x), wanted)
    assert torch.equal(plain_differences(x), wanted)
    assert torch.equal(torch.stack(differences(x), dim=1), -wanted)


@pytest.mark.parametrize("space", SPACES)
def test_adjoints_are_the_transposed_matrices(space):
    shape, axes = (2, *space), len(space)
    dense = matrix(gradient, shape)
    torch.testing.assert_close(matrix(gradient_adjoint, (axes, *shape)), dense.T)
    p = gradient(normal(3, *shape))
    torch.testing.assert_close(
        differences_adjoint(*(part.contiguous() for part in p.unbind(1))), -gradient_adjoint(p)
    )


@pytest.mark.parametrize("space", SPACES)
def test_the_norm_is_below_its_bound_and_the_symbol_is_periodic(space):
    dense = matrix(gradient, (1, *space))
    assert torch.linalg.matrix_norm(dense, 2) ** 2 <= norm_squared(len(space))
    spike = torch.zeros(1, 1, *space, dtype=torch.float64)
    spike.view(-1)[0] = 1
    laplacian = sum(
        2 * spike - spike.roll(1, axis) - spike.roll(-1, axis) for axis in range(2, spike.dim())
    )
    wanted = torch.fft.rfftn(laplacian, dim=tuple(range(2, spike.dim()))).real
    torch.testing.assert_close(sum(symbols(spike)).expand_as(wanted), wanted)


def test_the_norm_bound_is_nearly_attained():
    for space in ((40,), (16, 16), (9, 9, 9)):
        dense = matrix(gradient, (1, *space))
        assert torch.linalg.matrix_norm(dense, 2) ** 2 >= 0.95 * norm_squared(len(space))


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 1, 2, 2, 2, 2)])
@pytest.mark.parametrize("r", [TV(), TV(isotropic=False), HuberTV()], ids=["tv", "each", "huber"])
def test_what_is_no_signal_image_or_volume_is_refused(r, shape):
    x = torch.zeros(shape)
    calls = (r.value, r.grad, r.linearize, r.bounds_for, r.mean_curvature, r.dual_start)
    for call in (*calls, lambda x: r.directional(x, x)):
        with pytest.raises(InputError, match=r"expected \(b, c, n\), \(b, c, h, w\) or"):
            call(x)


# --- derivatives and constants --------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["tv", "huber"])
def test_total_variation_is_its_formula_with_its_derivatives(kind, name, space):
    r, shape = make(kind, name), (2, *space)
    x = normal(3, *shape).requires_grad_()
    v = normal(3, *shape, seed=1)
    value = slow_tv(r, x)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    torch.testing.assert_close(r.value(x.detach()), value.detach())
    torch.testing.assert_close(r.formula(x.detach()).detach(), value.detach())
    torch.testing.assert_close(r.grad(x.detach()), slope.detach())
    torch.testing.assert_close(
        r.directional(x.detach(), v).detach(), (slope * v).flatten(1).sum(dim=1).detach()
    )
    params = list(r.parameters())
    product, *mixed = torch.autograd.grad((slope * v).sum(), [x, *params])
    torch.testing.assert_close(r.hvp(x.detach(), v), product)
    found = torch.autograd.grad(r.directional(x.detach(), v).sum(), params)
    torch.testing.assert_close(torch.stack(found), torch.stack(mixed))
    start = r.dual_start(x.detach())
    torch.testing.assert_close(r.dual_linearize(x.detach(), start)(v), product)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("kind", ["tv", "huber"])
def test_the_hessian_stays_within_the_bounds_of_its_number_of_axes(kind, name, space):
    r, shape = make(kind, name), (2, *space)
    n = math.prod(shape)
    x = torch.cat([torch.zeros(1, *shape).double(), 0.1 * normal(1, *shape)])
    largest = r.bounds_for(x).L
    strength = float((r.log_weight - r.log_smoothing).detach().exp())
    assert largest.certified and largest.value == pytest.approx(4 * len(space) * strength)
    for image in x:
        dense = matrix(r.linearize(image.expand(n, *shape)), shape)
        torch.testing.assert_close(dense, dense.T)
        spectrum = torch.linalg.eigvalsh(dense)
        assert spectrum[0] >= -1e-10 and spectrum[-1] <= largest.value * (1 + 1e-12)


def test_the_bound_of_images_is_too_small_for_volumes():
    """So that nobody takes ``bounds()`` for all spaces: checkerboards attain nearly 12 w / nu."""
    r, shape = TV(0.3, 0.2).double(), (1, 9, 9, 9)
    total = sum(torch.meshgrid(*[torch.arange(9)] * 3, indexing="ij"))
    v = (1.0 - 2.0 * (total % 2)).double().view(1, *shape)
    x = torch.zeros_like(v)
    quotient = float((r.hvp(x, v) * v).sum() / (v * v).sum())
    assert r.bounds().L.value < quotient <= r.bounds_for(x).L.value
    assert (2 * r + Tikhonov(0.5).double()).bounds_for(x).L.value == pytest.approx(
        2 * r.bounds_for(x).L.value + 0.5
    )


@pytest.mark.parametrize("space", [(7,), (5, 4), (3, 4, 3), (1, 3, 1)])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("radius", [1e-2, 0.3])
def test_certified_changes_hold(name, space, radius):
    r, shape = make("tv", name), (2, *space)
    params, n = list(r.parameters()), math.prod(shape)
    for x, q in (
        (torch.zeros(1, *shape).double(), normal(1, *shape, seed=5)),
        (0.1 * normal(1, *shape), torch.eye(n).double()[:1].view(1, *shape)),
    ):
        moves = torch.cat([q, torch.eye(n).double().view(n, *shape), normal(10, *shape, seed=6)])
        moves = moves / moves.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
        limit = torch.tensor([radius], dtype=torch.float64)

        def mixed(points: Tensor, q: Tensor = q) -> Tensor:
            slopes = [r.directional(p[None], q) for p in points]
            return torch.stack(
                [torch.stack(torch.autograd.grad(s, params)).flatten() for s in slopes]
            )

        for move in moves:
            near = x + radius * move
            change = (r.hvp(near, q) - r.hvp(x, q)).norm()
            assert change <= r.hessian_change(x, q, limit)[0] * (1 + 1e-9) + 1e-13
            turn = (mixed(near) - mixed(x)).norm()
            assert turn <= r.mixed_change(x, q, limit)[0] * (1 + 1e-9) + 1e-13
            assert mixed(near).norm() <= r.mixed_norm(x, limit)[0] * q.norm() * (1 + 1e-9)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_rows_of_one_potential_have_the_norm_that_certificates_use(axes, channels):
    space = (3,) * axes
    dense = matrix(gradient, (channels, *space)).view(axes, channels, *space, -1)
    rows = dense[(slice(None), slice(None), *[1] * axes)].reshape(axes * channels, -1)
    assert float(torch.linalg.matrix_norm(rows, 2)) == pytest.approx(TV()._row(axes))
    one = dense[(slice(1), slice(None), *[1] * axes)].reshape(channels, -1)
    assert float(torch.linalg.matrix_norm(one, 2)) == pytest.approx(TV(isotropic=False)._row(axes))


# --- averages and preconditioners -----------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("r", [TV(), HuberTV(channels="joint"), Tikhonov()])
def test_averages_at_zero_are_the_periodic_hessian(r, space):
    r, x = r.double(), torch.zeros(2, 2, *space, dtype=torch.float64)
    mean = r.mean_curvature(x)
    assert mean.diagonal.shape == x.shape
    assert mean.symbol.shape == (*x.shape[:-1], x.shape[-1] // 2 + 1)
    strength = r.bounds_for(x).L.value / (4 * len(space))
    wanted = (
        torch.full_like(mean.symbol, r.bounds().L.value)
        if isinstance(r, Tikhonov)
        else strength * sum(symbols(x)).expand_as(mean.symbol)
    )
    torch.testing.assert_close(mean.symbol, wanted)


@pytest.mark.parametrize("space", SPACES)
def test_a_circulant_preconditioner_inverts_a_periodic_convolution(space):
    x = normal(2, 2, *space)
    symbol = (0.5 + sum(symbols(x))).expand(*x.shape[:-1], x.shape[-1] // 2 + 1)
    image = 0.5 * x
    for axis in range(2, x.dim()):
        image = image + 2 * x - x.roll(1, axis) - x.roll(-1, axis)
    P = preconditioner(MeanCurvature(torch.ones_like(x), symbol))
    torch.testing.assert_close(P(image), x)


# --- solving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [(12,), (3, 5, 4)])
@pytest.mark.parametrize("name", ["isotropic", "joint", "anisotropic"])
def test_the_minimizer_is_that_of_brute_force(space, name):
    """Denoising through ``solve`` against L-BFGS of torch on the slow energy."""
    r = TV(0.1, 0.05, **VARIANTS[name]).double()
    y = normal(2, 2, *space)
    z = y.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = 0.5 * ((z - y) ** 2).sum() + slow_tv(r, z).sum()
        total.backward()
        return total

    optimizer.step(closure)
    energy = lr.Energy(deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)), r)
    solution = lr.solve(energy, y, eps=1e-8, solver="lbfgs")
    assert (solution.value - z.detach()).flatten(1).norm(dim=1).max() < 1e-7


def test_a_step_in_any_direction_costs_the_same():
    r, values = TV(0.3, 1e-3), []
    for axis in (2, 3, 4):
        x = torch.zeros(1, 1, 4, 4, 4)
        x.narrow(axis, 2, 2).fill_(1)
        values.append(float(r.value(x)))
    assert values == pytest.approx([0.3 * 16 * (math.sqrt(1 + 1e-6) - 1e-3)] * 3, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 1, 8, 8, 8)])
@pytest.mark.parametrize(
    "r", [ExactTV(), TGV(), LearnedTV(), ICNN(), FoE(3, 3)], ids=lambda r: type(r).__name__
)
def test_what_is_two_dimensional_says_so(r, shape):
    with pytest.raises(InputError, match=r"two-dimensional: use TV or HuberTV for signals"):
        r.value(torch.zeros(shape)) if isinstance(r, FoE | ExactTV | ICNN) else r.norms(
            torch.zeros(shape)
        )


# --- channels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [TV, HuberTV])
def test_joint_channels_share_their_edges(r):
    """Two equal channels cost sqrt 2 times one, where separate ones cost twice as much."""
    edge = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    edge[..., 3:] = 1
    one = r(1.0, 1e-6).double().value(edge)
    both = edge.expand(1, 2, 6, 6)
    assert float(r(1.0, 1e-6).double().value(both) / one) == pytest.approx(2, rel=1e-4)
    joint = r(1.0, 1e-6, channels="joint").double()
    assert float(joint.value(both) / one) == pytest.approx(math.sqrt(2), rel=1e-4)
    assert lr.regularizers.from_spec(joint.spec()).channels == "joint"


@pytest.mark.parametrize("r", [TV, HuberTV])
def test_a_joint_value_does_not_see_the_phase_of_complex_images(r):
    joint, x = r(channels="joint").double(), normal(1, 2, 5, 5)
    turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)
    torch.testing.assert_close(joint.value(turned), joint.value(x))
    with pytest.raises(InputError, match="channels: given both; expected 'separate' or 'joint'"):
        r(channels="both")
