"""What holds for every function of one block."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from learnreg.convex import (
    Box,
    Boxed,
    Convex,
    Diagonal,
    Epigraph,
    KullbackLeibler,
    Ridged,
    SmoothNorm,
    Squares,
)
from learnreg.core.constraints import Interval
from learnreg.core.errors import MissingPropertyError

from .cases import BLOCK, GROUPS, Case, dot, each, normal, pair, points, random, steps

GOLDEN = (math.sqrt(5) - 1) / 2


def inner_of(f: Convex) -> Convex:
    """What a ridge was added to."""
    return f.phi if isinstance(f, Ridged) else f


def golden(f, low: Tensor, high: Tensor, rounds: int = 48) -> tuple[Tensor, Tensor]:
    """Minimizer and minimum of a convex function per row, from above: if infinite, larger arguments
    are feasible.
    """
    for _ in range(rounds):
        c, d = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        left = f(c) < f(d)
        low, high = torch.where(left, low, c), torch.where(left, d, high)
    return high, f(high)


def brute_prox(f: Convex, a: Tensor, step: Tensor) -> Tensor:
    """Nested golden sections over both entries of every group; a: (n, 2), step: (n,)."""
    reach = 3 + 2 * a.abs().amax()
    low, high = a.new_full((len(a),), -float(reach)), a.new_full((len(a),), float(reach))

    def objective(z: Tensor) -> Tensor:
        return step * f.value(z) + 0.5 * (z - a).square().sum(dim=1)

    def inner(x: Tensor) -> tuple[Tensor, Tensor]:
        return golden(lambda y: objective(torch.stack((x, y), dim=1)), low, high)

    x, _ = golden(lambda x: inner(x)[1], low, high)
    return torch.stack((x, inner(x)[0]), dim=1)


@each
def test_the_prox_minimizes(case: Case):
    f, a = case.make(GROUPS), points(GROUPS, 1)
    step = 0.1 + 3 * random(GROUPS[:1])
    found = f.prox(a, step[:, None])
    if isinstance(f, Box):
        assert torch.equal(found, a.clamp(f.lower, f.upper))
        return
    if isinstance(f, Boxed):  # a sum over entries: moving one of them along a grid gains nothing
        best = step * f.value(found) + 0.5 * (found - a).square().sum(dim=1)
        low, high = f.lower.clamp_min(-60).expand_as(a), f.upper.clamp_max(60).expand_as(a)
        assert ((found >= low) & (found <= high)).all()
        for share in torch.linspace(0, 1, 301, dtype=a.dtype):
            for k in range(2):
                z = found.clone()
                z[:, k] = (low + share * (high - low))[:, k]
                value = step * f.value(z) + 0.5 * (z - a).square().sum(dim=1)
                assert (value >= best - 1e-9 * (1 + best.abs())).all()
        return
    # along a graph the search sees the inner minimum up to its bracket: half of the digits (see
    # test_epigraph.py)
    tolerance = 1e-4 if isinstance(f, Epigraph) else 1e-6
    torch.testing.assert_close(found, brute_prox(f, a, step), rtol=tolerance, atol=tolerance)


@each
def test_the_prox_minimizes_to_the_last_digits(case: Case):
    """x = prox(a) exactly if (a - x) / step is a subgradient at x, that is if the gap vanishes."""
    f = case.make(BLOCK)
    for step in steps(BLOCK[0], len(BLOCK)):
        a, s = pair(f, BLOCK, 2, step)
        assert (f.gap(a, s) <= 1e-13 * (1 + dot(a, a) + dot(s, s))).all()


@each
def test_prox_of_the_conjugate_is_moreaus(case: Case):
    f, s = case.make(BLOCK), points(BLOCK, 3)
    for step in steps(BLOCK[0], len(BLOCK)):
        z = f.prox(s / step, 1 / step)
        torch.testing.assert_close(f.prox_conjugate(s, step), s - step * z, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            f.prox_conjugate(s, step), Convex.prox_conjugate(f, s, step), rtol=1e-11, atol=1e-11
        )


@each
def test_the_gap_is_what_fenchel_and_young_leave(case: Case):
    f = case.make(BLOCK)
    a, _ = pair(f, BLOCK, 4)
    s = f.prox_conjugate(points(BLOCK, 5), 0.8)
    value, conjugate = f.value(a), f.conjugate(s)
    assert torch.isfinite(value).all() and torch.isfinite(conjugate).all()
    gap = f.gap(a, s)
    assert (gap >= 0).all()
    torch.testing.assert_close(gap, value + conjugate - dot(a, s), rtol=1e-9, atol=1e-11)


@each
def test_points_outside_of_the_domains_cost_infinity(case: Case):
    f, z = case.make(BLOCK), points(BLOCK, 6)
    a, s = pair(f, BLOCK, 7)
    inside = torch.isfinite(f.value(z))
    assert torch.equal(torch.isfinite(f.gap(z, s)), inside)
    assert torch.equal(inside, (f.prox(z, 1e-9) - z).abs().flatten(1).amax(dim=1) < 1e-6)
    inside = torch.isfinite(f.conjugate(z))
    assert torch.equal(torch.isfinite(f.gap(a, z)), inside)
    assert torch.equal(inside, (f.prox_conjugate(z, 1e-9) - z).abs().flatten(1).amax(dim=1) < 1e-6)


@each
def test_nan_is_never_a_small_gap(case: Case):
    f = case.make(BLOCK)
    a, s = pair(f, BLOCK, 7)
    for k, broken in enumerate((a, s)):
        broken = broken.clone()
        broken[1, 1, 0, 0] = math.nan
        gap = f.gap(broken, s) if k == 0 else f.gap(a, broken)
        good = gap <= 1
        if not (case.name == "Zero" and k == 0):  # what is free costs nothing, whatever it is
            assert not good[1]
        assert good[[0, 2, 3, 4]].all()


@each
@pytest.mark.parametrize("which", ["prox", "prox_conjugate"])
def test_tangents_of_the_prox(case: Case, which: str):
    f, a = case.make(BLOCK), points(BLOCK, 8)
    v, w, h = normal(BLOCK, 9), normal(BLOCK, 10), 1e-7
    prox, tangent_at = getattr(f, which), getattr(f, f"{which}_tangent")
    for step in steps(BLOCK[0], len(BLOCK)):
        tangent = tangent_at(a, step)
        difference = (prox(a + h * v, step) - prox(a - h * v, step)) / (2 * h)
        torch.testing.assert_close(tangent(v).expand(BLOCK), difference, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dot(tangent(v), w), dot(v, tangent(w)))
        assert (
            dot(tangent(v), tangent(v)) <= dot(tangent(v), v) * (1 + 1e-12)
        ).all()  # firmly nonexpansive


@each
def test_at_a_kink_the_tangent_stays_between_zero_and_one(case: Case):
    f = case.make(BLOCK)
    for a in (
        torch.zeros(BLOCK, dtype=torch.float64),
        getattr(f, "centre", None),
        normal(BLOCK, 3),
    ):
        if a is not None:
            v = normal(BLOCK, 11)
            tangent = f.prox_tangent(a.expand(BLOCK), 0.4)
            assert (dot(tangent(v), v) >= 0).all() and (
                dot(tangent(v), v) <= dot(v, v) * (1 + 1e-12)
            ).all()


@each
def test_gradient_and_hessian(case: Case):
    f = case.make(BLOCK)
    if not case.smooth:
        for derivative in (f.grad, f.hessian):
            with pytest.raises(MissingPropertyError, match=type(f).__name__) as error:
                derivative(points(BLOCK, 12))
            assert error.value.remedy
        return
    a, s = pair(f, BLOCK, 12, 0.3)
    v, h = normal(BLOCK, 13), 1e-7
    if isinstance(
        inner_of(f), KullbackLeibler
    ):  # where y = 0 the point can lie on the border of the domain
        a, s = a + 0.2, None
    grad = f.grad(a)
    if s is not None and case.name != "Zero":
        torch.testing.assert_close(grad, s, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        dot(grad, v), (f.value(a + h * v) - f.value(a - h * v)) / (2 * h), rtol=1e-5, atol=1e-5
    )
    difference = (f.grad(a + h * v) - f.grad(a - h * v)) / (2 * h)
    torch.testing.assert_close(f.hessian(a)(v).expand(BLOCK), difference, rtol=1e-5, atol=1e-4)
    assert (f.gap(a, grad) <= 1e-13 * (1 + dot(a, a))).all()


@each
def test_gradient_and_hessian_of_the_conjugate(case: Case):
    f = case.make(BLOCK)
    if not case.conjugate_smooth:
        for derivative in (f.conjugate_grad, f.conjugate_hessian):
            with pytest.raises(MissingPropertyError, match=type(f).__name__) as error:
                derivative(points(BLOCK, 12))
            assert error.value.remedy
        return
    s = points(BLOCK, 14)
    inner = inner_of(f)
    if isinstance(inner, KullbackLeibler):
        s = (0.9 - s.abs()) * inner.weight
    v, h, a = normal(BLOCK, 15), 1e-7, f.conjugate_grad(s)
    assert (f.gap(a, s) <= 1e-12 * (1 + dot(a, a))).all()
    keep = (
        (inner.data > 0).double()
        if isinstance(inner, KullbackLeibler)
        else torch.ones(BLOCK, dtype=torch.float64)
    )
    if case.smooth:
        torch.testing.assert_close(f.grad(a) * keep, s * keep, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            f.hessian(a)(f.conjugate_hessian(s)(v)) * keep, v * keep, rtol=1e-7, atol=1e-7
        )
    difference = (f.conjugate_grad(s + h * v) - f.conjugate_grad(s - h * v)) / (2 * h)
    torch.testing.assert_close(
        f.conjugate_hessian(s)(v).expand(BLOCK), difference, rtol=1e-4, atol=1e-3
    )


@each
def test_constants_hold(case: Case):
    f = case.make(GROUPS)
    for size in (1e-3, 1e-1, 3.0):
        a = points(GROUPS, 16)
        b = a + size * normal(GROUPS, 17)
        apart = (a - b).square().sum(dim=1).sqrt()
        moved = (f.prox(a, 0.7) - f.prox(b, 0.7)).square().sum(dim=1).sqrt()
        assert (moved <= apart / (1 + 0.7 * f.strong) * (1 + 1e-9)).all()
        if math.isfinite(f.smooth):
            assert (
                (f.grad(a) - f.grad(b)).square().sum(dim=1).sqrt() <= f.smooth * apart * (1 + 1e-9)
            ).all()
        if math.isfinite(f.hessian_lipschitz):
            assert (local_norms(f, a, b) <= f.hessian_lipschitz * apart[:, None] * (1 + 1e-9)).all()


def local_norms(f: Convex, a: Tensor, b: Tensor) -> Tensor:
    """|hessian(a) - hessian(b)| per entry or group."""
    first, second = f.hessian(a), f.hessian(b)
    if isinstance(first, Diagonal):
        return (first.weights - second.weights).abs()
    columns = [
        first(e) - second(e) for e in torch.eye(2, dtype=a.dtype).expand(len(a), 2, 2).unbind(dim=1)
    ]
    return torch.linalg.matrix_norm(torch.stack(columns, dim=2), ord=2)[:, None]


@each
def test_the_change_of_the_hessian_is_bounded(case: Case):
    f = case.make(GROUPS)
    a = pair(f, GROUPS, 18)[0]
    if isinstance(inner_of(f), KullbackLeibler):
        a = a + 0.1  # the border of the domain has no Hessian
    if not case.smooth:
        with pytest.raises(MissingPropertyError, match=type(f).__name__):
            f.change(a, torch.ones(len(a), dtype=a.dtype))
        return
    for size in (1e-3, 1e-2, 1e-1, 1.0):
        radius = size * random(GROUPS[:1], 19)
        bound = f.change(a, radius)
        assert torch.broadcast_shapes(bound.shape, a.shape) == a.shape
        for seed in range(12):
            v = normal(GROUPS, 20 + seed) if seed < 10 else a * (-1) ** seed
            v = (
                v
                * (radius / v.square().sum(dim=1).sqrt())[:, None]
                * (random(GROUPS[:1], seed) ** 0.2)[:, None]
            )
            b = a + v
            allowed = bound * (1 + 1e-6) + 1e-9
            if isinstance(
                f, KullbackLeibler
            ):  # compared inside of the domain only; outside the bound is infinite
                b = torch.maximum(b, 1e-3 - torch.as_tensor(f.background))
            assert (local_norms(f, a, b) <= allowed).all()


@each
def test_images_are_strangers(case: Case):
    f, order = case.make(BLOCK), torch.tensor([3, 0, 4])
    a, s = pair(f, BLOCK, 21)
    z, step = points(BLOCK, 22), steps(BLOCK[0], len(BLOCK))[2]
    radius = 0.1 * random(BLOCK[:1])
    questions = {
        "value": lambda f, i: f.value(a[i]),
        "conjugate": lambda f, i: f.conjugate(s[i]),
        "gap": lambda f, i: f.gap(a[i], s[i]),
        "gauge": lambda f, i: f.gauge(z[i]),
        "prox": lambda f, i: f.prox(z[i], step[i]),
        "prox_conjugate": lambda f, i: f.prox_conjugate(z[i], step[i]),
        "tangent": lambda f, i: f.prox_tangent(z[i], step[i])(a[i]),
    }
    if case.smooth:
        questions |= {
            "grad": lambda f, i: f.grad(z[i].abs()),
            "hessian": lambda f, i: f.hessian(z[i].abs())(a[i]),
            "change": lambda f, i: f.change(z[i].abs(), radius[i]).expand(z[i].shape),
        }
    for name, ask in questions.items():
        whole = ask(f, slice(None))
        torch.testing.assert_close(
            ask(f.select(order), order), whole[order], rtol=1e-13, atol=1e-14, msg=name
        )
        torch.testing.assert_close(
            ask(f.select(torch.tensor([2])), [2]), whole[[2]], rtol=1e-13, atol=1e-14, msg=name
        )
    selected = f.prox_tangent(z, step).select(order)
    torch.testing.assert_close(selected(a[order]), f.prox_tangent(z, step)(a)[order])
    shrunk = selected.mapped(lambda eigenvalue: 1 / (1 + step[order] * eigenvalue))
    v = normal(BLOCK, 5)[order]
    torch.testing.assert_close(shrunk(v + step[order] * selected(v)), v)


def singled(f: Convex) -> Convex:
    """The function with its data in float32 (the same numbers as ``singled(f).double()``)."""
    if isinstance(f, Boxed):
        bounds = Interval(f.bounds.lower.float(), f.bounds.upper.float())
        return Boxed(singled(f.inner), bounds)
    if isinstance(f, Ridged):
        return Ridged(singled(f.phi), f.ridge)
    if isinstance(f, KullbackLeibler):
        background = f.background.float() if isinstance(f.background, Tensor) else f.background
        weight = f.weight.float() if isinstance(f.weight, Tensor) else f.weight
        return KullbackLeibler(f.data.float(), background, weight)
    if isinstance(f, Squares):
        weight = f.weight.float() if isinstance(f.weight, Tensor) else f.weight
        return Squares(weight, None if f.centre is None else f.centre.float())
    if getattr(f, "centre", None) is not None:
        return type(f)(f.scale, f.centre.float(), f.isotropic, f.rounding)
    return f


@each
def test_float32_loses_a_few_units_only(case: Case):
    f = singled(case.make(BLOCK))
    z, s = points(BLOCK, 23).float(), points(BLOCK, 24).float()
    size, eps = 1 + z.abs().flatten(1).amax(dim=1).view(-1, 1, 1, 1), torch.finfo(torch.float32).eps
    for step in (0.3, steps(BLOCK[0], len(BLOCK))[2].float()):
        exact_step = step.double() if isinstance(step, Tensor) else step
        for name in ("prox", "prox_conjugate"):
            rough, exact = (
                getattr(f, name)(z, step),
                getattr(f.double(), name)(z.double(), exact_step),
            )
            assert rough.dtype == torch.float32 and exact.dtype == torch.float64
            assert ((rough - exact).abs() <= 24 * eps * size).all()
            # what was projected is inside, up to rounding
            inside = f.value(rough) if name == "prox" else f.conjugate(rough)
            assert torch.isfinite(inside).all() or isinstance(f, KullbackLeibler)
        assert (
            f.prox_conjugate(z, step.double() if isinstance(step, Tensor) else step).dtype
            == torch.float32
        )
    a = f.prox(z, 0.3)
    p = f.prox_conjugate(s, 0.3)
    rough, exact = f.gap(a, p), f.double().gap(a.double(), p.double())
    assert rough.dtype == torch.float32
    scale = 1 + (a.abs() * p.abs()).flatten(1).sum(dim=1)
    assert ((rough - exact).abs() <= 24 * eps * (scale + exact)).all()


@each
def test_the_gauge_leads_into_the_domain(case: Case):
    f, s = case.make(BLOCK), 3 * points(BLOCK, 25)
    t = f.gauge(s)
    assert t.shape == BLOCK[:1] and (t >= 1).all()
    reachable = torch.isfinite(t)
    fitted = s / torch.where(reachable, t, 1.0).view(-1, 1, 1, 1)
    assert torch.isfinite(f.conjugate(fitted))[reachable].all()
    assert torch.isinf(f.conjugate(s))[t > 1.001].all()
    barely = s / torch.where(reachable, 0.999 * t, 1.0).view(-1, 1, 1, 1)
    assert torch.isinf(f.conjugate(barely))[t > 1.01].all()


@each
def test_nothing_lent_is_changed_and_results_are_new(case: Case):
    f = case.make(BLOCK)
    a, s = pair(f, BLOCK, 26)
    z, v = points(BLOCK, 27), normal(BLOCK, 28)
    lent = (a, s, z, v)
    before = [t.clone() for t in lent]
    results = [
        f.prox(z, 0.4),
        f.prox_conjugate(z, 0.4),
        f.prox_tangent(z, 0.4)(v),
        f.prox_conjugate_tangent(z, 0.4)(v),
    ]
    f.value(z), f.conjugate(z), f.gap(a, s), f.gauge(z)
    if case.smooth:
        results += [f.grad(a), f.hessian(a)(v)]
        f.change(a, torch.ones(BLOCK[0], dtype=a.dtype))
    if case.conjugate_smooth:
        results += [f.conjugate_grad(s), f.conjugate_hessian(s)(v)]
    assert all(torch.equal(old, new) for old, new in zip(before, lent, strict=True))
    owned = {t.data_ptr() for t in lent}
    assert not any(r.data_ptr() in owned for r in results)


@each
def test_constants_are_consistent(case: Case):
    f = case.make(BLOCK)
    assert 0 <= f.strong <= f.smooth
    assert case.smooth or math.isinf(f.smooth)
    assert not (case.conjugate_smooth and isinstance(f, SmoothNorm | Squares)) or f.strong > 0
    assert not isinstance(f, Epigraph) or f.smooth == math.inf


@each
def test_growth_is_never_too_large(case: Case):
    """Near, far, at the border of the domain and across it."""
    f = case.make(GROUPS)
    a, s = pair(f, GROUPS, 23)
    s = 0.9 * s if case.name.startswith("Kull") else s
    if f.growth(a, s, torch.ones(len(a)).double()) is None:
        assert not isinstance(inner_of(f), KullbackLeibler)
        return

    for size in (1e-5, 1e-2, 1.0, 30.0):
        radius = size * (0.1 + random((len(a),), 24))
        m, allowance = f.growth(a, s, radius)
        z = a + radius[:, None] * (2 * random(GROUPS, 25) - 1)
        inside = torch.isfinite(f.value(z)) & torch.isfinite(f.gap(z, s))
        breg = f.value(a) - f.value(z) - dot(f.grad(z), a - z)
        left = breg + f.gap(z, s) + allowance
        right = 0.5 * dot(m, (z - a).square())
        assert (left >= right - 1e-12 * (1 + left.abs()))[inside].all() and inside.any()
        assert (m >= f.strong).all()
