"""Upper losses that depend on theta directly: totals against central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepinv as dinv
import pytest
import torch
from torch import Tensor

import learnreg as lr
from learnreg.problems import KernelPenalty, SobolevDistance

SIDE = 7


def gaussian(std: float, taps: int = 3) -> Tensor:
    t = torch.arange(taps, dtype=torch.float64) - taps // 2
    line = torch.exp(-(t**2) / (2 * std**2))
    kernel = line[:, None] * line
    return (kernel / kernel.sum())[None, None]


def blur(padding: str = "reflect", learned: bool = True) -> dinv.physics.Blur:
    return dinv.physics.Blur(filter=gaussian(0.8).requires_grad_(learned), padding=padding)


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, SIDE, SIDE, generator=g, dtype=torch.float64)
    physics = dinv.physics.Blur(filter=gaussian(1.2), padding="reflect")
    y = physics.A(x)
    return x, y + 0.05 * torch.randn(y.shape, generator=g, dtype=torch.float64)


def smooth(padding: str = "reflect") -> lr.Energy:
    r = lr.regularizers.TV(0.05, 0.2) + lr.regularizers.Tikhonov(0.2, learned=False)
    return lr.Energy(blur(padding), r).double()


def saddle() -> lr.SaddleEnergy:
    return lr.SaddleEnergy(blur(), lr.regularizers.ExactTV(0.05), tikhonov=0.2).double()


def between(x: Tensor, truth: Tensor, energy: Any) -> Tensor:
    """Sees the truth, the reconstruction and theta."""
    residual = energy.physics.A(x) - energy.physics.A(truth)
    kernel = energy.physics.filter
    return residual.square().flatten(1).sum(dim=1) + kernel.square().sum() * x.flatten(1).mean(1)


LOSSES: dict[str, Callable[[], object]] = {
    "consistency": lr.DataConsistency,
    "consistency, sum": lambda: lr.DataConsistency(mean=False),
    "a function": lambda: lr.Custom(between, energy=True),
}


def directions(theta: Tensor) -> Tensor:
    """Into regularizer and kernel at once, and into the kernel alone; ours are short."""
    g = torch.Generator().manual_seed(3)
    drawn = torch.randn(2, len(theta), generator=g, dtype=theta.dtype)
    drawn[1, : len(theta) - 9] = 0
    return drawn / drawn.norm(dim=1, keepdim=True)


def slopes(f: Callable[[Tensor], float], theta: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences along the directions."""
    found = [(f(theta + step * e) - f(theta - step * e)) / (2 * step) for e in directions(theta)]
    return torch.tensor(found, dtype=theta.dtype)


def value(p: lr.BilevelProblem, strategy: Any, eps: float) -> Callable[[Tensor], float]:
    def of(theta: Tensor) -> float:
        return lr.hypergradient(p, eps, 1e-2, theta=theta, strategy=strategy).loss

    return of


def problem(energy: Any, loss: object, penalty: Any = None) -> lr.BilevelProblem:
    x, y = data()
    return lr.BilevelProblem(energy, lr.data.Pairs(x, y, energy.physics, ("a", "b")), loss, penalty)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "strategy",
    [
        lr.Implicit(),
        lr.Implicit(estimate=True),
        lr.JacobianFree(terms=400),
        lr.Unrolled(30, step=0.3, method="gd"),
        lr.Unrolled(400, start="solution"),
    ],
    ids=["implicit", "polished", "series", "unrolled", "truncated"],
)
def test_totals_of_smooth_problems_are_those_of_central_differences(name, strategy):
    p = problem(smooth(), LOSSES[name]())
    found = lr.hypergradient(p, 1e-10, 1e-10, strategy=strategy).value
    steps = isinstance(strategy, lr.Unrolled) and strategy.start == "data"
    expected = slopes(value(p, strategy if steps else lr.Implicit(), 1e-10), p.theta)
    assert torch.dist(directions(p.theta) @ found, expected) <= 1e-6 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["consistency", "a function"])
def test_totals_of_saddle_points_are_those_of_central_differences(name):
    p = problem(saddle(), LOSSES[name]())
    expected = slopes(value(p, lr.Piggyback(), 1e-5), p.theta, 1e-2)
    for strategy in (lr.Piggyback(), lr.Piggyback(estimate=True)):
        found = lr.hypergradient(p, 1e-4, 1e-5, strategy=strategy).value
        # pixels that leave or join flat regions within the step
        assert torch.dist(directions(p.theta) @ found, expected) <= 5e-3 * expected.norm()


def test_steps_of_saddle_points_see_the_loss_at_theta():
    p = problem(saddle(), lr.DataConsistency())
    exact = lr.hypergradient(p, 1e-4, 1e-5).value
    steps = lr.hypergradient(p, 1.0, 1.0, strategy=lr.JointPiggyback(500)).value
    assert torch.dist(steps, exact) <= 5e-3 * exact.norm()


def test_what_is_left_out_would_be_seen():
    """The direct part is no small one: without it the total is another one."""
    p = problem(smooth(), lr.DataConsistency())
    whole = lr.hypergradient(p, 1e-8, 1e-8, strategy=lr.Implicit()).value
    energy = p.energy.with_theta(p.theta)
    x = lr.solve(energy, p.pairs.y, 1e-8).value
    direct = p.upper.at(energy).slope(x) / 2
    assert direct.norm() > 0.05 * whole.norm()


@pytest.mark.parametrize("padding", ["circular", "reflect"])
@pytest.mark.parametrize("estimate", [False, True])
def test_the_certified_error_holds_and_is_finite(padding, estimate):
    p = problem(smooth(padding), lr.DataConsistency())
    exact = lr.hypergradient(p, 1e-10, 1e-10, strategy=lr.Implicit()).value
    for eps in (1e-1, 1e-3):
        found = lr.hypergradient(p, eps, eps, strategy=lr.Implicit(estimate=estimate))
        assert found.certified is not None
        assert float(torch.dist(found.value, exact)) <= found.certified < float("inf")
    last = lr.hypergradient(p, 1e-7, 1e-7, strategy=lr.Implicit(estimate=estimate))
    assert last.certified < found.certified


def test_the_bracket_contains_the_loss_of_the_minimizers():
    p = problem(smooth(), lr.DataConsistency())
    exact = lr.hypergradient(p, 1e-10, 1.0, strategy=lr.Implicit())
    for eps in (1e-1, 1e-2):
        found = lr.hypergradient(p, eps, 1.0, strategy=lr.Implicit())
        assert found.bracket_kind.certifies and found.bracket[0] <= exact.loss <= found.bracket[1]


@pytest.mark.parametrize(
    "learner", [lr.MAID(), lr.LBFGSB(), lr.HOAG()], ids=lambda learner: type(learner).__name__
)
def test_learners_lower_it_without_truth(learner):
    _, y = data()
    energy = smooth()
    distance = SobolevDistance(energy.physics.filter, weight=1e-3)
    p = lr.BilevelProblem(energy, y, lr.DataConsistency(), penalty=KernelPenalty(energy, distance))
    before = energy.physics.filter.detach().clone()
    run = lr.learn(p, learner, budget=lr.Budget(steps=6), seed=0)
    losses = [row["loss"] for row in run.record.rows]
    assert losses[-1] < 0.98 * losses[0]
    assert torch.equal(energy.physics.filter, before), "what was lent is as it was"


def test_a_loss_follows_the_images_of_a_subset():
    p = problem(smooth(), lr.DataConsistency())
    both = lr.hypergradient(p, 1e-8, 1e-8).value
    parts = [lr.hypergradient(p.select(torch.tensor([i])), 1e-8, 1e-8).value for i in (0, 1)]
    assert torch.allclose(both, sum(parts) / 2, atol=1e-7)


def test_measurements_with_parameters_of_their_own():
    """A learned blur behind masks that differ: derivatives reach the blur of the energy."""
    x, _ = data()
    masks = (
        torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) < 0.7
    ).double()
    with pytest.warns(UserWarning, match="Decomposable"):
        physics = (
            dinv.physics.Inpainting((1, SIDE, SIDE), mask=torch.ones(1, 1, SIDE, SIDE)) * blur()
        )
    y = masks * dinv.physics.Blur(filter=gaussian(1.2), padding="reflect").A(x)
    r = lr.regularizers.TV(0.05, 0.2) + lr.regularizers.Tikhonov(0.2, learned=False)
    energy = lr.Energy(physics, r).double()
    for loss, eps in ((None, 1e-9), (lr.DataConsistency(), 1e-10)):
        pairs = lr.data.Pairs(x, y, physics, ("a", "b"), params={"mask": masks})
        p = lr.BilevelProblem(energy, pairs, loss)
        found = lr.hypergradient(p, eps, eps, strategy=lr.Implicit())
        expected = slopes(value(p, lr.Implicit(), eps), p.theta)
        assert expected[1].abs() > 1e-4
        assert torch.dist(directions(p.theta) @ found.value, expected) <= 1e-6 * expected.norm()
        assert found.certified is not None


# --- functions that see the energy ----------------------------------------------------------------


def test_a_function_without_a_place_for_the_energy_is_refused():
    with pytest.raises(lr.InputError, match="two images and an energy"):
        lr.Custom(lambda x, truth: x.sum(), energy=True)
    with pytest.raises(lr.InputError, match="energy=True"):
        lr.Custom(lambda x, truth, energy: x.sum())


def test_a_function_of_the_energy_needs_a_problem():
    x, _ = data()
    with pytest.raises(lr.InputError, match="BilevelProblem"):
        lr.Custom(between, energy=True).tie(x).value(x)


def test_an_energy_in_float32_is_widened_for_values_in_float64():
    x, y = (t.float() for t in data())
    energy = smooth().float()
    p = lr.BilevelProblem(
        energy,
        lr.data.Pairs(x, y, energy.physics, ("a", "b")),
        lr.Custom(between, energy=True),
    )
    found = lr.hypergradient(p, 1e-3, 1e-3)
    exact = lr.hypergradient(problem(smooth(), lr.Custom(between, energy=True)), 1e-8, 1e-8)
    assert torch.dist(found.value.double(), exact.value) <= 1e-2 * exact.value.norm()


# --- penalties on kernels -------------------------------------------------------------------------


def test_a_penalty_on_the_kernel_is_one_of_theta():
    energy = smooth()
    reference = gaussian(1.0)
    penalty = KernelPenalty(energy, SobolevDistance(reference, weight=3.0))
    p = problem(energy, None, penalty)
    found, slope = p.penalty_at(p.theta)
    d = (energy.physics.filter.detach() - reference)[0, 0]
    squares = d.square().sum() + d.diff(dim=0).square().sum() + d.diff(dim=1).square().sum()
    assert found == pytest.approx(3.0 * float(squares.sqrt()))
    expected = slopes(lambda t: float(penalty(t)), p.theta)
    assert torch.allclose(directions(p.theta) @ slope, expected, atol=1e-8)
    assert slope[:2].norm() == 0 and slope[2:].norm() > 0, "the regularizer has no part in it"


def test_a_reference_does_not_follow_the_kernel():
    kernel = gaussian(1.0)
    distance = SobolevDistance(kernel)
    kernel += 1
    assert float(distance(kernel)) > 0.1


def test_at_the_reference_a_distance_has_a_derivative():
    kernel = gaussian(1.0).requires_grad_()
    (slope,) = torch.autograd.grad(SobolevDistance(kernel)(kernel), kernel)
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("tensor", ["kernel", "mask"])
def test_a_tensor_that_does_not_exist_is_named(tensor):
    penalty = KernelPenalty(smooth(), lambda k: k.square().sum(), tensor)
    with pytest.raises(lr.InputError, match=f"{tensor}.*'filter'"):
        penalty(problem(smooth(), None).theta)


def test_a_physics_that_is_not_learned_has_no_penalty():
    energy = lr.Energy(blur(learned=False), lr.regularizers.TV())
    with pytest.raises(lr.InputError, match="without a physics that is learned"):
        KernelPenalty(energy, lambda k: k.square().sum())


@pytest.mark.parametrize(("loss", "name"), [(lr.SURE(0.1), "SURE"), (lr.Whiteness(), "Whiteness")])
def test_statistics_of_the_residual_still_refuse_a_learned_operator(loss, name):
    with pytest.raises(lr.core.errors.MissingPropertyError, match=name):
        lr.BilevelProblem(smooth(), data()[1], loss)


@pytest.mark.parametrize("make", [lr.DataConsistency, lambda: lr.DataConsistency(mean=False)])
@pytest.mark.parametrize("gain, background", [(0.05, 2.0), (1.0, 3.0), (0.05, 1e-3)])
def test_counts_are_compared_in_the_units_of_a_x(make, gain, background):
    x, _ = data()
    physics = blur(learned=False)
    y = physics.A(x) / gain + background
    ridge = lr.regularizers.Tikhonov(1.0)
    energy = lr.Energy(physics, ridge, lr.KL(background, gain)).double()
    upper = make().tie_to(energy, y).upper

    assert float(upper.value(x).max()) < 1e-20  # noiseless counts are consistent with the truth
    assert float(upper.grad(x).abs().max()) < 1e-10
    assert float(upper.value(x + 0.1).min()) > 1e-4


def test_backgrounds_of_single_images_are_taken_off():
    x, _ = data()
    physics = blur(learned=False)
    background = torch.tensor([1.0, 5.0], dtype=torch.float64)
    y = physics.A(x) / 0.1 + background.view(2, 1, 1, 1)
    energy = lr.Energy(physics, lr.regularizers.Tikhonov(1.0), lr.KL(gain=0.1)).double()
    upper = lr.DataConsistency().tie_to(energy, lr.Measured(y, {"background": background})).upper
    assert float(upper.value(x).max()) < 1e-20


def test_whiteness_takes_gains_off_and_sure_refuses_them():
    x, _ = data()
    noise = 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    physics = blur(learned=False)
    seen = physics.A(x) + noise
    ridge = lr.regularizers.Tikhonov(1.0)
    plain = lr.Whiteness().tie_to(lr.Energy(physics, ridge).double(), seen).upper.value(x)
    counts = lr.Energy(physics, ridge, lr.KL(2.0, 0.05)).double()
    found = lr.Whiteness().tie_to(counts, seen / 0.05 + 2.0).upper.value(x)
    torch.testing.assert_close(found, plain)

    with pytest.raises(lr.InputError, match="gain"):
        lr.SURE(0.01).tie_to(counts, seen / 0.05 + 2.0)
