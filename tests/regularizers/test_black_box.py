"""Modules as regularizers: derivatives, estimates of curvature, refusals; registered classes."""

from __future__ import annotations

import copy
import gc

import deepinv
import pytest
import torch
from tests.regularizers.cases import hessian, smooth_net
from torch import Tensor, nn

import learnreg as lr
from learnreg.core.bounds import Kind
from learnreg.core.errors import InputError, ModelFileError
from learnreg.regularizers import KNOWN, TV, BlackBox, Regularizer, from_spec, register
from learnreg.regularizers.lanczos import extreme_eigenvalues


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def box(**constants: float) -> BlackBox:
    return BlackBox(smooth_net(), **constants).double()


# --- curvature ------------------------------------------------------------------------------------


def test_what_is_declared_is_an_estimate_and_what_is_not_is_unknown():
    bounds = box(mu=0.5, L=3.0).bounds()
    assert (bounds.mu.value, bounds.L.value) == (0.5, 3.0)
    assert bounds.mu.kind == bounds.L.kind == Kind.ESTIMATE
    bounds = box().bounds()
    assert bounds.mu.kind == bounds.L.kind == Kind.UNKNOWN


def test_curvature_near_images_is_that_of_the_dense_hessian():
    r, x = box(), normal(3, 1, 4, 3)
    mu, largest = r.curvature_near(x, iterations=12)
    assert mu.shape == largest.shape == (3,) and mu.dtype == largest.dtype == torch.float64
    for i, image in enumerate(x):
        dense = hessian(r.linearize(image.expand(12, 1, 4, 3)), (1, 4, 3))
        spectrum = torch.linalg.eigvalsh(dense)
        assert float(mu[i]) == pytest.approx(float(spectrum[0]), abs=1e-8)
        assert float(largest[i]) == pytest.approx(float(spectrum[-1]), abs=1e-8)
        few = r.curvature_near(x, iterations=4)
        assert spectrum[0] - 1e-10 <= few[0][i] and few[1][i] <= spectrum[-1] + 1e-10
    for i in range(3):
        alone = r.curvature_near(x[i : i + 1], iterations=5)
        together = r.curvature_near(x, iterations=5)
        torch.testing.assert_close(alone[0][0], together[0][i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("values", [[2.0] * 6, [0.0] * 6, [1.0, 1.0, 1.0, -3.0, -3.0, 5.0]])
def test_few_distinct_eigenvalues_end_the_iteration_early(values):
    diagonal = torch.tensor(values, dtype=torch.float64)

    class Diagonal:
        def __call__(self, v: Tensor) -> Tensor:
            return v * diagonal

    lowest, highest = extreme_eigenvalues(Diagonal(), torch.zeros(2, 6).double(), 50)
    torch.testing.assert_close(lowest, diagonal.min().expand(2), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(highest, diagonal.max().expand(2), atol=1e-12, rtol=1e-10)


def test_iterations_are_a_positive_integer():
    for bad in (0, 2.5, True):
        with pytest.raises(InputError, match="iterations: given"):
            box().curvature_near(normal(1, 1, 4, 4), iterations=bad)


# --- it leaves no trace ---------------------------------------------------------------------------


def graphs() -> int:
    """How many tensors with a graph are alive."""
    gc.collect()
    return sum(type(o) is Tensor and o.grad_fn is not None for o in gc.get_objects())


def test_neither_modes_nor_random_state_nor_gradients_nor_graphs_remain():
    r, x = box(mu=0.0, L=1.0), normal(2, 1, 5, 5)
    r.module.train()
    before = graphs()
    state, random = copy.deepcopy(r.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        r.value(x), r.grad(x), r.hvp(x, x), r.directional(x, x), r.curvature_near(x, 3)
    r.value(x), r.grad(x), r.hvp(x, x), r.directional(x, x)
    assert r.module.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(r.state_dict()[k], t) for k, t in state.items())
    assert all(p.grad is None for p in r.parameters()) and not x.requires_grad
    assert graphs() == before
    copy.deepcopy(r)


def test_it_works_without_grad_mode_and_with_priors_of_deepinv():
    x, g = normal(2, 1, 5, 4), TV(0.2, 0.3).double()
    prior = BlackBox(deepinv.optim.Prior(g=g.formula))
    with torch.no_grad():
        torch.testing.assert_close(prior.value(x), g.value(x))
        torch.testing.assert_close(prior.grad(x), g.grad(x))
        torch.testing.assert_close(prior.hvp(x, x + 1), g.hvp(x, x + 1))
    tikhonov = BlackBox(deepinv.optim.Tikhonov())
    torch.testing.assert_close(tikhonov.grad(x), x)


def test_a_linear_potential_has_no_curvature():
    r, x = BlackBox(deepinv.optim.Prior(g=lambda x: x.flatten(1).sum(dim=1))), normal(2, 1, 3, 3)
    assert torch.equal(r.grad(x), torch.ones_like(x)) and torch.equal(r.hvp(x, x), 0 * x)
    assert torch.equal(r.linearize(x).select(torch.tensor([1]))(x[:1]), 0 * x[:1])


def test_it_is_minimized_and_learned_like_any_other():
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    y = 0.3 * normal(2, 1, 6, 5)
    r = TV(0.1, 0.1).double()
    twin = BlackBox(deepinv.optim.Prior(g=r.formula), mu=0.0, L=8.0)
    wanted = lr.solve(lr.Energy(physics, r), y, eps=1e-7)
    found = lr.solve(lr.Energy(physics, twin), y, eps=1e-7)
    assert (found.value - wanted.value).norm() < 1e-6
    assert found.kind == Kind.ESTIMATE, "nothing is certified on the user's word"


# --- refusals -------------------------------------------------------------------------------------


def prior(g) -> nn.Module:
    return deepinv.optim.Prior(g=g)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (prior(lambda x: x.square().sum()), r"a value of shape \(\) .* one value per image"),
        (prior(lambda x: x.square()), r"a value of shape \(2, 1, 4, 4\)"),
        (prior(lambda x: [1.0, 2.0]), "a value of list"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 1)).double(), r"\.eval\(\)"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 1)).double(), r"\.eval\(\)"),
        (prior(lambda x: x.detach().square().flatten(1).sum(dim=1)), "no derivative in x"),
    ],
)
def test_what_is_no_potential_is_refused(module, message):
    r, x = BlackBox(module), normal(2, 1, 4, 4)
    for call in (r.grad, r.linearize, lambda x: r.directional(x, x)):
        with pytest.raises(InputError, match=message):
            call(x)


def test_in_evaluation_mode_they_pass():
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 1))
    r, x = BlackBox(net.double().eval()), normal(2, 1, 4, 4)
    assert r.value(x).shape == (2,) and r.grad(x).shape == x.shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlackBox(abs), "module: given .*Wrap a function as"),
        (lambda: BlackBox(deepinv.optim.PnP(nn.Identity())), "an implicit prior"),
        (lambda: box(mu=float("nan")), "mu: given nan"),
        (lambda: box(L=-1.0), "L: given -1.0"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, message):
    with pytest.raises(InputError, match=message):
        make()


# --- classes of the user's own --------------------------------------------------------------------


def own_class(name: str = "Mine") -> type[Regularizer]:
    class Mine(TV):
        def __init__(self, power: int = 1) -> None:
            super().__init__(0.1 * power)
            self.power = power

        def spec(self):
            return {"type": name, "power": self.power}

    Mine.__name__ = name
    return Mine


@pytest.fixture
def registry():
    kept = dict(KNOWN)
    yield KNOWN
    KNOWN.clear()
    KNOWN.update(kept)


def test_a_registered_class_is_saved_and_loaded(registry, tmp_path):
    Mine = own_class()
    with pytest.raises(ModelFileError, match="use register"):
        from_spec({"type": "Mine", "power": 3})
    assert register(Mine) is Mine
    energy = lr.Energy(deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)), Mine(power=3))
    lr.save_model(tmp_path / "own.safetensors", energy)
    loaded = lr.load_model(tmp_path / "own.safetensors").regularizer
    assert type(loaded) is Mine and loaded.power == 3
    assert torch.equal(loaded.log_weight, energy.regularizer.log_weight)
    assert type((2 * loaded).regularizer) is type(from_spec((2 * loaded).spec()).regularizer)


def test_a_cell_that_is_run_again_replaces_its_class(registry):
    register(own_class())
    second = own_class()
    register(second)
    assert KNOWN["Mine"] is second


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: own_class("TV"), "a second class of the name TV"),
        (lambda: own_class("Sum"), "a second class of the name Sum"),
        (lambda: nn.Linear, "derives from Regularizer or SaddleRegularizer"),
        (lambda: TV(), "derives from Regularizer"),
        (lambda: type("Silent", (Regularizer,), {}), r"Silent without spec\(\)"),
    ],
)
def test_what_cannot_be_registered_is_refused(registry, make, message):
    with pytest.raises(InputError, match=message):
        register(make())


def test_a_black_box_is_loaded_into_an_instance(tmp_path):
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    r = BlackBox(smooth_net(), mu=0.0, L=2.0)
    path = tmp_path / "box.safetensors"
    lr.save_model(path, lr.Energy(physics, r))
    with pytest.raises(ModelFileError, match="load_model"):
        lr.load_model(path)
    fresh = BlackBox(smooth_net(seed=7))
    loaded = lr.load_model(path, regularizer=fresh).regularizer
    x = normal(1, 1, 4, 4).float()
    assert torch.equal(loaded.value(x), r.value(x))
