"""Input-convex networks: the lifted problem is the nested one, adjoints and bounds hold, gaps
certify.
"""

from __future__ import annotations

import math

import deepinv
import numpy as np
import pytest
import torch
from scipy.optimize import minimize as general_solver
from torch import Tensor
from torch.nn import functional as F

from learnreg.core.batch import dot
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.params import flatten, trainable, with_theta
from learnreg.problems.saddle import SaddleEnergy
from learnreg.regularizers.icnn import ICNN
from learnreg.solvers import solve
from learnreg.solvers.pdhg import PDHG


def inner(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Inner product over all blocks, per image (b,)."""
    return torch.stack([dot(s, t) for s, t in zip(a, b, strict=True)]).sum(dim=0)


SMALL = {"channels": 2, "size": 3, "pooling": 2, "units": 3}

CASES = {
    "one layer": SMALL,
    "two layers": SMALL | {"layers": 2, "seed": 3},
    "three layers": SMALL | {"layers": 3, "slope": 0.0},
    "smoothed": SMALL | {"layers": 2, "rounding": 0.1},
    "windows over the edge": SMALL | {"pooling": 3, "head_size": 3},
    "no pooling": SMALL | {"pooling": 1, "head_size": 3, "padding": "zero"},
    "fully connected": SMALL | {"layers": 2, "image_size": (4, 5)},
    "two channels": SMALL | {"in_channels": 2, "zero_mean": False},
    "pointwise": SMALL | {"size": 1, "zero_mean": False},
}


def made(name: str) -> ICNN:
    """A case in float64 with offsets and noise everywhere, so that no symmetry of the start
    survives.
    """
    r = ICNN(**CASES[name]).double()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in r.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return r


def pictures(r: ICNN, count: int = 2, size: tuple[int, int] = (4, 5), seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, r.kernels.shape[1], *size, generator=g, dtype=torch.float64)


def energy(r: ICNN, **options: float) -> SaddleEnergy:
    return SaddleEnergy(deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)), r, **options)


@torch.no_grad()
def nested(e: SaddleEnergy, u: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (u - y).square().flatten(1).sum(dim=1) + e.regularizer.value(u)


@pytest.fixture(params=CASES)
def r(request: pytest.FixtureRequest) -> ICNN:
    return made(request.param)


# --- the network ----------------------------------------------------------------------------------


def plain(r: ICNN, u: Tensor) -> Tensor:
    """The network as its docstring writes it, with torch's own operations."""

    def relu(a: Tensor, om: float) -> Tensor:
        return (
            torch.where(a < om, a.clamp_min(0) ** 2 / (2 * om), a - om / 2)
            if om
            else a.clamp_min(0)
        )

    m, n = r.kernels.shape[-1] // 2, r.pooling
    k = r.kernels - r.kernels.mean(dim=(2, 3), keepdim=True) if r.zero_mean else r.kernels
    z = F.conv2d(F.pad(u, [m] * 4, mode="reflect" if r.padding == "reflect" else "constant"), k)
    z = z + r.biases[0].view(-1, 1, 1)
    for root, b in zip(r.roots, list(r.biases)[1:], strict=True):
        z = r.slope * z + (1 - r.slope) * relu(z, r.rounding)
        if root is r.roots[-1]:
            edge = F.pad(z, (0, -z.shape[-1] % n, 0, -z.shape[-2] % n))
            z = edge.unfold(2, n, n).unfold(3, n, n).mean(dim=(-2, -1))
        z = F.conv2d(
            z,
            root**2,
            b,
            padding=0 if root is r.roots[-1] and r.image_size else root.shape[-1] // 2,
        )
    return relu(r.log_weights.exp().view(-1, 1, 1) * z, r.rounding * r.weight).sum(dim=(1, 2, 3))


def test_value_is_the_network(r):
    u = pictures(r, 3)
    torch.testing.assert_close(r.value(u), plain(r, u), rtol=1e-12, atol=1e-12)


def test_at_the_activations_the_lifted_function_is_the_network(r):
    u = pictures(r, 3)
    torch.testing.assert_close(r.value_with(u, *r.auxiliary(u)), r.value(u), rtol=1e-12, atol=1e-12)


def test_below_the_activations_the_lifted_function_is_infinite(r):
    u = pictures(r)
    for k in range(r.depth):
        z = list(r.auxiliary(u))
        z[k] = z[k] - 0.01
        assert torch.isinf(r.value_with(u, *z)).all()


def test_above_the_activations_it_is_not_smaller(r):
    u = pictures(r)
    z = [torch.rand_like(a) for a in r.auxiliary(u)]
    lifted = [u]
    for k, more in enumerate(z):  # the activations of what is below, and more
        lifted.append(r._activated(r._input(k, lifted[-1])) + more)
    assert (r.value_with(*lifted) >= r.value(u)).all()


def test_gradient_is_autograd_of_the_network(r):
    u = pictures(r).requires_grad_()
    (wanted,) = torch.autograd.grad(plain(r, u).sum(), u)
    torch.testing.assert_close(r.grad(u.detach()), wanted, rtol=1e-11, atol=1e-12)


def test_the_start_of_the_dual_is_the_gradient(r):
    u = pictures(r)
    parts = r.adjoint(*r.dual_start(u))
    torch.testing.assert_close(parts[0], r.grad(u), rtol=1e-12, atol=1e-13)
    assert all(not part.any() for part in parts[1:])


def test_it_is_convex(r):
    a, b = 3 * pictures(r, 200), 3 * pictures(r, 200, seed=1)
    assert (r.value((a + b) / 2) <= (r.value(a) + r.value(b)) / 2 + 1e-12).all()


def test_weights_of_later_layers_have_no_negative_entries_whatever_theta(r):
    theta = flatten(trainable(r))
    other = with_theta(
        r, 2 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(1)).double()
    )
    assert (
        all((other._hidden(k) >= 0).all() for k in range(1, r.depth)) and (other._head() >= 0).all()
    )


def test_it_does_not_depend_on_the_neighbours(r):
    u = pictures(r, 3)
    torch.testing.assert_close(r.value(u)[1:2], r.value(u[1:2]), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("size", [(3, 3), (7, 10), (17, 4)])
@pytest.mark.parametrize("pooling", [1, 4, 16])
def test_images_of_any_size(pooling, size):
    r = ICNN(2, 5, pooling=pooling, head_size=3).double()
    u = pictures(r, 2, size)
    x, p = (u, *r.auxiliary(u)), r.slopes(u)
    assert p[-1].shape[-2:] == tuple(-(-n // pooling) for n in size)
    torch.testing.assert_close(inner(r.linear(*x), p), inner(x, r.adjoint(*p)))


@torch.no_grad()
def test_every_pixel_of_a_constant_response_has_the_same_weight():
    r = ICNN(1, 1, pooling=4, units=1, zero_mean=False).double()
    sizes = ((4, 4), (5, 9), (3, 2))
    values = [
        float(r.value(torch.ones(1, 1, h, w, dtype=torch.float64))) / (h * w) for h, w in sizes
    ]
    assert values == pytest.approx([values[0]] * 3)


# --- the operator ---------------------------------------------------------------------------------


def random_like(blocks: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b.shape, generator=g, dtype=b.dtype) for b in blocks)


def test_adjoint_is_exact(r):
    u = pictures(r)
    x, p = random_like((u, *r.auxiliary(u)), 1), random_like(r.dual_start(u), 2)
    torch.testing.assert_close(
        inner(r.linear(*x), p), inner(x, r.adjoint(*p)), rtol=1e-12, atol=1e-12
    )


def blocks_of_k(r: ICNN, u: Tensor) -> list[list[Tensor]]:
    """K as a table of dense matrices."""
    with torch.no_grad():
        x = (u[:1], *r.auxiliary(u[:1]))
        columns = []
        for i, block in enumerate(x):
            eye = torch.eye(block.numel(), dtype=u.dtype).view(-1, *block.shape[1:])
            full = [
                eye if j == i else torch.zeros(eye.shape[0], *b.shape[1:], dtype=u.dtype)
                for j, b in enumerate(x)
            ]
            columns.append([row.flatten(1).T for row in r.linear(*full)])
    return [list(row) for row in zip(*columns, strict=True)]


def test_norms_are_bounds_and_not_far_away(r):
    u = pictures(r, size=(4, 5))
    for bounds, row in zip(r.norms(u), blocks_of_k(r, u), strict=True):
        for bound, matrix in zip(bounds, row, strict=True):
            true = float(torch.linalg.matrix_norm(matrix, 2))
            assert true <= bound * (1 + 1e-12) and bound <= 3.5 * true


def test_theta_enters_through_the_operator_only(r):
    """The derivative of <K(theta) x + b(theta), p> at the dual of u is that of the network."""
    u, params = pictures(r), trainable(r)
    with torch.no_grad():
        x, p = (u, *r.auxiliary(u)), r.slopes(u)
    coupled = sum(((a + b) * s).sum() for a, b, s in zip(r.linear(*x), r.offset(u), p, strict=True))
    found = torch.autograd.grad(coupled, params)
    wanted = torch.autograd.grad(plain(r, u).sum(), params)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.fixture
def every_warning():
    """Of torch, which gives most of them once in a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def test_sensitivity_of_hidden_layers_wants_no_gradient(every_warning):
    """It is a number; torch warns where one is made of what is followed."""
    r = ICNN(**SMALL, layers=3).double()
    u = pictures(r, 1)
    followed = r.sensitivity(u)
    with torch.no_grad():
        assert r.sensitivity(u) == followed


@torch.no_grad()
def test_sensitivity_bounds_the_change_of_operator_and_offset(r):
    u, theta, h = pictures(r, 1), flatten(trainable(r)), 1e-6
    kappa, beta = r.sensitivity(u)
    g = torch.Generator().manual_seed(0)
    whole = torch.cat([torch.cat(row, dim=1) for row in blocks_of_k(r, u)])
    flat = torch.cat(
        [b.expand(1, *p.shape[1:]).flatten() for b, p in zip(r.offset(u), r.slopes(u), strict=True)]
    )
    start = 0
    for p in [*trainable(r), theta]:  # in one parameter at a time, then in all
        step = torch.zeros_like(theta)
        step[start % theta.numel() :][: p.numel()] = torch.randn(
            p.numel(), generator=g, dtype=theta.dtype
        )
        start += p.numel()
        other = with_theta(r, theta + h * step / step.norm())
        moved = torch.cat([torch.cat(row, dim=1) for row in blocks_of_k(other, u)])
        shifted = torch.cat(
            [
                b.expand(1, *q.shape[1:]).flatten()
                for b, q in zip(other.offset(u), r.slopes(u), strict=True)
            ]
        )
        assert float(torch.linalg.matrix_norm(moved - whole, 2)) / h <= kappa * (1 + 1e-4)
        assert float((shifted - flat).norm()) / h <= beta * (1 + 1e-4)


# --- dual variables -------------------------------------------------------------------------------


def test_any_dual_variable_is_made_feasible_by_one_pass(r):
    u = pictures(r)
    for seed in range(5):
        p = r.feasible((u, *r.auxiliary(u)), random_like(r.dual_start(u), seed))
        assert all(not part.any() for part in r.adjoint(*p)[1:])
        for f, s in zip(r.dual(u), p, strict=True):
            assert torch.isfinite(f.conjugate(s)).all()
            assert (f.gauge(s) == 1).all()


def test_a_feasible_dual_variable_stays(r):
    u = pictures(r)
    p = r.feasible((u, *r.auxiliary(u)), random_like(r.dual_start(u), 0))
    for a, b in zip(r.feasible((u,), p), p, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_fields_below_the_activations_are_lifted():
    r = ICNN(**SMALL, layers=2, curvature=0.1).double()
    u = pictures(r)
    x = (u, *(0.1 * z for z in random_like(r.auxiliary(u), 0)))
    assert torch.isinf(r.value_with(*x)).all() and torch.isfinite(r.value_with(*r.finite(x))).all()
    assert all((a >= b).all() for a, b in zip(r.finite(x)[1:], x[1:], strict=True))


# --- lifted = nested ------------------------------------------------------------------------------


def by_programming(r: ICNN, y: Tensor) -> float:
    """The least energy of one image as a quadratic program over (u, z, relu outputs), by SLSQP."""
    table = blocks_of_k(r, y)
    sizes = [row[0].shape[1] if i == 0 else table[0][i].shape[1] for i, row in enumerate(table)]
    offsets = [
        b.expand(1, *p.shape[1:]).flatten().numpy()
        for b, p in zip(r.offset(y), r.slopes(y), strict=True)
    ]
    rows = [torch.cat(row, dim=1).numpy() for row in table]
    n, units, data = sum(sizes), rows[-1].shape[0], y.flatten().numpy()
    constraints, shifts = [], []
    for k in range(r.depth):  # z >= a and z >= slope a
        half = rows[k].shape[0] // 2
        a, z = rows[k][:half], rows[k][half:]
        for slope in (1.0, r.slope):
            constraints.append(np.hstack([z - slope * a, np.zeros((half, units))]))
            shifts.append(-slope * offsets[k][:half])
    constraints += [
        np.hstack([-rows[-1], np.eye(units)]),
        np.hstack([np.zeros((units, n)), np.eye(units)]),
    ]
    shifts += [-offsets[-1], np.zeros(units)]
    A, c = np.vstack(constraints), np.concatenate(shifts)

    def objective(x: np.ndarray) -> float:
        return 0.5 * ((x[: data.size] - data) ** 2).sum() + x[n:].sum()

    def gradient(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[: data.size] - data, np.zeros(n - data.size), np.ones(units)])

    start = torch.cat([y.flatten(), *(z.flatten() for z in r.auxiliary(y))]).detach().numpy()
    start = np.concatenate([start, np.maximum(rows[-1] @ start + offsets[-1], 0)])
    found = general_solver(
        objective,
        start,
        jac=gradient,
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-14},
        constraints={"type": "ineq", "fun": lambda x: A @ x + c, "jac": lambda x: A},
    )
    assert found.success, found.message
    return float(found.fun)


@pytest.mark.parametrize(("layers", "weight"), [(1, 0.4), (2, 0.8), (3, 2.0)])
def test_lifted_minimum_is_that_of_a_quadratic_program(layers, weight):
    r = ICNN(2, 3, pooling=2, units=2, layers=layers, weight=weight, seed=layers).double()
    with torch.no_grad():
        for b in r.biases:
            b.add_(torch.linspace(-0.05, 0.1, b.numel()))
    y = pictures(r, 1, (3, 4))
    with torch.no_grad():
        wanted = by_programming(r, y)
    e = energy(r)
    solution = solve(e, y, 1e-5, solver=PDHG(rule="basic"))
    assert float(nested(e, solution.value, y)) == pytest.approx(wanted, rel=1e-8)
    assert float(nested(e, y, y)) > 1.02 * wanted  # the regularizer matters


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smoothed_lifted_minimum_is_that_of_a_quasi_newton_method(layers):
    r = ICNN(
        2, 3, pooling=2, units=2, layers=layers, rounding=0.05, weight=0.8, seed=layers
    ).double()
    y, e = pictures(r, 1, (4, 6)), energy(r)

    def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
        u = torch.from_numpy(flat).view_as(y).requires_grad_()
        total = 0.5 * (u - y).square().sum() + plain(r, u).sum()
        (gradient,) = torch.autograd.grad(total, u)
        return float(total.detach()), gradient.flatten().numpy()

    found = general_solver(
        both,
        y.flatten().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 5000},
    )
    solution = solve(e, y, 1e-5, solver=PDHG(rule="basic"))
    distance = float(np.linalg.norm(found.x - solution.value.flatten().numpy()))
    assert distance <= float(solution.error[0]) + 1e-7
    assert float(nested(e, solution.value, y)) == pytest.approx(found.fun, rel=1e-9)


@pytest.mark.parametrize("name", ["one layer", "three layers", "smoothed", "fully connected"])
@torch.no_grad()
def test_gap_and_certificate_hold_at_every_iterate(name):
    r = made(name)
    e, y = energy(r), pictures(r)
    best = solve(e, y, 1e-6, solver=PDHG(rule="basic"))
    least, f, method = nested(e, best.value, y), e.at(y), PDHG(rule="basic", interval=6)
    state = method.init(f, f.pack(*f.start(y)))
    first = f.gap(state.x, state.p, state.kx, state.ktp)
    for _ in range(25):
        gap = f.gap(state.x, state.p, state.kx, state.ktp)
        assert torch.isfinite(gap).all()
        assert (gap >= nested(e, state.x[0], y) - least - 1e-11).all()
        distance = (state.x[0] - best.value).flatten(1).norm(dim=1)
        assert (f.certify(state.point).distance + 1e-6 >= distance).all()
        state = method.step(f, state)
    assert (gap < 0.1 * first).all()


@pytest.mark.parametrize("name", ["one layer", "smoothed"])
def test_the_default_solver_needs_no_more_than_a_few_thousand_iterations(name):
    r = made(name)
    solution = solve(energy(r), pictures(r), 1e-4, budget=500)  # steps of ten iterations
    assert (solution.error <= 1e-4).all()


def test_float32_images_are_certified():
    r = ICNN(**SMALL, weight=0.3)
    y = pictures(r).float()
    solution = solve(energy(r), y, 1e-3, solver=PDHG(rule="basic"))
    assert solution.value.dtype == torch.float32 and (solution.error <= 1e-3).all()


def test_curvature_is_solved_to_a_vanishing_gap():
    r = ICNN(**SMALL, layers=2, curvature=0.05, weight=0.3).double()
    y = pictures(r)
    solution = solve(energy(r), y, 1e-4)
    assert (solution.error <= 1e-4).all()
    with pytest.raises(MissingPropertyError, match="value_with"):
        r.value(y)
    with pytest.raises(MissingPropertyError, match="value_with"):
        r.grad(y)


# --- descriptions ---------------------------------------------------------------------------------


def test_it_is_rebuilt_from_its_description(r):
    spec = r.spec()
    assert spec.pop("type") == "ICNN"
    other = with_theta(ICNN(**spec).double(), flatten(trainable(r)))
    assert other.spec() == r.spec()
    u = pictures(r)
    assert torch.equal(other.value(u), r.value(u))


def test_units_are_in_the_order_of_theta(r):
    units = r.units()
    assert units.shape == flatten(trainable(r)).shape and (units > 0).all()
    assert (units[r.kernels.numel() :][: r.log_weights.numel()] == 1).all()


def test_filters_for_reports(r):
    found = r.filters()
    k, c, s, _ = r.kernels.shape
    assert found["kernels"].shape == (k, c, s, s) and found["weights"].shape == (k,)
    assert (found["weights"] >= 0).all()


def given_weights() -> tuple[list[Tensor], list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(4, 1, 3, 3), (4, 4, 3, 3), (2, 4, 1, 1)]
    weights = [
        torch.randn(shapes[0], generator=g),
        *(torch.rand(s, generator=g) for s in shapes[1:]),
    ]
    return (
        weights,
        [torch.randn(n, generator=g) for n in (4, 4, 2)],
        torch.rand(2, generator=g) + 0.1,
    )


def test_given_weights_are_taken_over():
    (first, hidden, head), biases, last = given_weights()
    hidden[0] = 0  # exact zeros survive
    r = ICNN.from_weights([first, hidden, head], biases, last, pooling=2, zero_mean=False)
    torch.testing.assert_close(r._hidden(1), hidden)
    assert not r._hidden(1)[0].any()
    torch.testing.assert_close(r._head(), head * last.view(-1, 1, 1, 1))
    assert torch.equal(r.kernels, first) and r.depth == 2 and r.pooling == 2


def test_a_fully_connected_head_can_be_given():
    (first, hidden, _), biases, last = given_weights()
    r = ICNN.from_weights(
        [first, hidden, torch.rand(2, 4, 2, 3)], biases, last, pooling=2, image_size=(4, 5)
    )
    assert r.value(torch.rand(1, 1, 4, 5)).shape == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, b, last: w[1].view(-1)[3].sub_(9), r"weights\[1\]: given entries down to -8"),
        (lambda w, b, last: w[2].fill_(math.nan), r"weights\[2\]: given"),
        (lambda w, b, last: w[0].fill_(math.inf), "NaN or Inf"),
        (lambda w, b, last: last.neg_(), "last: given entries down to -"),
        (lambda w, b, last: b.pop(), "weights, biases, last"),
        (lambda w, b, last: w.__delitem__(slice(1, None)), "weights: given"),
    ],
)
def test_bad_weights_are_refused(change, message):
    weights, biases, last = given_weights()
    change(weights, biases, last)
    with pytest.raises(InputError, match=message):
        ICNN.from_weights(weights, biases, last)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"channels": 0}, "channels"),
        ({"size": 4}, "size"),
        ({"layers": 0}, "layers"),
        ({"pooling": 0}, "pooling"),
        ({"units": 1.5}, "units"),
        ({"head_size": 2}, "head_size"),
        ({"slope": 1.0}, "slope"),
        ({"slope": -0.1}, "slope"),
        ({"rounding": -1.0}, "rounding"),
        ({"curvature": math.nan}, "curvature"),
        ({"weight": 0.0}, "weight"),
        ({"padding": "periodic"}, "padding"),
        ({"image_size": (4,)}, "image_size"),
        ({"image_size": 4}, "image_size"),
        ({"image_size": (4, -1)}, "image_size"),
        ({"zero_mean": 1}, "zero_mean"),
        ({"in_channels": True}, "in_channels"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, name):
    with pytest.raises(InputError, match=f"^{name}: given"):
        ICNN(**settings)


@pytest.mark.parametrize("shape", [(1, 2, 6, 6), (1, 1, 2, 6), (1, 6, 6)])
def test_images_that_do_not_fit_are_refused(shape):
    r = ICNN(**SMALL | {"size": 5})
    for call in (r.value, r.grad, r.auxiliary, r.norms):
        with pytest.raises(InputError, match=r"^u: given"):
            call(torch.zeros(shape))


def test_a_fully_connected_head_refuses_images_of_another_size():
    r = ICNN(**SMALL, image_size=(4, 5))
    with pytest.raises(InputError, match="given images 5 x 4; expected 4 x 5"):
        r.value(torch.zeros(1, 1, 5, 4))
