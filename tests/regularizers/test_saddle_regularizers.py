"""The contract of saddle regularizers, and what is particular to ExactTV, TGV and LearnedTV."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.params import flatten, trainable, with_theta
from learnreg.operators.differences import gradient
from learnreg.regularizers import TGV, TV, ExactTV, LearnedTV, SaddleRegularizer, from_spec
from learnreg.regularizers.learned_tv import from_coordinates, to_coordinates

CASES: dict[str, Callable[[], SaddleRegularizer]] = {
    "tv": lambda: ExactTV(0.3),
    "tv-anisotropic-huber": lambda: ExactTV(0.3, isotropic=False, rounding=0.1),
    "tgv": lambda: TGV(0.3),
    "tgv-smooth": lambda: TGV(0.3, ratio=1.5, rounding=0.1, curvature=0.2),
    "learned-reflect": lambda: LearnedTV(3, weight=0.3, init="random"),
    "learned-zero": lambda: LearnedTV(2, size=5, weight=0.3, padding="zero", init="random"),
    "learned-interpolated": lambda: LearnedTV(
        weight=0.3, rounding=0.0, smoothing=0.0, curvature=0.0
    ),
}
SHAPES = ((1, 6, 5), (3, 5, 8), (1, 7, 7))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks_like(blocks: tuple[Tensor, ...], seed: int) -> tuple[Tensor, ...]:
    return tuple(normal(*t.shape, seed=seed + k) for k, t in enumerate(blocks))


def inner(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(s * t).flatten(1).sum(dim=1) for s, t in zip(a, b, strict=True)]).sum(
        dim=0
    )


def points(
    r: SaddleRegularizer, shape: tuple[int, ...], b: int = 2
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Random (u, *v) and p."""
    u = normal(b, *shape)
    return (u, *blocks_like(r.auxiliary(u), 10)), blocks_like(r.dual_start(u), 20)


@torch.no_grad()
def dense(r: SaddleRegularizer, shape: tuple[int, ...]) -> list[list[Tensor]]:
    """K as matrices of its blocks, rows as ``norms``."""
    u = torch.zeros(1, *shape, dtype=torch.float64)
    x = (u, *r.auxiliary(u))
    columns = []
    for k, block in enumerate(x):
        n = block.numel()
        arguments = [t.expand(n, *t.shape[1:]) for t in x]
        arguments[k] = torch.eye(n, dtype=torch.float64).view(n, *block.shape[1:])
        columns.append([row.reshape(n, -1).T for row in r.linear(*arguments)])
    return [list(row) for row in zip(*columns, strict=True)]


def largest(m: Tensor) -> float:
    return float(torch.linalg.matrix_norm(m, 2))


@pytest.fixture(params=CASES)
def regularizer(request) -> SaddleRegularizer:
    return CASES[request.param]().double()


# --- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_protocol_fits_together(regularizer, shape):
    r, (x, p) = regularizer, points(regularizer, shape)
    assert r.saddle and r.effort > 0
    rows, columns = r.linear(*x), r.adjoint(*p)
    assert [a.shape for a in rows] == [a.shape for a in p] == [a.shape for a in r.dual_start(x[0])]
    assert [a.shape for a in columns] == [a.shape for a in x]
    assert len(r.dual(x[0])) == len(p) and len(r.primal(x[0])) == len(x) - 1
    table = r.norms(x[0])
    assert len(table) == len(p) and all(len(row) == len(x) for row in table)
    assert r.offset(x[0]) is None and r.units().shape == flatten(trainable(r)).shape
    assert bool((r.units() > 0).all()) and type(r).__name__ in repr(r)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("graph", [False, True])
def test_adjoint_is_exact_and_arguments_are_only_read(regularizer, shape, graph):
    x, p = points(regularizer, shape)
    kept = [t.clone() for t in (*x, *p)]
    with torch.set_grad_enabled(graph):
        left, right = inner(regularizer.linear(*x), p), inner(x, regularizer.adjoint(*p))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip((*x, *p), kept, strict=True))


def test_both_paths_agree(regularizer):
    x, p = points(regularizer, (3, 6, 7))
    expected = (*regularizer.linear(*x), *regularizer.adjoint(*p))
    assert all(a.requires_grad for a in regularizer.linear(*x))
    with torch.no_grad():
        result = (*regularizer.linear(*x), *regularizer.adjoint(*p))
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=0, atol=1e-13)


def test_derivative_in_theta_matches_finite_differences(regularizer):
    r, (x, p) = regularizer, points(regularizer, (1, 6, 5))
    theta = flatten(trainable(r))
    z = flatten(torch.autograd.grad(inner(r.linear(*x), p).sum(), trainable(r)))
    with torch.no_grad():
        for k in range(0, theta.numel(), max(1, theta.numel() // 12)):
            step = torch.zeros_like(theta)
            step[k] = 1e-5
            ahead, behind = (
                inner(with_theta(r, theta + s).linear(*x), p).sum() for s in (step, -step)
            )
            assert float((ahead - behind) / 2e-5) == pytest.approx(float(z[k]), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("shape", [(1, 6, 5), (1, 5, 9)])
def test_norms_are_bounds_and_close(regularizer, shape):
    for bounds, blocks in zip(
        regularizer.norms(torch.zeros(1, *shape)), dense(regularizer, shape), strict=True
    ):
        for bound, block in zip(bounds, blocks, strict=True):
            exact = largest(block)
            assert exact <= bound * (1 + 1e-12) + 1e-15
            assert bound <= 1.5 * exact + 1e-15


def test_sensitivity_bounds_the_derivative_of_the_operator(regularizer):
    """Ascent in turn: the worst pair (x, p) for a direction, then the worst direction for the
    pair.
    """
    r, shape = regularizer, (1, 6, 5)
    theta, h, found = flatten(trainable(r)), 1e-4, 0.0
    kappa, beta = r.sensitivity(torch.zeros(1, *shape))
    u = torch.zeros(1, *shape, dtype=torch.float64)
    sizes = [t.numel() for t in (u, *r.auxiliary(u))], [t.numel() for t in r.dual_start(u)]
    for seed in range(3):
        d = normal(theta.numel(), seed=seed)
        for _ in range(6):
            d = d / d.norm()
            ahead, behind = (
                torch.cat(
                    [torch.cat(row, dim=1) for row in dense(with_theta(r, theta + s * d), shape)]
                )
                for s in (h, -h)
            )
            left, values, right = torch.linalg.svd((ahead - behind) / (2 * h), full_matrices=False)
            found = max(found, float(values[0]))
            x = tuple(
                s.view(1, *t.shape[1:])
                for s, t in zip(right[0].split(sizes[0]), (u, *r.auxiliary(u)), strict=True)
            )
            p = tuple(
                s.view(1, *t.shape[1:])
                for s, t in zip(left[:, 0].split(sizes[1]), r.dual_start(u), strict=True)
            )
            d = flatten(torch.autograd.grad(inner(r.linear(*x), p).sum(), trainable(r)))
    assert beta == 0
    assert found <= kappa * (1 + 1e-6)
    assert kappa <= 1.6 * found


@torch.no_grad()
def test_images_are_strangers(regularizer):
    r, (x, p) = regularizer, points(regularizer, (1, 6, 5), b=4)
    index = torch.tensor([2, 0])
    together = (*r.linear(*x), *r.adjoint(*p), r.value_with(*x))
    apart = (
        *r.linear(*(t[index] for t in x)),
        *r.adjoint(*(t[index] for t in p)),
        r.value_with(*(t[index] for t in x)),
    )
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a[index], b, rtol=1e-13, atol=1e-14)
    for f, a in zip((*r.primal(x[0]), *r.dual(x[0])), (*x[1:], *p), strict=True):
        torch.testing.assert_close(f.select(index).value(a[index]), f.value(a)[index])


def test_recipe_and_weights_rebuild_it(regularizer):
    with torch.no_grad():
        for q in regularizer.parameters():
            q.add_(0.1 * normal(*q.shape, 1).squeeze(-1))
    fresh = from_spec(regularizer.spec()).double()
    fresh.load_state_dict(regularizer.state_dict())
    x, p = points(regularizer, (1, 6, 7))
    for a, b in zip(
        (*regularizer.linear(*x), *regularizer.adjoint(*p)),
        (*fresh.linear(*x), *fresh.adjoint(*p)),
        strict=True,
    ):
        assert torch.equal(a, b)
    for f, g in zip(
        (*regularizer.primal(x[0]), *regularizer.dual(x[0])),
        (*fresh.primal(x[0]), *fresh.dual(x[0])),
        strict=True,
    ):
        assert type(f) is type(g) and (f.strong, f.smooth) == (g.strong, g.smooth)
    assert copy.deepcopy(fresh).spec() == regularizer.spec()


@pytest.mark.parametrize("images", [torch.zeros(6, 5), torch.zeros(1, 6, 5)])
def test_what_is_no_batch_of_images_is_refused(regularizer, images):
    for method in (
        regularizer.value,
        regularizer.norms,
        regularizer.sensitivity,
        regularizer.dual_start,
    ):
        with pytest.raises(InputError, match=r"u: given shape .*\(b, c, h, w\)"):
            method(images)


@torch.no_grad()
def test_float32_stays_float32(regularizer):
    r = regularizer.float()
    x, p = points(r, (1, 6, 5))
    for t in (*r.linear(*(t.float() for t in x)), *r.adjoint(*(t.float() for t in p))):
        assert t.dtype == torch.float32


# --- values and duality ---------------------------------------------------------------------------


@pytest.mark.parametrize("isotropic", [True, False])
def test_exact_tv_is_the_sum_of_lengths(isotropic):
    u = normal(2, 3, 6, 7)
    d = gradient(u)
    lengths = torch.linalg.vector_norm(d, dim=1) if isotropic else d.abs()
    torch.testing.assert_close(
        ExactTV(0.3, isotropic).double().value(u),
        0.3 * lengths.flatten(1).sum(dim=1),
        rtol=1e-6,
        atol=0,
    )
    rounded = ExactTV(0.3, isotropic, rounding=0.1).double().value(u)
    below = ExactTV(0.3, isotropic).double().value(u) - rounded
    assert bool((below > 0).all()) and bool((below <= lengths[0].numel() * 0.05).all())


def test_exact_tv_is_the_limit_of_smoothed_tv():
    u = normal(2, 1, 6, 7)
    smoothed = TV(0.3, smoothing=1e-6).double().value(u)
    torch.testing.assert_close(ExactTV(0.3).double().value(u), smoothed, rtol=1e-4, atol=0)


def affine(c: int, h: int, w: int) -> Tensor:
    i, j = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
    return torch.stack([2 + (k + 1) * i - 3 * j for k in range(c)]).double()[None]


@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 2, 2), (3, 5, 8), (1, 16, 9)])
def test_affine_images_cost_tgv_nothing_edges_included(shape):
    u, r = affine(*shape), TGV(0.3).double()
    assert float(r.value_with(u, gradient(u))) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(r.value_with(u, *r.auxiliary(u)), ExactTV(0.3).double().value(u))


@torch.no_grad()
def test_entries_of_a_field_at_missing_neighbours_count_for_nothing():
    r, u = TGV(0.3).double(), normal(2, 1, 5, 6)
    v = gradient(normal(2, 1, 5, 6, seed=1))
    loud = v.clone()
    loud[:, 0, ..., -1, :] = loud[:, 1, ..., -1] = 1e3
    assert torch.equal(r.value_with(u, v), r.value_with(u, loud))
    back = r.adjoint(*blocks_like(r.dual_start(u), 3))[1]
    assert not back[:, 0, ..., -1, :].any() and not back[:, 1, ..., -1].any(), (
        "descent leaves them alone"
    )


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_tgv_repairs_dual_variables(scale, dtype):
    r, u = TGV(0.3, ratio=1.7).to(dtype), normal(3, 2, 7, 8).to(dtype)
    p = tuple(scale * t.to(dtype) for t in blocks_like(r.dual_start(u), 5))
    good = r.feasible((u, *r.auxiliary(u)), p)
    assert good is not None
    free, functions = r.adjoint(*good)[1], r.dual(u)
    assert float(free.abs().max()) <= 4 * torch.finfo(dtype).eps
    assert bool((r.primal(u)[0].gauge(-free) == 1).all())
    for f, s in zip(functions, good, strict=True):
        torch.testing.assert_close(f.gauge(s), torch.ones(3, dtype=dtype), rtol=1e-5, atol=0)
    again = r.feasible((u, *r.auxiliary(u)), good)
    for a, b in zip(good, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_repaired_duals_bound_tgv_from_below():
    r, u = TGV(0.3).double(), normal(3, 1, 7, 8)
    for seed in range(5):
        p = r.feasible((u, *r.auxiliary(u)), blocks_like(r.dual_start(u), seed))
        below = inner((r.adjoint(*p)[0],), (u,))
        for v in (gradient(u), 0.5 * gradient(u), torch.zeros_like(gradient(u))):
            assert bool((below <= r.value_with(u, v)).all())


def test_tgv_with_a_price_on_the_field_needs_no_repair():
    r, u = TGV(curvature=0.1), torch.rand(1, 1, 5, 5)
    assert r.feasible((u, *r.auxiliary(u)), r.dual_start(u)) is None


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@torch.no_grad()
def test_learned_tv_with_one_identity_filter_is_standard_tv(padding):
    r = LearnedTV(
        1, weight=0.3, padding=padding, init="identity", rounding=0.0, smoothing=0.0, curvature=0.0
    ).double()
    u = normal(2, 3, 6, 7)
    p = blocks_like(r.dual_start(u), 1)
    image, field = r.adjoint(*p)
    torch.testing.assert_close(image, ExactTV(0.3).double().adjoint(*p)[0])
    torch.testing.assert_close(field, -p[0].unsqueeze(3))
    v = r.log_weight.exp() * gradient(u)
    assert float(r.linear(u, v.unsqueeze(3))[0].abs().max()) < 1e-14
    torch.testing.assert_close(
        r.value_with(u, v.unsqueeze(3)), ExactTV(0.3).double().value(u), rtol=1e-6, atol=0
    )


@torch.no_grad()
def test_identity_filters_bound_every_copy_of_the_field():
    r, p = LearnedTV(4, init="identity").double(), normal(2, 2, 1, 6, 7)
    torch.testing.assert_close(r.adjoint(p)[1], -p.unsqueeze(3).expand(-1, -1, -1, 4, -1, -1))


@torch.no_grad()
def test_interpolated_filters_move_the_field_to_four_places():
    """A field that is affine in its position is interpolated exactly: (row, column) of both
    components agree.
    """
    i, j = torch.meshgrid(torch.arange(7.0), torch.arange(8.0), indexing="ij")
    where = torch.stack([(i + 0.5) + 10 * j, i + 10 * (j + 0.5)]).double()[
        None, :, None
    ]  # i + 10 j at the entries
    found = -LearnedTV().double().adjoint(where)[1][0, :, 0]
    places = ((0.5, 0.0), (0.0, 0.5), (0.0, 0.0), (0.5, 0.5))
    for k, (down, right) in enumerate(places):
        expected = ((i + down) + 10 * (j + right)).double()[1:-1, 1:-1]
        for component in range(2):
            torch.testing.assert_close(found[component, k, 1:-1, 1:-1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("init", ["interpolated", "identity", "random"])
def test_filters_sum_to_one_whatever_theta(size, init):
    r = LearnedTV(3, size=size, init=init).double()
    torch.testing.assert_close(r.kernels().sum(dim=(-2, -1)), torch.ones(2, 3, dtype=torch.float64))
    with torch.no_grad():
        r.coordinates.add_(normal(*r.coordinates.shape))
    torch.testing.assert_close(r.kernels().sum(dim=(-2, -1)), torch.ones(2, 3, dtype=torch.float64))
    shown = r.filters()
    assert shown["kernels"].shape == (6, 1, size, size) and shown["weights"].shape == (6,)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_coordinates_are_orthonormal_and_reach_every_filter_with_sum_one(size):
    t = normal(4, size**2 - 1)
    kernels = from_coordinates(t)
    torch.testing.assert_close(
        (kernels - from_coordinates(0 * t)).flatten(1).norm(dim=1), t.norm(dim=1)
    )
    torch.testing.assert_close(to_coordinates(kernels), t)
    delta = torch.zeros(size, size, dtype=torch.float64)
    delta[0, 1] = 1
    torch.testing.assert_close(from_coordinates(to_coordinates(delta)), delta)


def test_random_filters_come_from_the_seed_alone():
    before = torch.get_rng_state()
    one, same, other = (LearnedTV(init="random", seed=s).kernels() for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_smooth_learned_tv_has_the_constants_certified_hypergradients_need():
    r, u = LearnedTV(rounding=0.1, smoothing=0.2, curvature=0.3), torch.rand(1, 1, 5, 5)
    (g,), (f,) = r.primal(u), r.dual(u)
    assert g.strong == pytest.approx(0.3) and g.smooth == pytest.approx(1 / 0.2 + 0.3)
    assert (
        math.isfinite(g.hessian_lipschitz)
        and f.smooth == pytest.approx(10)
        and f.hessian_lipschitz == 0
    )
    (plain,) = LearnedTV(rounding=0.0, smoothing=0.0, curvature=0.0).dual(u)
    assert float(plain.conjugate(torch.rand(1, 2, 1, 5, 5))) == 0


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TGV, LearnedTV])
def test_a_value_that_is_a_minimum_is_refused_with_a_way_out(make):
    with pytest.raises(MissingPropertyError, match="value_with"):
        make().value(torch.rand(1, 1, 6, 6))


def bad() -> Iterator[tuple[type, dict, str]]:
    for make, names in (
        (ExactTV, ("weight",)),
        (TGV, ("weight", "ratio")),
        (LearnedTV, ("weight",)),
    ):
        yield from (
            (make, {name: value}, name)
            for name in names
            for value in (0, -1.0, math.nan, math.inf, "1")
        )
    for make, names in (
        (ExactTV, ("rounding",)),
        (TGV, ("rounding", "curvature")),
        (LearnedTV, ("rounding", "smoothing", "curvature")),
    ):
        yield from (
            (make, {name: value}, name)
            for name in names
            for value in (-1.0, math.nan, math.inf, "1", True)
        )
    yield ExactTV, {"isotropic": 1}, "isotropic"
    yield from ((LearnedTV, {"size": value}, "size") for value in (1, 4, 3.0, -3, True))
    yield from ((LearnedTV, {"filters": value}, "filters") for value in (0, 2.0, True, 5))
    yield LearnedTV, {"padding": "periodic"}, "padding"
    yield LearnedTV, {"init": "dct"}, "init"
    yield LearnedTV, {"smoothing": 0.0, "curvature": 0.1}, "curvature"


@pytest.mark.parametrize(("make", "arguments", "name"), list(bad()))
def test_bad_arguments_are_named(make, arguments, name):
    with pytest.raises(InputError, match=rf"^{name}: given .*; expected "):
        make(**arguments)


def test_images_smaller_than_the_filters_are_refused():
    with pytest.raises(InputError, match=r"h, w >= 5.*[Ll]arger images"):
        LearnedTV(size=5).auxiliary(torch.zeros(1, 1, 4, 9))
