"""Reconstructor: a deepinv model whose backward pass is the implicit hypergradient."""

from __future__ import annotations

import copy
import math

import deepinv
import pytest
import torch
from tests.regularizers.cases import denoising, foe, pairs, problem, tv
from torch import Tensor

from learnreg.core.errors import InputError, LearnregError, SolveError
from learnreg.core.params import flatten, trainable
from learnreg.hypergradients import Implicit, hypergradient
from learnreg.hypergradients.layer import Reconstructor
from learnreg.linear import CG
from learnreg.problems import Energy, gallery
from learnreg.regularizers import TV, Tikhonov
from learnreg.solvers import solve

ENERGIES = {
    "tv": lambda: denoising(tv(True, 0.1, 0.1)),
    "foe": lambda: denoising(foe(weight=0.05, smoothing=0.1)),
    "sum": lambda: denoising(tv(False, 0.1, 0.1) + foe(filters=2, weight=0.05)),
}


def mean_squared_error(x: Tensor, x_true: Tensor) -> Tensor:
    return 0.5 * (x - x_true).flatten(1).square().sum(dim=1).mean()


def gradient(model: Reconstructor) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in trainable(model)])


@pytest.mark.parametrize("name", ENERGIES)
def test_the_layer_and_the_hypergradient_agree(name):
    p = problem(ENERGIES[name]())
    model = Reconstructor(p.energy, eps=1e-9, relative_delta=1e-10)
    x = model(p.pairs.y)
    assert torch.equal(x, solve(p.energy, p.pairs.y, 1e-9).value)
    mean_squared_error(x, p.pairs.x).backward()
    expected = hypergradient(p, 1e-9, 1e-11, strategy=Implicit())
    torch.testing.assert_close(gradient(model), expected.value, rtol=1e-7, atol=1e-10)
    coarse = Reconstructor(copy.deepcopy(p.energy), eps=1e-2)
    mean_squared_error(coarse(p.pairs.y), p.pairs.x).backward()
    error = float((gradient(coarse) - expected.value).norm())
    assert error <= hypergradient(p, 1e-2, 1e-2, strategy=Implicit()).certified


def test_it_is_a_deepinv_model():
    energy = ENERGIES["foe"]()
    model = Reconstructor(energy, eps=1e-3)
    assert isinstance(model, deepinv.models.Reconstructor) and isinstance(model, torch.nn.Module)
    assert [id(a) for a in model.parameters()] == [id(b) for b in energy.parameters()]
    other = Reconstructor(ENERGIES["foe"](), eps=1e-3)
    with torch.no_grad():
        for t in other.parameters():
            t.mul_(0.5)
    other.load_state_dict(model.state_dict())
    y = pairs(2).y
    with torch.no_grad():
        assert torch.equal(other(y), model(y)) and not model(y).requires_grad


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.SGD(p, lr=0.3), lambda p: torch.optim.Adam(p, lr=0.1)],
    ids=["sgd", "adam"],
)
@pytest.mark.parametrize("name", ENERGIES)
def test_an_optimizer_learns(name, make):
    p = problem(ENERGIES[name](), count=4)
    model = Reconstructor(p.energy, eps=1e-3)
    optimizer, losses = make(model.parameters()), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = mean_squared_error(model(p.pairs.y, p.energy.physics), p.pairs.x)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1e-3 and losses[1] < losses[0]


def test_the_gradient_reaches_the_measurements():
    energy, h = ENERGIES["foe"](), 1e-5
    model = Reconstructor(energy, eps=1e-11, relative_delta=1e-11)
    p = pairs(2)
    y = p.y.clone().requires_grad_()
    mean_squared_error(model(y), p.x).backward()
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        d = torch.randn(y.shape, generator=g, dtype=torch.float64)
        with torch.no_grad():
            up, down = (float(mean_squared_error(model(p.y + s * h * d), p.x)) for s in (1, -1))
        assert float((y.grad * d).sum()) == pytest.approx((up - down) / (2 * h), rel=1e-5)


def blur(dtype: torch.dtype = torch.float64) -> deepinv.physics.Physics:
    kernel = torch.tensor([[0.0, 1, 0], [1, 3, 1], [0, 2, 0]], dtype=dtype)[None, None] / 8
    return deepinv.physics.Blur(filter=kernel, padding="circular")


def test_gradients_through_an_operator_are_difference_quotients():
    energy, h = Energy(blur(), (TV(0.05, 0.1) + Tikhonov(0.2)).double()), 1e-5
    model = Reconstructor(energy, eps=1e-11, relative_delta=1e-11)
    p = pairs(2)
    y = energy.physics.A(p.x).requires_grad_()
    mean_squared_error(model(y), p.x).backward()
    d = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(at: Tensor) -> float:
        with torch.no_grad():
            return float(mean_squared_error(model(at), p.x))

    quotient = (loss(y.detach() + h * d) - loss(y.detach() - h * d)) / (2 * h)
    assert float((y.grad * d).sum()) == pytest.approx(quotient, rel=1e-5)
    found = gradient(model)
    for i, t in enumerate(trainable(model)):
        with torch.no_grad():
            t += h
            up = loss(y.detach())
            t -= 2 * h
            down = loss(y.detach())
            t += h
        assert float(found[i]) == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    "make",
    [lambda: gallery.quadratic(images=3), lambda: gallery.scalar_tv()],
    ids=["quadratic", "scalar_tv"],
)
def test_any_energy_of_the_protocol_will_do(make):
    p = make()
    model = Reconstructor(p.energy, eps=1e-9, relative_delta=1e-10)
    y = p.pairs.y.clone().requires_grad_()
    p.loss.value(model(y), p.pairs.x).mean().backward()
    torch.testing.assert_close(p.energy.theta.grad, p.exact_hypergradient(), rtol=1e-6, atol=1e-9)
    d, h = (
        torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        1e-6,
    )
    up, down = (
        p.loss.value(p.exact_solution(y=p.pairs.y + s * h * d), p.pairs.x).mean() for s in (1, -1)
    )
    assert float((y.grad * d).sum()) == pytest.approx(float((up - down) / (2 * h)), rel=1e-5)


def test_another_physics_replaces_the_one_of_the_energy():
    regularizer, y = (TV(0.05, 0.1) + Tikhonov(0.2)).double(), pairs(2).y
    model = Reconstructor(denoising(regularizer), eps=1e-6)
    x = model(y, blur())
    assert torch.equal(x, solve(Energy(blur(), regularizer), y, 1e-6).value)
    assert (x - model(y)).norm() > 1e-2
    mean_squared_error(x, pairs(2).x).backward()
    assert gradient(model).norm() > 0, "the parameters are shared with the energy"
    same = model(y, model.energy.physics)
    assert torch.equal(same, model(y))


def test_only_what_is_asked_for_gets_a_gradient():
    energy, p = ENERGIES["sum"](), pairs(2)
    first = energy.regularizer.terms[0]
    first.log_smoothing.requires_grad_(False)
    model = Reconstructor(energy, eps=1e-6)
    mean_squared_error(model(p.y), p.x).backward()
    assert (
        first.log_smoothing.grad is None and first.log_weight.grad is not None and p.y.grad is None
    )
    for t in model.parameters():
        t.requires_grad_(False)
    y = p.y.clone().requires_grad_()
    mean_squared_error(model(y), p.x).backward()
    assert y.grad.norm() > 0
    assert not model(p.y).requires_grad


def test_images_do_not_see_each_other():
    model, p = Reconstructor(ENERGIES["foe"](), eps=1e-8, relative_delta=1e-9), pairs(3)
    y = p.y.clone().requires_grad_()
    (whole,) = torch.autograd.grad(mean_squared_error(model(y), p.x), y)
    for i in range(3):
        alone = p.y[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(mean_squared_error(model(alone), p.x[i : i + 1]), alone)
        torch.testing.assert_close(g[0] / 3, whole[i], rtol=0, atol=1e-8)


def test_parameters_changed_before_backward_are_noticed():
    """The backward pass belongs to the parameters of the forward pass; torch refuses anything
    else.
    """
    model, p = Reconstructor(ENERGIES["tv"](), eps=1e-4), pairs(2)
    loss = mean_squared_error(model(p.y), p.x)
    with torch.no_grad():
        for t in model.parameters():
            t.add_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_loss_that_does_not_depend_on_the_image_gives_zero():
    model, p = Reconstructor(ENERGIES["tv"](), eps=1e-4), pairs(2)
    (0.0 * model(p.y).sum()).backward()
    assert torch.equal(flatten(t.grad for t in model.parameters()), torch.zeros(2).double())


def test_a_backward_solve_that_falls_short_is_not_silent():
    short = Implicit(linear=CG(max_steps=1, restarts=0))
    model = Reconstructor(denoising(tv(True, 0.5, 0.01)), 1e-3, hypergradient=short)
    loss = mean_squared_error(model(pairs(2).y), pairs(2).x)
    with pytest.raises(LearnregError):
        loss.backward()


@pytest.mark.parametrize("eps", [0.0, -1e-3, math.nan, math.inf, torch.ones(2)])
def test_a_bad_eps_is_refused_at_once(eps):
    with pytest.raises(InputError, match="eps: given"):
        Reconstructor(ENERGIES["tv"](), eps=eps)


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan])
def test_a_bad_relative_delta_is_refused_at_once(delta):
    with pytest.raises(InputError, match=f"relative_delta: given {delta}"):
        Reconstructor(ENERGIES["tv"](), eps=1e-3, relative_delta=delta)


def test_bad_measurements_and_unattainable_eps_are_refused_in_forward():
    model = Reconstructor(ENERGIES["tv"](), eps=1e-3)
    with pytest.raises(InputError, match="y: given NaN or Inf in image 0"):
        model(torch.full((1, 1, 5, 6), math.nan).double())
    with pytest.raises(InputError, match="solver: given 'adam'"):
        Reconstructor(ENERGIES["tv"](), eps=1e-3, solver="adam")(pairs(1).y)
    with pytest.raises(SolveError, match="ask for a larger eps or use float64"):
        Reconstructor(ENERGIES["tv"]().with_theta(torch.tensor([-2.0, -2.0])), eps=1e-12)(
            pairs(2).y.float()
        )
