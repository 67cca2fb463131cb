"""Steps in a metric: majorants are majorants, and the methods that use them lose nothing but
iterations.
"""

import copy

import deepinv as dinv
import pytest
import torch
from deepinv.physics import BlurFFT, Denoising, GaussianNoise, Tomography

from learnreg.core.batch import norm
from learnreg.hypergradients.adjoint_saddle import linearized
from learnreg.problems import SaddleEnergy
from learnreg.problems.fidelity import KL, L1
from learnreg.regularizers import TGV, ExactTV, LearnedTV
from learnreg.solvers import PDHG, solve

SIDE = 16


def tomography():
    return Tomography(
        angles=12,
        img_width=SIDE,
        circle=False,
        adjoint_via_backprop=True,
        normalize=True,
        noise_model=GaussianNoise(0.01),
    )


def blur():
    line = dinv.physics.functional.gaussian_blur(sigma=1.5)
    return BlurFFT(img_size=(1, SIDE, SIDE), filter=line[..., None] * line[..., None, :])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(regularizer, physics=None, fidelity=None, images=2):
    """f and the packed start of a batch of blocks."""
    physics = tomography() if physics is None else physics
    x = torch.zeros(images, 1, SIDE, SIDE)
    x[:, :, 4:12, 4:12] = 1
    x[1:, :, 6:9] = 0.5
    y = physics.A(x) + 0.01 * random(*physics.A(x).shape)
    energy = SaddleEnergy(physics, regularizer, fidelity, tikhonov=1e-2)
    return energy, y.abs() if isinstance(fidelity, KL) else y


def quadratic_form(symbol, u):
    """<u, C u> per image."""
    return (u * torch.fft.irfft2(torch.fft.rfft2(u) * symbol, s=u.shape[-2:])).sum(dim=(1, 2, 3))


REGULARIZERS = [
    ExactTV(0.3),
    ExactTV(0.3, isotropic=False, rounding=0.1),
    TGV(0.2),
    TGV(0.2, curvature=0.1),
    LearnedTV(weight=0.2),
]


@torch.no_grad()
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_symbols_of_regularizers_are_majorants(regularizer):
    waves = torch.arange(SIDE) * torch.tensor([[1.0], [2.0], [4.0], [8.0]]) * torch.pi / 8
    u = torch.cat(
        [
            random(6, 1, SIDE, SIDE),
            waves.cos().view(4, 1, 1, SIDE).expand(-1, -1, SIDE, -1),
            torch.eye(SIDE)[:, None, None, :].expand(-1, -1, SIDE, -1),
        ]
    )
    rows = regularizer.linear(u, *(torch.zeros_like(v) for v in regularizer.auxiliary(u)))
    for row, symbol in zip(rows, regularizer.majorants(u), strict=True):
        square = norm(row) ** 2
        assert bool(
            (
                square
                <= (1 + 1e-5) * quadratic_form(symbol.expand(1, 1, SIDE, SIDE // 2 + 1), u) + 1e-6
            ).all()
        )


@torch.no_grad()
@pytest.mark.parametrize("physics", [tomography(), blur()], ids=["tomography", "blur"])
def test_that_of_the_physics_is_one(physics):
    """By power iterations for the quotient, from other starts than its own."""
    operator = SaddleEnergy(physics, ExactTV()).operator
    symbol = operator.majorant(torch.zeros(1, 1, SIDE, SIDE))
    root = symbol.rsqrt()
    u = random(3, 1, SIDE, SIDE, seed=5)
    for _ in range(60):
        white = torch.fft.irfft2(
            torch.fft.rfft2(u / norm(u).view(-1, 1, 1, 1)) * root, s=(SIDE, SIDE)
        )
        u = torch.fft.irfft2(torch.fft.rfft2(operator.normal(white)) * root, s=(SIDE, SIDE))
    assert 0.5 < float(norm(u).max()) <= 1.0
    assert operator.majorant(torch.zeros(1, 1, SIDE, SIDE)) is symbol  # kept


@torch.no_grad()
def iterated(f, energy, y, rule, steps):
    solver = PDHG(rule)
    state = solver.init(f, f.pack(*f.start(energy.start(y))))
    for _ in range(steps):
        state = solver.step(f, state)
    return state


@pytest.mark.parametrize(
    ("regularizer", "fidelity", "share"),
    [
        (ExactTV(0.01), None, 0.1),
        (TGV(0.01), None, 0.8),
        (TGV(0.01, curvature=0.1), None, 0.1),
        (ExactTV(0.05), L1(), 0.1),
        (ExactTV(0.05), KL(0.1), 0.1),
        (LearnedTV(weight=0.01), None, 0.1),
    ],
    ids=lambda v: type(v).__name__,
)
def test_it_gets_nearer_than_scalar_steps(regularizer, fidelity, share):
    energy, y = problem(regularizer, fidelity=fidelity)
    f = energy.at(y)
    gaps = [
        f.gap(s.x, s.p, s.kx, s.ktp)
        for s in (iterated(f, energy, y, r, 20) for r in ("balanced", "basic"))
    ]
    assert bool((gaps[0] < share * gaps[1]).all())


def test_the_solution_is_the_same():
    energy, y = problem(ExactTV(0.02))
    ours, plain = (
        solve(energy, y, eps, solver=PDHG(rule)) for eps, rule in ((0.01, "auto"), (0.2, "basic"))
    )
    assert bool((norm(ours.value - plain.value).double() <= ours.error + plain.error).all())
    assert ours.cost.gradients < plain.cost.gradients


@torch.no_grad()
def test_linear_problems_of_hypergradients_use_it_too():
    energy, y = problem(ExactTV(0.02, rounding=0.05))
    f = energy.at(y)
    state = iterated(f, energy, y, "auto", 20)
    linear = linearized(f, state.x, state.p, random(*state.x[0].shape))
    found = []
    for rule in ("auto", "basic"):
        solver = PDHG(rule)
        at = solver.init(linear, torch.zeros_like(state.point))
        for _ in range(20):
            at = solver.step(linear, at)
        found.append(at.evidence)
    assert bool((found[0] < 0.1 * found[1]).all())


@torch.no_grad()
@pytest.mark.parametrize("physics", [Denoising(), tomography()], ids=["plain", "metric"])
def test_a_step_leaves_its_state_alone(physics):
    """Iterations write over tensors, but only over those that were made in the same step."""
    energy, y = problem(ExactTV(0.1), physics)
    f, solver = energy.at(y), PDHG(interval=7)
    state = solver.init(f, f.pack(*f.start(energy.start(y))))
    for _ in range(5):
        before = copy.deepcopy(
            (state.x, state.p, state.kx, state.before, state.ktp, state.anchor, state.t)
        )
        first, second = solver.step(f, state), solver.step(f, state)
        after = (state.x, state.p, state.kx, state.before, state.ktp, state.anchor, state.t)
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        torch.testing.assert_close(first.point, second.point, rtol=0, atol=0)
        torch.testing.assert_close(first.kx, f.apply(first.x))
        torch.testing.assert_close(first.ktp, f.adjoint(first.p))
        state = first


@torch.no_grad()
def test_images_are_strangers():
    energy, y = problem(ExactTV(0.02), images=3)
    together = iterated(energy.at(y), energy, y, "auto", 5)
    index = torch.tensor([2])
    alone = iterated(energy.at(y[index]), energy, y[index], "auto", 5)
    torch.testing.assert_close(together.x[0][index], alone.x[0], rtol=1e-4, atol=1e-5)
    chosen = together.select(index)
    torch.testing.assert_close(chosen.metric.dual, tuple(s[index] for s in together.metric.dual))
    torch.testing.assert_close(
        PDHG().step(chosen.f, chosen).x[0],
        PDHG().step(together.f, together).x[0][index],
        rtol=1e-4,
        atol=1e-5,
    )
