"""Constants of certificates wherever theta sits: never below what occurs, against Jacobians made by
autograd and points on the sphere.
"""

from __future__ import annotations

import math
from typing import Any

import deepinv as dinv
import pytest
import torch
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.batch import norm
from learnreg.core.params import trainable

SIDE, BATCH = 6, 3

NAMES = ("hessian_change", "mixed_change", "mixed_norm")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(learned: bool, seed: int = 0, images: int = 1) -> Tensor:
    k = drawn(images, 1, 3, 3, seed=seed) * 0.3
    return k.requires_grad_(learned)


class Lines(nn.Module):
    """Weights of lines, by a curve in theta; a data term of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(drawn(SIDE, seed=5))

    def tie(self, y: Tensor) -> Any:
        weights = self.theta.exp().view(1, 1, SIDE, 1)
        return lr.problems.data_functions.Quadratic(y, weights)


class Shifted(nn.Module):
    """Measurements less a background that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(drawn(2, seed=6))

    def tie(self, y: Tensor) -> Any:
        ramp = torch.linspace(0, 1, SIDE, dtype=y.dtype)
        return lr.problems.data_functions.Quadratic(y - self.theta[0] * ramp - self.theta[1] ** 2)


class Unseen(nn.Module):
    """One whose theta nobody sees."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))

    def tie(self, y: Tensor) -> Any:
        return lr.problems.data_functions.Quadratic(y, float(self.theta.detach() ** 2))


def weights(*shape: int) -> lr.WeightedL2:
    return lr.WeightedL2(nn.Parameter(drawn(*shape, seed=4).abs() + 0.1))


# name: padding, whether the kernel is learned, data term, regularizer
CASES: dict[str, tuple[str, bool, Any, Any]] = {
    "kernel": ("reflect", True, lambda: lr.L2(0.5), None),
    "kernel and filters": ("circular", True, lr.L2, lambda: lr.regularizers.FoE(2, 3)),
    "kernel and weights": ("constant", True, lambda: weights(1, 1, SIDE, SIDE), None),
    "weights": ("replicate", False, lambda: weights(1, 1, SIDE, SIDE), None),
    "shared weights": ("reflect", False, lambda: weights(1, 1, SIDE, 1), lr.regularizers.TV),
    "weights per image": ("reflect", False, lambda: weights(BATCH, 1, 1, SIDE), None),
    "lines": ("reflect", True, Lines, None),
    "background": ("reflect", True, Shifted, lr.regularizers.TV),
    "counts": ("reflect", True, lambda: lr.KL(0.5), None),
    "counts with gain": ("circular", True, lambda: lr.KL(0.2, gain=0.3), lr.regularizers.TV),
    "counts, fixed": ("reflect", False, lambda: lr.KL(0.5), lambda: lr.regularizers.FoE(2, 3)),
    "outliers": ("reflect", True, lambda: lr.Huber(0.3), None),
    "outliers, fixed": ("reflect", False, lambda: lr.Huber(0.3), lr.regularizers.TV),
}


def tied(name: str) -> tuple[Any, Tensor]:
    """The energy tied to its data, and images."""
    padding, learned, term, regularizer = CASES[name]
    physics = dinv.physics.Blur(filter=kernel(learned), padding=padding)
    flat = lr.regularizers.Tikhonov(0.1, learned=False)
    r = flat if regularizer is None else regularizer() + flat
    x = drawn(BATCH, 1, SIDE, SIDE, seed=1)
    y = drawn(BATCH, 1, SIDE, SIDE, seed=2)
    counts = name.startswith("counts")
    energy = lr.Energy(physics, r, term()).double()
    return energy.at(y.abs().round() if counts else y, x), x


def jacobian(f: Any, x: Tensor) -> Tensor:
    """J (b, pixels, d) by autograd."""
    params, out = trainable(f.energy), []
    for i in range(BATCH):
        rows = []
        for pixel in torch.eye(SIDE * SIDE, dtype=torch.float64):
            v = torch.zeros_like(x)
            v[i] = pixel.view(1, SIDE, SIDE)
            slope = f.directional(x, v).sum()
            found = torch.autograd.grad(slope, params, allow_unused=True, retain_graph=True)
            rows.append(
                torch.cat(
                    [
                        torch.zeros_like(p).flatten() if g is None else g.flatten()
                        for g, p in zip(found, params, strict=True)
                    ]
                )
            )
        out.append(torch.stack(rows))
    return torch.stack(out)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("radius", [1e-3, 0.5])
def test_bounds_hold_on_the_sphere(name, radius):
    f, x = tied(name)
    q, eps = drawn(*x.shape, seed=7), torch.full((BATCH,), radius, dtype=torch.float64)
    bounds = {n: f.certificate(n, *((x, q, eps) if "change" in n else (x, eps))) for n in NAMES}
    assert all(b is not None and bool(torch.isfinite(b).all()) for b in bounds.values())
    here = jacobian(f, x)
    assert bool((here.abs().amax(dim=(1, 2)) > 0).all())
    for direction in (drawn(*x.shape, seed=8), q, torch.ones_like(x)):
        point = x + radius * direction / norm(direction).view(-1, 1, 1, 1)
        there = jacobian(f, point)
        change = torch.einsum("bnd,bn->bd", there - here, q.flatten(1)).norm(dim=1)
        hessian = norm(f.linearize(point)(q) - f.linearize(x)(q))
        for bound, true in (
            (bounds["mixed_norm"], torch.linalg.matrix_norm(there, 2)),
            (bounds["mixed_change"], change),
            (bounds["hessian_change"], hessian),
        ):
            assert bool((true <= bound * (1 + 1e-9) + 1e-12).all())
        if CASES[name][3] is None:  # bounds of filters are looser
            assert bool((bounds["mixed_norm"] <= 50 * torch.linalg.matrix_norm(there, 2)).all())


@pytest.mark.parametrize("name", ["kernel", "weights", "kernel and filters"])
def test_constants_for_all_images_bound_those_around_one(name):
    f, x = tied(name)
    reach = float(x.abs().max())
    lipschitz = f.mixed_lipschitz(reach)
    assert lipschitz.certified and math.isfinite(lipschitz.value)
    other = x * 0.5
    change = torch.linalg.matrix_norm(jacobian(f, x) - jacobian(f, other), 2)
    assert bool((change <= lipschitz.value * norm(x - other)).all())
    assert f.hessian_lipschitz().certified


@pytest.mark.parametrize("term", [Unseen, lambda: lr.Foreign(Learned())], ids=["unseen", "foreign"])
def test_a_data_term_that_nobody_knows_has_no_certificate(term):
    physics = dinv.physics.Blur(filter=kernel(False), padding="reflect")
    energy = lr.Energy(physics, lr.regularizers.TV(), term()).double()
    x = drawn(BATCH, 1, SIDE, SIDE)
    f, eps = energy.at(x, x), torch.ones(BATCH)
    assert f.certificate("mixed_norm", x, eps) is None


class Learned(nn.Module):
    """A function of the user's own with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, a: Tensor, y: Tensor) -> Tensor:
        return (self.scale * (a - y).square()).flatten(1).sum(dim=1)


class Foreign(dinv.physics.Blur):
    """An operator that nobody knows."""


def test_an_operator_that_nobody_knows_has_none_and_may_declare_it():
    physics = Foreign(filter=kernel(True), padding="reflect")
    energy = lr.Energy(physics, lr.regularizers.Tikhonov(0.1)).double()
    x = drawn(BATCH, 1, SIDE, SIDE)
    eps = torch.ones(BATCH)
    assert energy.at(x, x).certificate("mixed_norm", x, eps) is None
    physics.sensitivity = lambda x: lr.Bound.proven(4.0)
    assert energy.at(x, x).certificate("mixed_norm", x, eps) is None, "the norm is an estimate"
    physics.norm_bound = lambda x: lr.Bound.proven(3.0)
    assert energy.at(x, x).certificate("mixed_norm", x, eps) is not None


def test_images_have_bounds_of_their_own():
    """Kernels that differ: each image has the bound that it has alone."""
    x, eps = drawn(2, 1, SIDE, SIDE), torch.ones(2, dtype=torch.float64)
    kernels = kernel(False, images=2)
    term = weights(1, 1, SIDE, SIDE)
    r = lr.regularizers.Tikhonov(0.1, learned=False)
    both = lr.Energy(dinv.physics.Blur(filter=kernels, padding="reflect"), r, term).double()
    together = both.at(x, x).certificate("mixed_norm", x, eps)
    for i in range(2):
        physics = dinv.physics.Blur(filter=kernels[i : i + 1], padding="reflect")
        part = slice(i, i + 1)
        alone = lr.Energy(physics, r, term).double().at(x[part], x[part])
        own = alone.certificate("mixed_norm", x[part], eps[part])
        assert float(together[i]) == pytest.approx(float(own), rel=1e-9)
        params = {"filter": kernels[part]}
        given = lr.Energy(
            dinv.physics.Blur(filter=kernels[:1], padding="reflect"), r, term
        ).double()
        handed = given.at(lr.Measured(x[part], params), x[part])
        assert float(handed.certificate("mixed_norm", x[part], eps[part])) == pytest.approx(
            float(own), rel=1e-9
        )


# --- whole problems -------------------------------------------------------------------------------


def problem(kind: str) -> lr.BilevelProblem:
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.arange(3, dtype=torch.float64) - 1
    line = torch.exp(-(t**2))
    gaussian = (line[:, None] * line / line.sum() ** 2)[None, None]
    physics = dinv.physics.Blur(filter=gaussian.clone(), padding="reflect")
    y = physics.A(x) + 0.02 * drawn(*x.shape)
    if "kernel" in kind:
        physics.filter = (0.9 * gaussian).requires_grad_()
    term: Any = lr.L2()
    if "weights" in kind:
        term = lr.WeightedL2(nn.Parameter(torch.ones(1, 1, 8, 8)))
    if "counts" in kind:
        y, term = (20 * y.clamp_min(0)).round(), lr.KL(3.0, gain=1 / 20)
    r = lr.regularizers.TV(0.05, 0.2) + lr.regularizers.Tikhonov(0.5, learned=False)
    pairs = lr.data.Pairs(x, y, physics, ("a", "b"))
    return lr.BilevelProblem(lr.Energy(physics, r, term).double(), pairs)


@pytest.mark.parametrize(
    "kind", ["kernel", "weights", "kernel, weights", "counts", "kernel, counts"]
)
def test_certified_errors_of_hypergradients_hold(kind):
    p = problem(kind)
    exact = lr.hypergradient(p, 1e-10, 1e-10, strategy=lr.Implicit())
    before = math.inf
    for eps in (1e-1, 1e-3, 1e-6):
        found = lr.hypergradient(p, eps, eps, strategy=lr.Implicit())
        assert found.certified is not None
        assert float(torch.dist(found.value, exact.value)) <= found.certified < before
        before = found.certified
    assert before < 0.1 * float(exact.value.norm())


def test_maid_certifies_its_directions_with_a_learned_kernel():
    p = problem("kernel")
    run = lr.learn(p, lr.MAID(test="certified"), budget=lr.Budget(steps=3), seed=0)
    losses = [row["loss"] for row in run.record.rows]
    assert len(losses) == 4 and losses[-1] < losses[0]
