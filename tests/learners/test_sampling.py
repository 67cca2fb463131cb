"""Patterns that are learned: the optimum of every frequency by brute force, certified brackets,
binary patterns with the rest learned again, resuming.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepinv.physics import MRI
from tests.learners.cases import assert_same, run
from torch import Tensor

from learnreg.learners import LBFGSB, MAID
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import (
    BilevelProblem,
    Energy,
    SampledL2,
    SamplingWeights,
    SparsityPenalty,
)
from learnreg.regularizers import TV, Tikhonov

H, W, BETA = 4, 5, 1.0
BOX = {"omega": [0, 1]}


class Plain(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.x)


def pairs(noise: float = 0.2, images: int = 3, size=(H, W)) -> Plain:
    g = torch.Generator().manual_seed(3)
    physics = MRI(img_size=(2, *size)).double()
    x = torch.randn(images, 2, *size, generator=g, dtype=torch.float64)
    clean = physics.A(x) * torch.linspace(0.1, 1.5, size[1], dtype=torch.float64)
    y = clean + noise * torch.randn(clean.shape, generator=g, dtype=torch.float64)
    return Plain(x=physics.A_adjoint(clean), y=y)


def separable(kind: str = "free", start: float = 1.0, **options) -> BilevelProblem:
    """Without a regularizer, so that every frequency has a problem of its own."""
    made = SamplingWeights((H, W), kind, start=start, **options).double()
    physics = MRI(img_size=(2, H, W)).double()
    energy = Energy(physics, Tikhonov(1.0, learned=False).double(), SampledL2(made))
    return BilevelProblem(energy, pairs(), penalty=SparsityPenalty.of(energy, BETA, 0.0))


def losses_of(problem: BilevelProblem, omega: Tensor) -> Tensor:
    """The loss of every frequency (m, h, w) at omega (m, 1, 1), by the closed form."""
    y, truth = problem.pairs.y, MRI(img_size=(2, H, W)).double().A(problem.pairs.x)
    omega = omega.view(-1, 1, 1, 1, 1)
    moved = omega * y / (omega + 1) - truth
    data = 0.5 * moved.square().sum(dim=2).mean(dim=1)
    return data + BETA * omega[:, 0, 0] / problem.penalty.count


def brute_force(problem: BilevelProblem, lines: bool) -> Tensor:
    """The best of a fine grid for every frequency, or every line."""
    grid = torch.linspace(0, 1, 4001, dtype=torch.float64)
    each = losses_of(problem, grid)
    if lines:
        share = BETA * grid[:, None, None] / problem.penalty.count
        each = (each - share).sum(dim=1) + share[:, 0]
    flat = each.reshape(len(grid), -1)
    turns = ((flat[1:] - flat[:-1]).sign().diff(dim=0) < 0).sum(dim=0)
    assert int(turns.max()) == 0, "one valley each, so that a local method can find it"
    return grid[flat.argmin(dim=0)]


@pytest.mark.parametrize("kind", ["free", "lines"])
@pytest.mark.parametrize(
    "learner",
    [LBFGSB(eps=1e-8, delta=1e-8, box=BOX), MAID(box=BOX)],
    ids=["lbfgsb", "maid"],
)
def test_every_frequency_comes_to_the_optimum_of_a_grid(learner, kind):
    problem = separable(kind)
    best = brute_force(problem, lines=kind == "lines")
    assert bool((best == 0).any()) and bool((best == 1).any())
    assert bool(((best > 0) & (best < 1)).any())
    outcome = run(problem, learner, steps=60)
    assert float((outcome.theta - best).abs().max()) < 1e-3
    exact = bool(((outcome.theta == 0) == (best == 0)).all())
    assert exact, "what is not measured has weight zero, not nearly"


def test_the_loss_at_the_end_is_in_its_certified_bracket():
    problem = separable()
    outcome = run(problem, MAID(box=BOX), steps=8)
    for row, theta in zip(outcome.record.rows, outcome.thetas, strict=True):
        exact = float(losses_of(problem, theta).flatten(1).diagonal().sum())
        assert row["lower"] <= exact <= row["upper"] and row["kind"] == "certified"


def test_what_was_switched_off_returns_with_omega_and_not_with_its_root():
    best = brute_force(separable(), lines=False)
    place = int(best.argmax())
    start = torch.full((H * W,), 0.5, dtype=torch.float64)
    start[place] = 0.0
    found = {}
    for name, key in (("omega", "omega"), ("S", "root")):
        problem = separable(start=start.view(H, W), parametrization=name)
        problem.penalty = None
        box = {key: [0, 1]}
        found[name] = [
            float(run(problem, learner, steps=12).theta[place])
            for learner in (MAID(box=box), LBFGSB(eps=1e-8, delta=1e-8, box=box))
        ]
    assert min(found["omega"]) > 0.5 and max(found["S"]) == 0.0


def learned_with_tv() -> tuple[BilevelProblem, object]:
    made = SamplingWeights((H, 2 * W), "lines").double()
    regularizer = TV(0.05, 0.05, channels="joint") + Tikhonov(0.05, learned=False)
    physics = MRI(img_size=(2, H, 2 * W)).double()
    energy = Energy(physics, regularizer.double(), SampledL2(made))
    penalty = SparsityPenalty.of(energy, 40.0, 10.0)
    problem = BilevelProblem(energy, pairs(size=(H, 2 * W)), penalty=penalty)
    return problem, MAID(box={"omega": [0, 1], "log_smoothing": [-5, -1]})


def test_the_binary_pattern_is_evaluated_again_with_the_rest_learned_again():
    problem, learner = learned_with_tv()
    outcome = run(problem, learner, steps=8)
    energy = outcome.energy
    share = energy.fidelity.weights.sampled()
    assert 0 < share < 1
    binary = energy.fidelity.binary(fraction=0.5)
    fixed = Energy(energy.physics, energy.regularizer, binary)
    again = BilevelProblem(fixed, problem.pairs)
    assert len(again.theta) == 2, "the weights are fixed"
    tuned = run(again, MAID(), steps=4)
    first, last = tuned.record.rows[0], tuned.record.rows[-1]
    assert last["upper"] < first["upper"] and last["kind"] == "certified"
    assert tuned.energy.fidelity.weights().equal(binary.weights())


def test_a_run_goes_on_where_it_was(tmp_path):
    problem, learner = learned_with_tv()
    whole = run(problem, learner, steps=4)
    for steps in (2, 4):
        parted = run(problem, learner, steps=steps, checkpoint=tmp_path, resume=True)
    assert_same(whole, parted)


def test_float32_goes_on_in_float64_where_it_ends():
    made = SamplingWeights((H, W))
    energy = Energy(MRI(img_size=(2, H, W)), Tikhonov(1.0, learned=False), SampledL2(made))
    data = pairs()
    problem = BilevelProblem(
        energy,
        Plain(x=data.x.float(), y=data.y.float()),
        penalty=SparsityPenalty.of(energy, BETA, 0.0),
    )
    best = brute_force(separable(), lines=False)
    outcome = run(problem, MAID(box=BOX), steps=40)
    assert float((outcome.theta.double() - best).abs().max()) < 2e-3


def test_without_a_box_the_run_ends_in_words_or_stays_inside():
    problem = separable()
    outcome = run(problem, MAID(), steps=8)
    assert bool((outcome.thetas >= -1e-6).all()) and bool((outcome.thetas <= 1 + 1e-6).all())


def test_the_reference_of_the_benchmark_has_the_same_derivatives():
    """Written from the formulas alone: primal-dual steps, its own products, no autograd."""
    file = Path(__file__).parents[2] / "benchmarks" / "operators_sampling.py"
    spec = importlib.util.spec_from_file_location("operators_sampling", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    module.SIDE = 12
    data = module.square(0)
    S = 0.2 + 0.8 * torch.rand(12, 12, generator=torch.Generator().manual_seed(1)).double()
    reference = module.Reference(data, MRI(img_size=(2, 12, 12)).double())
    loss, of_S, of_alpha = reference.evaluate(S, 0.02)

    problem = module.problem_of(data, 0.02)
    theta = torch.cat([problem.theta[:1], S.flatten()])
    objective = Bilevel(problem, solver="newton")
    point = objective.evaluate(theta, 1e-10)
    z = objective.gradient(point, 1e-12, None, "none").value
    more, slope = module.penalty(S)
    assert point.loss == pytest.approx(loss + more, rel=1e-7)
    assert float((z[1:] - (of_S + slope).flatten()).norm()) < 1e-5 * float(z[1:].norm())
    assert float(z[0]) == pytest.approx(0.02 * of_alpha, rel=1e-4)
