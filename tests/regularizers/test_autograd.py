"""Regularizers under autograd and in the algorithms of deepinv."""

from __future__ import annotations

import deepinv
import pytest
import torch
from tests.regularizers.cases import CASES, PLAIN, foe, plain, tv
from torch import Tensor

import learnreg as lr
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.params import trainable
from learnreg.regularizers import TV, BlackBox, HuberTV, Regularizer, Tikhonov


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# --- autograd -------------------------------------------------------------------------------------


def test_the_value_has_the_gradient_as_its_derivative(case):
    r, x = case.make(), case.images()
    at, outer = x.clone().requires_grad_(), torch.linspace(1, 2, x.shape[0]).double()
    value = r.value(at)
    same(value.detach(), r.value(x))
    (found,) = torch.autograd.grad(value, at, outer)
    same(found, outer.view(-1, 1, 1, 1) * r.grad(x))


def test_the_gradient_has_hessian_and_mixed_products_as_its_derivatives(case):
    r, x = case.make(), case.images()
    v, at = normal(*x.shape), x.clone().requires_grad_()
    gradient = r.grad(at)
    assert torch.equal(gradient.detach(), r.grad(x))
    params = trainable(r)
    found, *in_theta = torch.autograd.grad(gradient, [at, *params], v, materialize_grads=True)
    same(found, r.hvp(x, v))
    if params:
        wanted = torch.autograd.grad(r.directional(x, v).sum(), params)
        for a, b in zip(in_theta, wanted, strict=True):
            same(a, b)


def test_the_derivative_of_the_value_is_differentiable_again(case):
    """To third order, in x and in theta, against autograd of the plain formula."""
    r, x = case.make(), case.images()[[0, 4, 6]]
    if type(r) not in PLAIN:
        pytest.skip("no plain formula is given")
    v, w, params = normal(*x.shape), normal(*x.shape, seed=2), trainable(r)
    at = x.clone().requires_grad_()
    results = []
    for function in (r.value, lambda x: plain(r, x)):
        first = torch.autograd.grad(
            function(at).sum(), [at, *params], create_graph=True, materialize_grads=True
        )
        second = torch.autograd.grad(
            (first[0] * v).sum(), [at, *params], create_graph=True, materialize_grads=True
        )
        results.append([*first, *second])
        if second[0].requires_grad:
            third = torch.autograd.grad(
                (second[0] * w).sum(), [at, *params], materialize_grads=True
            )
            results[-1] += third
        else:
            results[-1] += [torch.zeros_like(t) for t in (at, *params)]
    for a, b in zip(*results, strict=True):
        same(a.detach(), b.detach())


def test_no_graph_is_made_where_none_is_asked_for(case):
    r, x = case.make(), case.images()
    at = x.clone().requires_grad_()
    with torch.no_grad():
        found = (r.value(at), r.grad(at), r.hvp(x, x))
    assert not any(t.requires_grad for t in (*found, r.value(x), r.grad(x), r.hvp(x, x)))
    assert r.value(at).requires_grad and r.grad(at).requires_grad


def test_a_training_loop_reaches_image_and_parameters():
    r, x = tv(True) + foe(), CASES[0].images()
    at = x.clone().requires_grad_()
    (r.value(at) ** 2).sum().backward()
    same(at.grad, 2 * r.value(x).view(-1, 1, 1, 1) * r.grad(x))
    wanted = torch.autograd.grad((r.formula(x) ** 2).sum(), trainable(r))
    for p, g in zip(trainable(r), wanted, strict=True):
        same(p.grad, g)


# --- deepinv --------------------------------------------------------------------------------------

PRIORS = {
    "tv": lambda: TV(0.1, 0.1),
    "joint": lambda: TV(0.1, 0.1, channels="joint"),
    "sum": lambda: HuberTV(0.1, 0.1) + 0.5 * Tikhonov(0.1),
    "black box": lambda: BlackBox(deepinv.optim.Prior(g=TV(0.1, 0.1).double().formula), 0.0, 8.0),
}
HANDED = {"directly": lambda r: r, "as a prior": lambda r: r.as_prior()}
ALGORITHMS = {
    "GD": lambda prior: deepinv.optim.GD(
        data_fidelity=deepinv.optim.L2(), prior=prior, stepsize=0.1, max_iter=400
    ),
    "PGD": lambda prior: deepinv.optim.PGD(
        data_fidelity=deepinv.optim.L2(), prior=prior, stepsize=0.5, max_iter=60
    ),
    "FISTA": lambda prior: deepinv.optim.FISTA(
        data_fidelity=deepinv.optim.L2(), prior=prior, stepsize=0.5, max_iter=150
    ),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("handed", HANDED)
@pytest.mark.parametrize("prior", PRIORS)
def test_algorithms_of_deepinv_find_the_minimizer(prior, handed, algorithm):
    r = PRIORS[prior]().double()
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    y = 0.3 * normal(2, 2, 8, 7)
    model = ALGORITHMS[algorithm](HANDED[handed](r))
    found = model(y, physics)
    energy = lr.Energy(physics, TV(0.1, 0.1).double() if prior == "black box" else r)
    wanted = lr.solve(energy, y, eps=1e-8).value
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    assert (y - wanted).norm() > 1e-2 * wanted.norm(), "there is something to find"


def test_a_prior_is_one_of_deepinv_and_an_unfolded_algorithm_trains_it():
    r = TV(0.1, 0.1).double()
    prior = r.as_prior()
    assert isinstance(prior, deepinv.optim.Prior) and prior.explicit_prior
    y = 0.3 * normal(1, 1, 6, 6)
    same(prior(y).detach(), r.value(y))
    same(prior.grad(y, None).detach(), r.grad(y))
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    model = deepinv.optim.GD(
        data_fidelity=deepinv.optim.L2(),
        prior=prior,
        stepsize=0.1,
        max_iter=5,
        unfold=True,
        trainable_params=["stepsize"],
    ).double()

    def loss(shift: float) -> Tensor:
        with torch.no_grad():
            r.log_weight.add_(shift)
        value = model(y, physics).square().sum()
        with torch.no_grad():
            r.log_weight.sub_(shift)
        return value.detach()

    model(y, physics).square().sum().backward()
    quotient = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert float(r.log_weight.grad) == pytest.approx(float(quotient), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.3, 2.0, torch.tensor([0.1, 1.0, 5.0])])
def test_the_proximal_point_is_where_its_gradient_vanishes(gamma):
    r, x = TV(0.1, 0.05).double(), normal(3, 2, 4, 3)
    z = r.prox(x, gamma=gamma, tol=1e-10)
    sizes = torch.as_tensor(gamma, dtype=torch.float64).reshape(-1, 1, 1, 1)
    residual = (sizes * r.grad(z) + z - x).flatten(1).norm(dim=1)
    assert (residual <= 1e-10 * x.flatten(1).norm(dim=1)).all()


def test_the_proximal_point_is_differentiable():
    r, x = TV(0.1, 0.05).double(), normal(1, 1, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: r.prox(x, gamma=0.5, tol=1e-13), x, rtol=1e-4)


def test_a_proximal_point_that_cannot_be_had_is_refused():
    x = normal(2, 1, 4, 4)
    for gamma in (0.0, -1.0, torch.ones(3)):
        with pytest.raises(InputError, match="gamma: given"):
            TV().double().prox(x, gamma=gamma)
    box = BlackBox(deepinv.optim.Prior(g=lambda x: x.square().flatten(1).sum(dim=1)))
    with pytest.raises(MissingPropertyError, match=r"unknown L; .* Declare L"):
        box.prox(x)


class OwnGradient(Regularizer):
    """As a user writes one: closed forms, no autograd."""

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * x.square().flatten(1).sum(dim=1)

    def grad(self, x: Tensor) -> Tensor:
        return x.clone()


def test_a_regularizer_of_the_users_own_is_a_prior_too():
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    y = normal(1, 1, 4, 4)
    same(ALGORITHMS["GD"](OwnGradient().as_prior())(y, physics), 0.5 * y)
