"""Mixed precision, inference mode and transformations around the front doors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepinv
import pytest
import torch

import learnreg as lr
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.guards import isolated


def measured(physics: torch.nn.Module | None = None) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 16, 16, generator=g)
    y = x if physics is None else physics.A(x)
    return y + 0.1 * torch.randn(y.shape, generator=g)


def denoising() -> deepinv.physics.Physics:
    return deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))


def foe(physics: torch.nn.Module | None = None) -> lr.Energy:
    return lr.Energy(physics or denoising(), lr.regularizers.FoE(4, 3))


class Data:
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)


def data() -> Data:
    y = measured()
    return Data(y.clamp(0, 1), y)


def learned() -> lr.Run:
    problem = lr.BilevelProblem(foe(), data())
    return lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=2))


def backward(energy: Any) -> torch.Tensor:
    """The gradient of a loss of the layer, the backward pass inside the mode as well."""
    layer = lr.Reconstructor(energy, 1e-2)
    layer(measured()).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in energy.parameters()])


TV = lr.regularizers.TV
CALLS: dict[str, Callable[[], torch.Tensor]] = {
    "solve": lambda: lr.solve(foe(), measured(), 1e-1).value,
    "solve a saddle": lambda: (
        lr.solve(lr.SaddleEnergy(denoising(), lr.regularizers.ExactTV()), measured(), 1e-1).value
    ),
    "certify": lambda: lr.certify(foe(), measured(), measured()).certified,
    "hypergradient": lambda: lr.hypergradient(lr.BilevelProblem(foe(), data()), 1e-2, 1e-2).value,
    "learn": lambda: learned().theta,
    "reconstruct": lambda: learned().reconstruct(measured(), 1e-2).value,
    "evaluate": lambda: learned().evaluate(data(), 1e-2).reconstruction,
    "layer": lambda: lr.Reconstructor(foe(), 1e-2)(measured()),
    "load": lambda: foe().with_theta(torch.zeros(45)).regularizer.kernels.detach(),
}
LAYERS: dict[str, Callable[[], torch.Tensor]] = {
    "backward": lambda: backward(foe()),
    "backward of a saddle": lambda: backward(
        lr.SaddleEnergy(denoising(), lr.regularizers.ExactTV())
    ),
}


@pytest.mark.parametrize("name", [*CALLS, *LAYERS])
def test_mixed_precision_changes_nothing(name):
    call = (CALLS | LAYERS)[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = call()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside, call())


def test_the_backward_pass_alone_may_be_in_mixed_precision():
    plain = backward(foe())
    energy = foe()
    loss = lr.Reconstructor(energy, 1e-2)(measured()).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.backward()
    assert torch.equal(torch.cat([p.grad.flatten() for p in energy.parameters()]), plain)


def test_a_layer_takes_half_precision_from_the_layers_before_it():
    layer, y = lr.Reconstructor(foe(), 1e-2), measured()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(y.bfloat16())
    assert out.dtype == torch.float32
    assert torch.equal(out, layer(y.bfloat16().float()))


@pytest.mark.parametrize("name", CALLS)
def test_inference_mode_changes_nothing(name):
    with torch.inference_mode():
        inside = CALLS[name]()
        assert torch.is_inference_mode_enabled()
    assert torch.equal(inside.clone(), CALLS[name]())
    assert not inside.requires_grad


def test_what_was_made_in_inference_mode_is_of_use_outside_of_it():
    with torch.inference_mode():
        energy, y, pairs = foe(), measured(), data()
    assert lr.solve(energy, y, 1e-2).ok
    assert torch.equal(lr.solve(energy, y, 1e-2).value, lr.solve(foe(), measured(), 1e-2).value)
    assert lr.certify(energy, y, y).certified.isfinite().all()
    problem = lr.BilevelProblem(foe(), pairs)
    assert lr.hypergradient(problem, 1e-2, 1e-2).norm > 0
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1))
    assert run.evaluate(pairs, 1e-2).psnr


def blur() -> deepinv.physics.Physics:
    kernel = deepinv.physics.functional.blur.gaussian_blur(sigma=(1.0, 1.0))
    return deepinv.physics.Blur(kernel, padding="circular")


def test_a_physics_of_inference_mode():
    with torch.inference_mode():
        physics = blur()
        energy = lr.Energy(physics, TV() + lr.regularizers.Tikhonov(1e-2))
        inside = lr.solve(energy, measured(physics), 1e-1).value
    outside = lr.solve(energy, measured(physics), 1e-1).value
    same = lr.Energy(blur(), TV() + lr.regularizers.Tikhonov(1e-2))
    plain = lr.solve(same, measured(blur()), 1e-1).value
    assert torch.allclose(inside, plain, atol=1e-3) and torch.allclose(outside, plain, atol=1e-3)


def test_a_physics_updated_in_inference_mode():
    physics = blur()
    energy = lr.Energy(physics, TV() + lr.regularizers.Tikhonov(1e-2))
    y = measured(physics)
    before = lr.solve(energy, y, 1e-1).value
    with torch.inference_mode():
        physics.update(filter=deepinv.physics.functional.blur.gaussian_blur(sigma=(0.5, 0.5)))
    after = lr.solve(energy, y, 1e-1).value
    assert not torch.allclose(before, after, atol=1e-2)


def of_vector(v: torch.Tensor) -> torch.Tensor:
    return lr.solve(foe(), v.view(1, 1, 16, 16), 1e-1).value.sum()


def through_layer(v: torch.Tensor) -> torch.Tensor:
    return lr.Reconstructor(foe(), 1e-1)(v.view(1, 1, 16, 16)).sum()


@pytest.mark.parametrize("function", [of_vector, through_layer])
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "jacrev"])
def test_transformations_are_refused_in_words(function, transform):
    v = torch.rand(2, 256) if transform == "vmap" else torch.rand(256)
    with pytest.raises(MissingPropertyError, match=r"torch\.func.*learnreg\.Reconstructor"):
        if transform == "jvp":
            torch.func.jvp(function, (v,), (v,))
        else:
            getattr(torch.func, transform)(function)(v)


def test_isolation_keeps_the_name_and_the_recording_of_gradients():
    @isolated
    def product(a: torch.Tensor) -> torch.Tensor:
        """Twice."""
        return 2 * a

    assert product.__name__ == "product" and product.__doc__ == "Twice."
    a = torch.ones(2, requires_grad=True)
    assert product(a).requires_grad
    with torch.no_grad():
        assert not product(a).requires_grad
    assert issubclass(MissingPropertyError, InputError)
