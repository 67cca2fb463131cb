"""Solution maps by themselves and as layers: what ``pull`` gives is the derivative of what
``solve`` does, in theta and in the data, whatever the upper loss.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import ClassVar

import deepinv
import pytest
import torch
from tests.regularizers.cases import Pairs, denoising, pairs, plain, tv
from torch import Tensor, nn
from torch.nn import functional as F

import learnreg as lr
from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.grants import Grants
from learnreg.core.maps import Ask, Cotangent, Limits, Posed, SolutionMap, Upper
from learnreg.core.params import flatten, trainable
from learnreg.hypergradients import Implicit, JacobianFree, JointPiggyback, Piggyback, Unrolled
from learnreg.hypergradients.layer import REMEMBERED
from learnreg.problems import Energy, SaddleEnergy, SquaredError
from learnreg.problems.losses import tied_loss
from learnreg.regularizers import TV, LearnedTV, Tikhonov

SIZE = (5, 6)


class Kernel(deepinv.physics.LinearPhysics):
    """Correlation with three taps along rows, which are parameters."""

    calls: ClassVar[Counter[int]] = Counter()
    """How often A of each was asked; of the class, because attributes of a physics are watched."""

    def __init__(self, taps: tuple[float, ...] = (0.5, 0.3, 0.1)) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.tensor(taps, dtype=torch.float64))

    def A(self, x: Tensor, **_) -> Tensor:
        self.calls[id(self)] += 1
        return F.conv2d(x, self.taps.view(1, 1, 1, -1), padding=(0, 1))

    def A_adjoint(self, y: Tensor, **_) -> Tensor:
        return F.conv_transpose2d(y, self.taps.view(1, 1, 1, -1), padding=(0, 1))


def blur() -> deepinv.physics.Physics:
    kernel = torch.tensor([[0.0, 1, 0], [1, 3, 1], [0, 2, 0]], dtype=torch.float64)[None, None] / 8
    return deepinv.physics.Blur(filter=kernel, padding="circular")


def regularizer() -> nn.Module:
    return tv(True, 0.1, 0.2) + Tikhonov(0.2, learned=False).double()


SMOOTH = {
    "denoising": lambda: denoising(regularizer()),
    "blur": lambda: Energy(blur(), regularizer()),
    "learned kernel": lambda: Energy(Kernel(), regularizer()),
}
ROUNDED = {"smoothing": 0.1, "curvature": 1.0, "rounding": 0.3}
SADDLE = {
    "denoising": lambda: SaddleEnergy(
        deepinv.physics.Denoising(),
        LearnedTV(filters=2, weight=0.1, init="random", **ROUNDED),
        tikhonov=0.1,
    ).double(),
    "blur": lambda: SaddleEnergy(
        blur(), LearnedTV(filters=2, weight=0.1, init="random", **ROUNDED), tikhonov=0.3
    ).double(),
}
ENERGIES = {"smooth": SMOOTH, "saddle": SADDLE}


@dataclass
class Case:
    """An energy with measurements, an upper loss, and random directions."""

    energy: nn.Module
    y: Tensor
    upper: Upper

    @property
    def theta(self) -> Tensor:
        return flatten(trainable(self.energy)).detach()


@cache
def case(view: str, physics: str, loss: str) -> Case:
    energy, data = ENERGIES[view][physics](), pairs(2, SIZE)
    with torch.no_grad():
        y = data.y if physics == "denoising" else energy.physics.A(data.x) + (data.y - data.x)
    return Case(energy, y, uppers(data.x)[loss])


def uppers(x_true: Tensor) -> dict[str, Upper]:
    c = torch.randn(x_true.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return {"cotangent": Cotangent(c), "squared": tied_loss(SquaredError(), x_true)}


LOSSES = ("cotangent", "squared")


def pulled(chosen: SolutionMap, c: Case, eps: float, delta: float = 1e-10):
    """The solution of the map and its pullback."""
    posed = Posed(c.energy, c.y)
    solution = chosen.solve(posed, eps, None, Limits(), c.upper).raise_if_failed()
    return solution, chosen.pull(posed, solution, c.upper, Ask(delta, error="none", data=True))


def assert_close(found: Tensor, expected: Tensor, relative: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= relative * float(expected.norm())


# --- the truth of the steps: autograd through a loop written out ----------------------------------


def loop(strategy: Unrolled, c: Case, x0: Tensor | None) -> tuple[Tensor, Tensor]:
    """The derivatives of sum_i g_i(x_K) in theta and in y, at the step sizes of the docstring.

    From A^T y, scaled to fit the data best, where x_0 is None.
    """
    energy = copy.deepcopy(c.energy)
    identity = isinstance(energy.physics, deepinv.physics.Denoising)
    forward = (lambda v: v) if identity else energy.physics.A
    back = (lambda v: v) if identity else energy.physics.A_adjoint
    params, y = trainable(energy), c.y.clone().requires_grad_()

    def gradient(x: Tensor) -> Tensor:
        at = x if x.requires_grad else x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(plain(energy.regularizer, at).sum(), at, create_graph=True)
        return back(forward(at) - y) + slope

    bounds = c.energy.at(c.y).bounds()
    mu, L = bounds.mu.value, bounds.L.value
    gd = strategy.method == "gd"
    tau = strategy.step or (2 / (L + mu) if gd else 1 / L)
    root = math.sqrt(mu * tau)
    beta = 0.0 if gd else (1 - root) / (1 + root)

    if x0 is None:
        x0 = back(y)
        if not identity:
            image = forward(x0)
            squares = [v.square().sum(dim=(1, 2, 3), keepdim=True) for v in (x0, image)]
            x0 = squares[0] / squares[1] * x0
    x = before = x0
    for _ in range(strategy.steps):
        z = x + beta * (x - before)
        x, before = z - tau * gradient(z), x
    *to_theta, to_y = torch.autograd.grad(
        (c.upper.grad(x.detach()) * x).sum(), [*params, y], materialize_grads=True
    )
    return flatten(to_theta), to_y


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", [None, 0.2])
@pytest.mark.parametrize("method", ["gd", "agd"])
@pytest.mark.parametrize("start", ["data", "solution"])
@pytest.mark.parametrize("physics", SMOOTH)
def test_unrolled_is_autograd_through_the_loop_in_theta_and_in_the_data(
    physics, start, method, step, loss
):
    c = case("smooth", physics, loss)
    for steps in (1, 2, 9):
        chosen = Unrolled(steps, start, method, step)
        solution, found = pulled(chosen, c, eps=0.1)
        x0 = None if start == "data" else solution.value
        to_theta, to_y = loop(chosen, c, x0)
        assert_close(found.theta, to_theta, 1e-10)
        assert_close(found.data, to_y, 1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("physics", SMOOTH)
def test_jacobian_free_is_autograd_through_steps_that_stay_at_the_solution(physics, loss):
    """At the minimizer gradient steps do not move, so their derivative is the series there."""
    c = case("smooth", physics, loss)
    solution, found = pulled(JacobianFree(terms=3), c, eps=1e-11)
    to_theta, to_y = loop(Unrolled(3, "solution", "gd"), c, solution.value)
    assert_close(found.theta, to_theta, 1e-8)
    assert_close(found.data, to_y, 1e-8)


# --- the truth of solves: central differences -----------------------------------------------------


def assert_differences(chosen: SolutionMap, c: Case, theta: Tensor, data: Tensor, eps: float):
    """The derivatives along random directions, those of what ``solve`` gives."""

    def value(at: Tensor, y: Tensor) -> float:
        posed = Posed(c.energy.with_theta(at), y)
        x = chosen.solve(posed, eps, None, Limits()).raise_if_failed().value
        return float(c.upper.value(x).sum())

    g, h = torch.Generator().manual_seed(4), 1e-5
    for _ in range(3):
        d, v = (torch.randn(t.shape, generator=g, dtype=torch.float64) for t in (c.theta, c.y))
        d, v = d / d.norm(), v / v.norm()
        for move, slope in (((h * d, 0 * v), theta @ d), ((0 * d, h * v), (data * v).sum())):
            up, down = (value(c.theta + s * move[0], c.y + s * move[1]) for s in (1, -1))
            size = float((theta if move[0].any() else data).norm())
            assert (up - down) / (2 * h) == pytest.approx(float(slope), abs=1e-6 * size)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("physics", SMOOTH)
def test_implicit_agrees_with_differences(physics, loss):
    c = case("smooth", physics, loss)
    _, found = pulled(Implicit(), c, eps=1e-11)
    assert_differences(Implicit(), c, found.theta, found.data, eps=1e-11)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", ["gd", "agd"])
@pytest.mark.parametrize("physics", SMOOTH)
def test_steps_of_a_given_size_from_the_data_agree_with_differences(physics, method, loss):
    """The derivative of the very map that ``solve`` is, its start included."""
    c, chosen = case("smooth", physics, loss), Unrolled(6, method=method, step=0.2)
    _, found = pulled(chosen, c, eps=1.0)
    assert_differences(chosen, c, found.theta, found.data, eps=1.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chosen", [Piggyback(), JointPiggyback(steps=200)], ids=["two", "joint"])
@pytest.mark.parametrize("physics", SADDLE)
def test_saddle_maps_agree_with_differences(physics, chosen, loss):
    c = case("saddle", physics, loss)
    _, found = pulled(chosen, c, eps=1e-11)
    assert_differences(chosen, c, found.theta, found.data, eps=1e-11)


@pytest.mark.parametrize("physics", SADDLE)
def test_both_saddle_maps_arrive_at_the_same(physics):
    c = case("saddle", physics, "squared")
    (_, two), (_, joint) = (pulled(m, c, 1e-11) for m in (Piggyback(), JointPiggyback(steps=200)))
    assert_close(joint.theta, two.theta, 1e-7)
    assert_close(joint.data, two.data, 1e-7)


MAPS = {
    "unrolled": ("smooth", Unrolled(7)),
    "unrolled gd": ("smooth", Unrolled(7, method="gd")),
    "truncated": ("smooth", Unrolled(7, start="solution")),
    "jacobian_free": ("smooth", JacobianFree(terms=3)),
    "implicit": ("smooth", Implicit()),
    "piggyback": ("saddle", Piggyback()),
    "joint": ("saddle", JointPiggyback(steps=40)),
}
PHYSICS = ("denoising", "blur")


@pytest.mark.parametrize("name", MAPS)
def test_the_data_are_differentiated_only_when_asked(name):
    view, chosen = MAPS[name]
    c = case(view, "denoising", "squared")
    posed = Posed(c.energy, c.y)
    solution = chosen.solve(posed, 1e-3, None, Limits(), c.upper)
    without = chosen.pull(posed, solution, c.upper, Ask(1e-4))
    with_data = chosen.pull(posed, solution, c.upper, Ask(1e-4, data=True))
    assert without.data is None and with_data.data.shape == c.y.shape
    assert torch.equal(without.theta, with_data.theta)
    assert chosen.view == view and Grants.DATA | Grants.GRADIENT in chosen.grants


# --- layers ---------------------------------------------------------------------------------------


def layer(name: str, physics: str = "denoising", eps: float = 1e-3) -> lr.Reconstructor:
    view, chosen = MAPS[name]
    energy = copy.deepcopy(case(view, physics, "squared").energy)
    return lr.Reconstructor(energy, eps, hypergradient=chosen)


def measurements(name: str, physics: str = "denoising") -> Tensor:
    return case(MAPS[name][0], physics, "squared").y.clone()


def gradients(model: nn.Module, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Those of <weights, model(y)> in theta and in y."""
    y = y.clone().requires_grad_()
    *to_theta, to_y = torch.autograd.grad((weights * model(y)).sum(), [*trainable(model), y])
    return flatten(to_theta), to_y


@pytest.mark.parametrize("physics", PHYSICS)
@pytest.mark.parametrize("name", MAPS)
def test_the_backward_pass_is_the_pullback(name, physics):
    model, y = layer(name, physics), measurements(name, physics)
    c = uppers(y)["cotangent"]
    found = gradients(model, y, c.c)
    posed, chosen = Posed(model.energy, y), MAPS[name][1]
    solution = chosen.solve(posed, model.eps, None, Limits())
    assert torch.equal(model(y).detach(), solution.value)
    delta = model.relative_delta * c.c.flatten(1).norm(dim=1)
    expected = chosen.pull(posed, solution, c, Ask(delta, error="none", data=True))
    torch.testing.assert_close(found[0], expected.theta, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found[1], expected.data, rtol=1e-12, atol=1e-14)


def test_a_learned_operator_in_a_layer_of_steps():
    c = case("smooth", "learned kernel", "cotangent")
    model = lr.Reconstructor(copy.deepcopy(c.energy), hypergradient=Unrolled(5, step=0.2))
    found, expected = gradients(model, c.y, c.upper.c), loop(Unrolled(5, step=0.2), c, None)
    assert_close(found[0], expected[0], 1e-10)
    assert_close(found[1], expected[1], 1e-10)
    assert found[0][-3:].norm() > 0, "the taps stand last"


class Doubled:
    """A solution map of one's own: another one, with its pullback doubled."""

    def __init__(self, of: SolutionMap) -> None:
        self.of, self.view, self.grants = of, of.view, of.grants

    def solve(self, *args: object, **kwargs: object):
        return self.of.solve(*args, **kwargs)

    def pull(self, *args: object, **kwargs: object):
        found = self.of.pull(*args, **kwargs)
        data = None if found.data is None else 2 * found.data
        return replace(found, theta=2 * found.theta, data=data)


def test_a_map_of_ones_own_will_do():
    y = measurements("implicit")
    energy = case("smooth", "denoising", "squared").energy
    one, two = (
        lr.Reconstructor(energy, 1e-4, hypergradient=m) for m in (Implicit(), Doubled(Implicit()))
    )
    weights = uppers(y)["cotangent"].c
    found, expected = (gradients(m, y, weights) for m in (two, one))
    assert torch.equal(found[0], 2 * expected[0]) and torch.equal(found[1], 2 * expected[1])


@pytest.mark.parametrize("name", ["unrolled", "jacobian_free"])
def test_deepinv_trains_it(name, tmp_path):
    data = pairs(4, (8, 8))
    x, y = data.x.float(), data.y.float()
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    model = lr.Reconstructor(Energy(physics, TV(0.02, 0.1)), 1e-2, hypergradient=MAPS[name][1])
    before = flatten(trainable(model)).detach().clone()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    trainer = deepinv.Trainer(
        model,
        physics=physics,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.1),
        train_dataloader=loader,
        epochs=1,
        losses=deepinv.loss.SupLoss(),
        online_measurements=False,
        compare_no_learning=False,
        plot_images=False,
        save_path=None,
        verbose=False,
        show_progress_bar=False,
        device="cpu",
        non_blocking_transfers=False,
    )
    trainer.train()
    after = flatten(trainable(model)).detach()
    assert (before - after).abs().min() > 0.01 and after.isfinite().all()
    with torch.no_grad():
        assert torch.equal(model(y), model(y, physics)), (
            "the physics of the trainer is the energy's"
        )


@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
@pytest.mark.parametrize("name", MAPS)
def test_a_layer_is_copied_and_kept(name, way):
    model, y = layer(name), measurements(name)
    model(y, deepinv.physics.Denoising())  # has something to remember
    if way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "deepcopy":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other.strategy == model.strategy
    weights = uppers(y)["cotangent"].c
    for a, b in zip(gradients(model, y, weights), gradients(other, y, weights), strict=True):
        assert torch.equal(a, b)
    kept = model(y).detach()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    assert torch.equal(model(y), kept) and not torch.equal(other(y), kept)
    assert torch.equal(other(y, deepinv.physics.Denoising()), other(y)), "nothing stale is kept"


@pytest.mark.parametrize("physics", PHYSICS)
@pytest.mark.parametrize("name", MAPS)
def test_a_layer_changes_its_type(name, physics):
    model, y = layer(name, physics), measurements(name, physics)
    weights = uppers(y)["cotangent"].c
    expected = gradients(model, y, weights)
    narrow = copy.deepcopy(model).float()
    found = gradients(narrow, y.float(), weights.float())
    assert all(t.dtype == torch.float32 for t in (*found, narrow(y.float())))
    wide = narrow.to(torch.float64)
    again = gradients(wide, y, weights)
    assert wide(y).dtype == torch.float64
    for one, three, truth in zip(found, again, expected, strict=True):
        assert_close(one.double(), truth, 2e-2)
        assert three.dtype == torch.float64
        assert_close(three, truth, 1e-4)  # its parameters have been through float32


@pytest.mark.parametrize("name", MAPS)
def test_modes_change_nothing(name):
    model, y = layer(name), measurements(name)
    weights = uppers(y)["cotangent"].c
    expected, image = gradients(model, y, weights), model(y).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(model, y, weights)
        assert torch.equal(model(y), image)
    assert all(torch.equal(a, b) for a, b in zip(inside, expected, strict=True))
    with torch.inference_mode():
        assert torch.equal(model(y), image) and not model(y).requires_grad
    lent = SimpleNamespace()
    with torch.inference_mode():
        lent.y = y.clone()
    assert torch.equal(model(lent.y).detach(), image), "measurements made in that mode"


@pytest.mark.parametrize("name", MAPS)
def test_transformations_and_second_derivatives_are_refused(name):
    model, y = layer(name), measurements(name)
    with pytest.raises(MissingPropertyError, match=r"torch\.func"):
        torch.func.grad(lambda v: model(v).sum())(y)
    y.requires_grad_()
    (slope,) = torch.autograd.grad(model(y).square().sum(), y, create_graph=True)
    for inputs in ([y], trainable(model)):
        with pytest.raises(MissingPropertyError, match="once differentiable"):
            torch.autograd.grad(slope.square().sum(), inputs, retain_graph=True)


# --- what was found out about a physics is kept while it is true ----------------------------------


def counted(taps: tuple[float, ...] = (0.5, 0.3, 0.1)) -> Kernel:
    physics = Kernel(taps)
    physics.requires_grad_(False)
    return physics


def asked(model: nn.Module, y: Tensor, physics: Kernel | None, of: Kernel) -> int:
    """How often A of a physics is asked in one call of the layer."""
    before = of.calls[id(of)]
    with torch.no_grad():
        model(y) if physics is None else model(y, physics)
    return of.calls[id(of)] - before


@pytest.mark.parametrize("chosen", [Unrolled(3), JacobianFree()], ids=["unrolled", "jacobian_free"])
def test_a_physics_handed_in_twice_is_probed_once(chosen):
    own, other, y = counted(), counted(), pairs(2, SIZE).y
    model = lr.Reconstructor(Energy(own, regularizer()), hypergradient=chosen)
    first, second, third = (asked(model, y, other, other) for _ in range(3))
    assert second == third < first, "the probes"
    asked(model, y, None, own)
    assert asked(model, y, None, own) == second, "as often as for the physics of the energy"


@pytest.mark.parametrize("chosen", [Unrolled(3), JacobianFree()], ids=["unrolled", "jacobian_free"])
def test_a_physics_changed_between_two_calls_is_noticed(chosen):
    taps, other, y = (0.1, 2.0, 0.7), counted(), pairs(2, SIZE).y
    model = lr.Reconstructor(Energy(counted(), regularizer()), 1e-9, hypergradient=chosen)
    for _ in range(2):
        asked(model, y, other, other)
    with torch.no_grad():
        before = model(y, other)
        other.taps.copy_(torch.tensor(taps, dtype=torch.float64))
    new = counted(taps)
    fresh = lr.Reconstructor(Energy(new, model.energy.regularizer), 1e-9, hypergradient=chosen)
    with_probes, without = (asked(model, y, other, other) for _ in range(2))
    assert with_probes == asked(fresh, y, None, new) > without == asked(fresh, y, None, new)
    with torch.no_grad():
        assert torch.equal(model(y, other), fresh(y)) and not torch.equal(before, fresh(y))


def test_few_physics_are_kept_and_each_gives_its_own():
    y, many = pairs(2, SIZE).y, [counted((0.5, 0.1 * k, 0.1)) for k in range(REMEMBERED + 3)]
    model = lr.Reconstructor(Energy(counted(), regularizer()), hypergradient=Unrolled(3))
    for _ in range(2):
        for physics in many:
            alone = lr.Reconstructor(
                Energy(physics, model.energy.regularizer), hypergradient=Unrolled(3)
            )
            with torch.no_grad():
                assert torch.equal(model(y, physics), alone(y))
    assert len(model._recent._kept) == REMEMBERED


def test_another_energy_is_not_mistaken_for_the_one_before():
    y, physics = pairs(2, SIZE).y, counted()
    model = lr.Reconstructor(Energy(counted(), regularizer()), hypergradient=Unrolled(3))
    with torch.no_grad():
        before = model(y, physics)
        model.energy = Energy(counted(), (TV(0.5, 0.1) + Tikhonov(0.7)).double(), lr.L2(0.5))
        after = model(y, physics)
        alone = lr.Reconstructor(model.energy.with_physics(physics), hypergradient=Unrolled(3))
        assert torch.equal(after, alone(y)) and not torch.equal(after, before)


# --- refusals -------------------------------------------------------------------------------------


WRONG = {name: ("saddle" if view == "smooth" else "smooth") for name, (view, _) in MAPS.items()}


@pytest.mark.parametrize("name", MAPS)
def test_maps_for_energies_of_the_other_kind_are_refused_before_anything_is_solved(name):
    chosen, c = MAPS[name][1], case(WRONG[name], "denoising", "squared")
    natural = {"smooth": "Implicit", "saddle": "Piggyback"}[WRONG[name]]
    message = rf"{type(chosen).__name__} for .*Energy; expected {natural}\b"
    with pytest.raises(MissingPropertyError, match=message):
        lr.Reconstructor(c.energy, 1e-2, hypergradient=chosen)
    problem = lr.BilevelProblem(c.energy, Pairs(x=c.y, y=c.y))
    with pytest.raises(MissingPropertyError, match=message):
        lr.learn(problem, lr.MAID(), hypergradient=chosen, budget=lr.Budget(steps=1))
    posed = Posed(c.energy, c.y)
    with pytest.raises(MissingPropertyError, match=natural):
        solution = chosen.solve(posed, 1e-2, None, Limits())
        chosen.pull(posed, solution, c.upper, Ask(1e-2))


def test_what_is_no_map_is_refused():
    energy = case("smooth", "denoising", "squared").energy
    half = SimpleNamespace(solve=Implicit().solve, pull=Implicit().pull)
    for wrong in (half, Implicit, "implicit", 3):
        with pytest.raises(InputError, match=r"hypergradient: given .*a strategy such as Implicit"):
            lr.Reconstructor(energy, 1e-2, hypergradient=wrong)
