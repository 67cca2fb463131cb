"""Inexact stochastic gradients: schedules and draws as declared, torch's own optimizers, rates,
exact resume.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace

import deepinv
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learners.cases import (
    GALLERY,
    Plain,
    Watched,
    assert_same,
    denoising,
    pictures,
    run,
    without_clocks,
)
from tests.learners.test_maid import broken
from tests.learners.test_quasi_newton import Fenced
from tests.runs.test_resume import at_call

from learnreg.core.errors import CheckpointError, InputError
from learnreg.data import pairs
from learnreg.hypergradients import JacobianFree, Unrolled
from learnreg.learners import LBFGSB, Stochastic
from learnreg.learners.stochastic import FIRST_MOVE, PRESETS, drawn
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem, Energy, gallery
from learnreg.regularizers import TV, FoE
from learnreg.runs import Budget, learn

CLOSE = {"eps0": 1e-7, "delta0": 1e-7, "accuracy_exponent": 0.0}
"""As good as exact."""


@cache
def crops(number: int = 6, size: int = 12) -> Plain:
    data, _ = pairs("phantoms", denoising(), size=size, split=(number, 1), seed=3)
    return Plain(x=data.x, y=data.y)


def problem_of(regularizer=None, number: int = 6) -> BilevelProblem:
    """Denoising of six small phantoms, float32."""
    return BilevelProblem(Energy(deepinv.physics.Denoising(), regularizer or TV()), crops(number))


def part_of(problem: gallery.QuadraticProblem, index: list[int]) -> gallery.QuadraticProblem:
    """Some images, with exact answers."""
    return type(problem)(
        problem.energy, problem.pairs.x[index], problem.pairs.y[index], problem.loss
    )


@pytest.fixture
def spied(monkeypatch) -> list[SimpleNamespace]:
    """Every solve and every gradient: what it was asked, what it gave."""
    calls, solve, gradient = [], Bilevel.evaluate, Bilevel.gradient

    def spied_solve(lower, theta, eps, x0=None, *rest):
        point = solve(lower, theta, eps, x0, *rest)
        calls.append(
            SimpleNamespace(
                kind="solve",
                theta=theta,
                eps=eps,
                x0=x0,
                y=lower.problem.pairs.y,
                x=lower.problem.pairs.x,
                value=point.solution.value,
                error=point.solution.error,
            )
        )
        return point

    def spied_gradient(lower, point, delta, adjoint=None, *rest):
        z = gradient(lower, point, delta, adjoint, *rest)
        calls.append(
            SimpleNamespace(kind="gradient", delta=delta, q0=adjoint, q=z.adjoint, value=z.value)
        )
        return z

    monkeypatch.setattr(Bilevel, "evaluate", spied_solve)
    monkeypatch.setattr(Bilevel, "gradient", spied_gradient)
    return calls


def images(problem: BilevelProblem, call: SimpleNamespace) -> list[int]:
    """Which images a solve was about, by their measurements; every one of them must be an unchanged
    image.
    """
    found = [[i for i, y in enumerate(problem.pairs.y) if y.equal(row)] for row in call.y]
    assert all(len(f) == 1 for f in found), "measurements are fixed"
    assert all(problem.pairs.x[f[0]].equal(x) for f, x in zip(found, call.x, strict=True))
    return [f[0] for f in found]


def steps_of(
    calls: list[SimpleNamespace], start: int
) -> list[tuple[SimpleNamespace, SimpleNamespace]]:
    """(solve, gradient) of each mini-batch; the first ``start`` solves are those of the start."""
    assert all(c.kind == "solve" for c in calls[:start])
    rest = calls[start:]
    assert [c.kind for c in rest] == ["solve", "gradient"] * (len(rest) // 2)
    return list(zip(rest[::2], rest[1::2], strict=True))


# --- draws ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 40),
    batch=st.integers(1, 40),
    seed=st.integers(-5, 2**40),
    number=st.integers(0, 50),
)
def test_every_image_is_drawn_once_per_pass(size, batch, seed, number):
    """Those that do not fill a batch are left out; every pass has an order of its own."""
    batch = min(batch, size)
    parts = [drawn(number * (size // batch) + k, size, batch, seed) for k in range(size // batch)]
    seen = torch.cat(parts).tolist()
    assert all(len(part) == batch for part in parts)
    assert len(seen) == len(set(seen)) == size - size % batch and set(seen) <= set(range(size))
    state = torch.get_rng_state()
    assert drawn(number, size, batch, seed).equal(drawn(number, size, batch, seed))
    assert torch.get_rng_state().equal(state), "torch's own generator is left alone"


def test_orders_depend_on_seed_and_pass():
    orders = [tuple(drawn(k, 12, 12, seed).tolist()) for seed in range(4) for k in range(4)]
    assert len(set(orders)) == 16


def test_the_drawn_images_are_the_ones_that_are_solved(spied):
    problem = problem_of()
    run(problem, Stochastic(batch=2), steps=3, seed=5)
    steps = steps_of(spied, 3)
    assert len(steps) == 9
    assert [images(problem, solve) for solve, _ in steps] == [
        drawn(k, 6, 2, 5).tolist() for k in range(9)
    ]
    assert sorted(i for call in spied[:3] for i in images(problem, call)) == list(range(6))


def test_a_batch_larger_than_the_data_is_all_of_it(spied):
    problem = problem_of(number=3)
    rows = run(problem, Stochastic(batch=8), steps=2).record.rows
    assert [sorted(images(problem, solve)) for solve, _ in steps_of(spied, 1)] == [[0, 1, 2]] * 2
    assert [row["batches"] for row in rows] == [0, 1, 2]


def test_runs_are_reproducible_from_the_seed():
    one, two, other = (
        run(problem_of(), Stochastic(batch=2), steps=2, seed=seed) for seed in (3, 3, 4)
    )
    assert_same(one, two)
    assert not one.theta.equal(other.theta)


def test_the_global_generator_neither_matters_nor_moves():
    torch.manual_seed(0)
    one = run(problem_of(), Stochastic(batch=2), steps=1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert_same(one, run(problem_of(), Stochastic(batch=2), steps=1))
    assert torch.get_rng_state().equal(before)


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(("q", "p"), [(0.5, 0.25), (0.0, 0.0), (0.6, 1.0)])
def test_schedules_are_exactly_as_declared(optimizer, q, p, spied, monkeypatch):
    """At every mini-batch step, the first included: eps of the solve, delta of the linear system,
    lr of torch.optim.
    """
    rates = []

    class Spy(getattr(torch.optim, optimizer)):
        def __init__(self, parameters, lr, **keywords):
            rates.append(lr)
            super().__init__(parameters, lr=lr, **keywords)

    monkeypatch.setattr(torch.optim, optimizer, Spy)
    learner = Stochastic(
        optimizer.lower(),
        batch=2,
        alpha0=0.3,
        step_exponent=q,
        eps0=0.2,
        delta0=0.1,
        accuracy_exponent=p,
        record=1,
    )
    rows = run(GALLERY["two_pixels"](), learner, steps=7).record.rows
    steps = steps_of(spied, 3)
    assert all(call.eps == 0.2 for call in spied[:3])
    assert len(steps) == len(rates) == 7
    for k, (solve, gradient) in enumerate(steps):
        assert solve.eps == 0.2 * (k + 1) ** -p and bool((solve.error <= solve.eps).all())
        assert gradient.delta == 0.1 * (k + 1) ** -p
        assert rates[k] == 0.3 * (k + 1) ** -q
        row = rows[k + 1]
        assert (row["eps"], row["delta"], row["step_size"]) == (solve.eps, gradient.delta, rates[k])
        assert row["batches"] == k + 1
        assert row["gradient_norm"] == pytest.approx(float(gradient.value.norm()))
    assert (rows[0]["eps"], rows[0]["delta"], rows[0]["step_size"]) == (0.2, 0.1, None)


def test_what_is_not_given_is_derived_at_the_start(spied):
    problem = problem_of()
    outcome = run(problem, Stochastic(batch=2, record=1), steps=2)
    solve, gradient = steps_of(spied, 3)[0]
    assert (
        solve.eps == outcome.record.rows[0]["eps"] > 0
        and gradient.delta == outcome.record.rows[0]["delta"] > 0
    )
    units = problem.units
    moved = ((outcome.thetas[1] - outcome.thetas[0]) / units).norm()
    assert float(moved) == pytest.approx(
        FIRST_MOVE["sgd"] * float((outcome.thetas[0] / units).norm()), rel=1e-4
    )
    first, second = outcome.record.rows[1:]
    assert second["step_size"] == pytest.approx(first["step_size"] / 2**0.5, rel=1e-12)


def test_adam_starts_with_the_same_share_of_a_unit_for_every_parameter():
    problem = problem_of(FoE(filters=2, size=3))
    outcome = run(problem, Stochastic("adam", batch=3, record=1), steps=1)
    moved = (outcome.thetas[1] - outcome.thetas[0]).abs() / problem.units
    assert float(moved.max()) == pytest.approx(FIRST_MOVE["adam"], rel=1e-2)
    assert float(moved.median()) > 0.95 * FIRST_MOVE["adam"]


def test_a_first_gradient_of_zero_does_not_set_the_step(spied):
    """delta0 above ||grad loss|| makes q = 0 accurate enough, and z = 0: nothing to measure a step
    with.
    """
    learner = Stochastic(batch=3, record=1, eps0=1e-3, delta0=5.0, accuracy_exponent=2.0)
    outcome = run(GALLERY["quadratic"](), learner, steps=8)
    norms = outcome.record.column("gradient_norm")
    zero = sum(n == 0 for n in norms[1:])
    assert 0 < zero < 6
    assert (
        outcome.thetas[zero].equal(outcome.thetas[0])
        and outcome.record.rows[zero]["step_size"] is None
    )
    moved = float((outcome.thetas[zero + 1] - outcome.thetas[zero]).norm())
    assert 0 < moved < 0.06 * float(outcome.thetas[0].norm())


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_learners_with_these_settings(name):
    learner = Stochastic.preset(name, batch=3)
    assert learner == Stochastic(batch=3, **PRESETS[name])
    assert Stochastic.preset(name, momentum=0.0, step_exponent=0.9).step_exponent == 0.9


def test_the_presets_are_those_of_the_theory():
    exponents = {
        name: (p["optimizer"], p["step_exponent"], p["accuracy_exponent"])
        for name, p in PRESETS.items()
    }
    assert exponents["isgd"] == ("sgd", 0.0, 0.0)
    q, p = exponents["isgd-ds"][1:]
    assert (
        (q, p) == (Stochastic().step_exponent, Stochastic().accuracy_exponent)
        and q == 0.5
        and p >= 0.25
    )
    q, p = exponents["isgd-vanishing"][1:]
    assert 0.5 < q <= 1 and 2 * p + q > 1
    assert exponents["iadam"][0] == "adam"
    with pytest.raises(InputError, match="isgd-ds"):
        Stochastic.preset("sgd")


# --- one step is that of torch --------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": ({}, lambda parameters: torch.optim.SGD(parameters, lr=0.3)),
    "momentum": (
        {"momentum": 0.7},
        lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.7),
    ),
    "adam": ({"optimizer": "adam"}, lambda parameters: torch.optim.Adam(parameters, lr=0.3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_a_plain_loop_with_torch_optim(name, spied):
    """The same hypergradients fed to torch.optim with LambdaLR; and these are nearly those in
    closed form.
    """
    settings, make = OPTIMIZERS[name]
    problem = gallery.quadratic(images=6, n=5, d=3, condition=10.0)
    outcome = run(
        problem, Stochastic(batch=2, alpha0=0.3, record=1, **CLOSE, **settings), steps=8, seed=2
    )
    theta = torch.nn.Parameter(problem.theta.clone())
    optimizer = make([theta])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (k + 1) ** -0.5)
    for k, (solve, gradient) in enumerate(steps_of(spied, 3)):
        assert solve.theta.equal(theta.detach())
        exact = part_of(problem, images(problem, solve)).exact_hypergradient(theta.detach())
        assert torch.allclose(gradient.value, exact, rtol=0, atol=1e-6)
        theta.grad = gradient.value.clone()
        optimizer.step()
        schedule.step()
        assert outcome.thetas[k + 1].equal(theta.detach())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_theta_is_scaled_by_its_units(optimizer, spied):
    """s = theta / units takes the steps: the gradient is units * z, and theta = units * s."""
    problem = problem_of(FoE(filters=2, size=3))
    outcome = run(problem, Stochastic(optimizer, batch=3, alpha0=1e-3, record=1), steps=3)
    units, scaled = problem.units, torch.nn.Parameter(problem.theta / problem.units)
    plain = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([scaled], lr=1e-3)
    for k, (_, gradient) in enumerate(steps_of(spied, 2)):
        plain.param_groups[0]["lr"] = 1e-3 * (k + 1) ** -0.5
        scaled.grad = units * gradient.value
        plain.step()
        assert torch.allclose(outcome.thetas[k + 1], units * scaled.detach(), rtol=1e-6, atol=1e-8)
    assert float(units.max()) > 1.5 * float(units.min())


# --- per-image objectives, warm starts ------------------------------------------------------------


def test_the_objective_of_an_image_does_not_depend_on_the_batch():
    problem = problem_of()
    losses = []
    for batch in (1, 2, 4, 6):
        watched = Watched(Stochastic(batch=batch, **CLOSE))
        outcome = run(problem.to(torch.float64), watched, steps=1, budget=Budget(work=1))
        losses.append(watched.states[0].seen.loss)
        assert outcome.record.rows[0]["loss"] == pytest.approx(float(losses[0].mean()), rel=1e-6)
    assert all(torch.allclose(found, losses[0], rtol=1e-6, atol=0) for found in losses)


def test_the_gradient_of_a_batch_is_the_mean_over_its_images():
    problem = problem_of().to(torch.float64)
    whole = Bilevel(problem, JacobianFree(terms=200))

    def z(index):
        part = whole.subset(torch.tensor(index))
        return part.gradient(part.evaluate(problem.theta, 1e-9), 1e-9, None, "none").value

    assert torch.allclose(z([4, 1, 3]), (z([4]) + z([1]) + z([3])) / 3, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_warm_starts_belong_to_the_image(store, spied, tmp_path):
    """x0 of every solve is that image's latest solution, q0 of every linear system its latest q;
    none is known at first, and zero stands for it beside images that have one.
    """
    problem = problem_of()
    run(problem, Stochastic(batch=2, store=None if store == "memory" else str(tmp_path)), steps=3)
    solutions, adjoints = {}, {}
    for call in spied[:3]:
        solutions |= dict(zip(images(problem, call), call.value, strict=True))
    for solve, gradient in steps_of(spied, 3):
        index = images(problem, solve)
        assert all(solve.x0[k].equal(solutions[i]) for k, i in enumerate(index))
        if any(i in adjoints for i in index):
            known = [adjoints.get(i, torch.zeros_like(problem.pairs.x[i])) for i in index]
            assert all(q0.equal(q) for q0, q in zip(gradient.q0, known, strict=True))
        else:
            assert gradient.q0 is None
        solutions |= dict(zip(index, solve.value, strict=True))
        adjoints |= dict(zip(index, gradient.q, strict=True))


def test_the_loss_shown_is_the_mean_of_the_latest_losses(spied):
    problem = problem_of()
    rows = run(problem, Stochastic(batch=2, record=1), steps=4).record.rows
    latest = torch.zeros(6, dtype=torch.float64)
    shown = []
    for call in [c for c in spied if c.kind == "solve"]:
        latest[images(problem, call)] = problem.loss.value(call.value.double(), call.x.double())
        shown.append(float(latest.mean()))
    assert [row["loss"] for row in rows] == pytest.approx(shown[2:], rel=1e-12)
    assert rows[0]["lower"] <= rows[0]["loss"] <= rows[0]["upper"]
    assert all(row["lower"] is None and row["upper"] is None for row in rows[1:]), (
        "seen at different theta"
    )
    assert all(0 < row["psnr"] < 100 for row in rows)


def test_the_first_row_brackets_the_exact_loss():
    problem = gallery.quadratic(images=7, n=5, d=3, condition=10.0)
    row = run(
        problem, Stochastic(batch=3, eps0=0.1, delta0=0.1), budget=Budget(work=1)
    ).record.rows[0]
    assert (
        row["lower"] <= problem.exact_loss() <= row["upper"]
        and row["lower"] <= row["loss"] <= row["upper"]
    )


# --- rates ----------------------------------------------------------------------------------------


@cache
def running_minimum(
    q: float, p: float, eps0: float = 0.1, alpha0: float = 1.0, count: int = 140, seeds: int = 2
) -> np.ndarray:
    """E min_{j <= k} ||grad f(theta_j)||, exact gradients, for 50 quadratics of dimension 10."""
    curves = []
    for seed in range(seeds):
        problem = gallery.quadratic(images=50, n=10, d=10, condition=10.0)
        learner = Stochastic(
            batch=5,
            alpha0=alpha0,
            step_exponent=q,
            accuracy_exponent=p,
            eps0=eps0,
            delta0=eps0,
            record=5,
        )
        thetas = run(problem, learner, steps=count // 5, seed=seed, solver="agd").thetas
        m, offset = problem._map(problem.pairs.y)  # once, for all thetas
        outer = torch.einsum("bnd,kd->kbn", m, thetas) + offset - problem.pairs.x
        norms = torch.einsum("bnd,kbn->kd", m, outer).norm(dim=1) / problem.size
        assert float(norms[3]) == pytest.approx(
            float(problem.exact_hypergradient(thetas[3]).norm())
        )
        curves.append(np.minimum.accumulate(norms.numpy()))
    return np.mean(curves, axis=0)


def slope(curve: np.ndarray) -> float:
    """Of log(curve) against log(k), from the twentieth step on."""
    k = 5 * np.arange(4, len(curve))
    return float(np.polyfit(np.log(k), np.log(curve[4:]), 1)[0])


def levelled(curve: np.ndarray) -> bool:
    """Whether the second half brings less than k^-1/4 would."""
    return curve[-1] > 0.85 * curve[len(curve) // 2]


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_the_gradient_vanishes_at_the_rate_of_the_theory(p):
    """q = 1/2 with p >= 1/4: k^-1/4 at least; here sampling noise is small, so that eps is what is
    seen.
    """
    curve = running_minimum(0.5, p)
    assert slope(curve) <= -0.25
    assert curve[-1] < 1e-2 * curve[0]


def test_a_constant_accuracy_reaches_a_plateau_whose_height_follows_it():
    coarse, fine = (running_minimum(0.5, 0.0, eps0=eps0, seeds=1) for eps0 in (1.0, 0.1))
    assert levelled(coarse) and levelled(fine) and not levelled(running_minimum(0.5, 0.5))
    assert coarse[-1] > 2 * fine[-1] > 4 * running_minimum(0.5, 0.5)[-1]


def test_a_constant_step_reaches_a_plateau_whose_height_follows_it():
    long, short = (running_minimum(0.0, 1.0, alpha0=alpha, seeds=1) for alpha in (1.5, 0.5))
    assert levelled(long) and levelled(short)
    assert long[-1] > 2 * short[-1] > 4 * running_minimum(0.5, 0.5)[-1]


def test_pictures_are_learned_from():
    problem = problem_of()
    lower, outcome = (
        Bilevel(problem),
        run(problem, Stochastic.preset("iadam", batch=2), steps=5),
    )
    best = run(problem, LBFGSB(), steps=12).theta
    first, last, best = (
        lower.evaluate(theta, 1e-3).loss for theta in (outcome.thetas[0], outcome.theta, best)
    )
    assert last - best < 0.5 * (first - best)


# --- budget, record, precision --------------------------------------------------------------------


def test_a_row_per_pass_or_as_many_steps_as_asked_for():
    problem = problem_of()
    assert run(problem, Stochastic(batch=2), steps=2).record.column("batches") == [0, 3, 6]
    assert run(problem, Stochastic(batch=4), steps=2).record.column("batches") == [0, 1, 2]
    assert run(problem, Stochastic(batch=2, record=5), steps=2).record.column("batches") == [
        0,
        5,
        10,
    ]


def test_rows_change_no_number():
    one, two = (
        run(problem_of(), Stochastic(batch=2, record=record), steps=6 // record)
        for record in (1, 6)
    )
    assert one.theta.equal(two.theta)
    assert one.record.rows[-1]["loss"] == two.record.rows[-1]["loss"]


def test_a_budget_that_ends_in_a_pass_keeps_what_was_done(tmp_path):
    """The work of whole mini-batches is kept, and a resumed run has its rows where a whole one has
    them.
    """
    single = run(problem_of(), Stochastic(batch=2, record=1), steps=6)
    work = [row["work"] / 6 for row in single.record.rows]
    ended = run(
        problem_of(),
        Stochastic(batch=2),
        budget=Budget(work=0.5 * (work[4] + work[5])),
        checkpoint=tmp_path,
    )
    assert ended.stop.code == "budget"
    assert ended.record.column("batches") in ([0, 3, 4], [0, 3, 5])
    assert ended.theta.equal(single.thetas[ended.record.rows[-1]["batches"]])
    resumed = run(problem_of(), Stochastic(batch=2), steps=4, checkpoint=tmp_path, resume=True)
    assert resumed.record.column("batches") == [*ended.record.column("batches"), 6, 9]
    assert resumed.thetas[-2].equal(single.theta)


def test_a_budget_that_ends_before_the_first_step_leaves_the_start():
    problem = problem_of()
    outcome = run(problem, Stochastic(batch=2), budget=Budget(work=1e-9))
    assert len(outcome.record.rows) == 1 and outcome.theta.equal(problem.theta)


def test_all_work_is_counted(spied):
    problem = GALLERY["two_pixels"]()
    watched = Watched(Stochastic(batch=2, eps0=0.1, delta0=0.1))
    rows = run(problem, watched, steps=3).record.rows
    assert rows[0]["mixed_products"] == 0 and rows[0]["gradients"] >= 6
    assert [row["mixed_products"] for row in rows] == [0, 6, 12, 18], "one per image and mini-batch"
    assert rows[-1]["work"] > rows[-2]["work"] > 0


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_it_goes_on_in_float64(store, tmp_path):
    def learner(where):
        return Stochastic(
            batch=2,
            eps0=1e-2,
            accuracy_exponent=4.0,
            alpha0=1e-3,
            momentum=0.5,
            store=None if store == "memory" else str(tmp_path / where),
        )

    short = run(problem_of(), learner("a"), steps=6, promote=False)
    assert short.stop.code == "rounding_floor" and short.theta.dtype == torch.float32
    k = len(short.thetas)
    outcome = run(problem_of(), learner("b"), steps=k + 1)
    assert outcome.theta.dtype == torch.float64 and len(outcome.thetas) == k + 2
    assert outcome.thetas[:k].equal(short.thetas.double())
    batches = outcome.record.column("batches")
    eps = [1e-2] + [1e-2 * b**-4.0 for b in batches[1:]]
    assert outcome.record.column("eps") == pytest.approx(eps, rel=1e-12), (
        "the schedule does not start again"
    )


def test_a_start_at_the_floor_of_float32_is_no_error():
    for promote, rows in ((True, 2), (False, 1)):
        outcome = run(
            problem_of(), Stochastic(batch=2, eps0=1e-9, alpha0=1e-3), steps=1, promote=promote
        )
        assert len(outcome.record.rows) == rows


# --- why it stops ---------------------------------------------------------------------------------


def test_parameters_that_run_away_end_the_run_with_a_sentence():
    outcome = run(problem_of(), Stochastic(batch=2, alpha0=1e6), steps=5)
    assert outcome.stop.code == "not_finite" and "could not be solved" in outcome.stop.sentence
    assert outcome.theta.isfinite().all()


def test_parameters_without_finite_constants_end_the_run_with_a_sentence():
    problem = GALLERY["quadratic"]()
    problem.energy.__class__, problem.energy.fence = Fenced, 0.9
    outcome = run(problem, Stochastic(batch=3, alpha0=0.5, record=1), steps=5)
    assert outcome.stop.code == "not_finite" and "smaller alpha0 or a box" in outcome.stop.sentence
    assert len(outcome.record.rows) == 2 and outcome.theta[1] < 0.9
    held = run(problem, Stochastic(batch=3, alpha0=0.5, record=1, box=[0.9, 1.1]), steps=5)
    assert held.stop.code == "budget"


@pytest.mark.parametrize(
    ("kind", "word"), [({"limit": -1e9}, "could not be solved"), ({"mixed": True}, "hypergradient")]
)
def test_a_problem_that_is_nan_ends_the_run_with_a_sentence(kind, word):
    outcome = run(pictures(broken(**kind)), Stochastic())
    assert outcome.stop.code == "not_finite" and word in outcome.stop.sentence
    assert len(outcome.record.rows) == 1


def test_other_strategies_are_taken():
    for strategy in (JacobianFree(terms=3), Unrolled(steps=8), Unrolled(steps=8, start="solution")):
        rows = run(problem_of(), Stochastic(batch=3), steps=2, hypergradient=strategy).record.rows
        assert rows[-1]["batches"] == 4 and rows[-1]["gradient_norm"] > 0


# --- stores and resume ----------------------------------------------------------------------------


def with_store(folder: Path | None, **settings) -> Stochastic:
    return Stochastic(batch=2, store=None if folder is None else str(folder), **settings)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5}, {"optimizer": "adam"}], ids=str)
def test_both_stores_give_bitwise_the_same_run(settings, tmp_path):
    one, two = (
        run(problem_of(), with_store(folder, **settings), steps=3) for folder in (None, tmp_path)
    )
    assert without_clocks(one.record.rows) == without_clocks(two.record.rows)
    assert one.thetas.equal(two.thetas)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adjoints.pages", "solutions.pages"]


PROMOTED = {"eps0": 1e-2, "accuracy_exponent": 4.0, "alpha0": 1e-3}


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.5}, {"optimizer": "adam"}, {"record": 4}, PROMOTED],
    ids=["sgd", "momentum", "adam", "record", "promoted"],
)
def test_a_run_in_parts_is_the_whole_run(store, settings, tmp_path):
    folder = tmp_path / "store" if store == "disk" else None
    learner = with_store(folder, **settings)
    whole = run(problem_of(), learner, steps=5)
    for steps in (1, 2, 5):
        parts = run(
            problem_of(), learner, steps=steps, checkpoint=tmp_path / "checkpoint", resume=True
        )
    assert_same(whole, parts)


@pytest.mark.parametrize("store", ["memory", "disk"])
@pytest.mark.parametrize("where", ["_solve", "gradient"])
@pytest.mark.parametrize("call", [5, 8])
def test_ctrl_c_in_the_middle_of_a_pass_loses_nothing_but_the_pass(
    store, where, call, tmp_path, monkeypatch
):
    """What the pass has written to disk by then must not be what the checkpoint refers to."""
    learner = with_store(tmp_path / "store" if store == "disk" else None)
    with monkeypatch.context() as patch:
        patch.setattr(Bilevel, where, at_call(call, getattr(Bilevel, where), KeyboardInterrupt))
        ended = run(problem_of(), learner, checkpoint=tmp_path / "checkpoint", steps=5)
    assert ended.stop.code == "interrupted"
    kept = len(ended.record.rows)
    assert ended.record.rows[-1]["batches"] == 3 * (kept - 1)
    resumed = run(
        problem_of(), learner, steps=kept + 1, checkpoint=tmp_path / "checkpoint", resume=True
    )
    assert_same(run(problem_of(), learner, steps=kept + 1), resumed)


@pytest.mark.parametrize("saved", [1, 2])
def test_a_process_that_dies_goes_on_from_its_last_checkpoint(saved, tmp_path, monkeypatch):
    """Two more passes were recorded since, and a third was under way; nothing was written at the
    end.
    """
    session = learn.__wrapped__.__globals__["_Session"]
    save, count = session._save, iter(range(100))
    learner = with_store(tmp_path / "store")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(session, "_save", lambda self: save(self) if next(count) < saved else None)
        patch.setattr(
            Bilevel,
            "gradient",
            at_call(3 * (saved + 1) + 2, Bilevel.gradient, ZeroDivisionError),
        )
        run(problem_of(), learner, checkpoint=tmp_path / "checkpoint", steps=9)
    resumed = run(problem_of(), learner, steps=4, checkpoint=tmp_path / "checkpoint", resume=True)
    assert_same(run(problem_of(), with_store(tmp_path / "other"), steps=4), resumed)


def test_a_store_that_another_run_took_over_is_noticed(tmp_path):
    learner = with_store(tmp_path / "store")
    run(problem_of(), learner, steps=1, checkpoint=tmp_path / "one")
    run(problem_of(), learner, steps=1, checkpoint=tmp_path / "two")
    with pytest.raises(CheckpointError, match=r"another run.*store of its own"):
        run(problem_of(), learner, steps=2, checkpoint=tmp_path / "one", resume=True)
    assert (
        len(
            run(
                problem_of(), learner, steps=2, checkpoint=tmp_path / "two", resume=True
            ).record.rows
        )
        == 3
    )


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "rmsprop"),
        ("batch", 0),
        ("batch", 1.5),
        ("alpha0", 0.0),
        ("alpha0", float("nan")),
        ("eps0", -1.0),
        ("delta0", float("inf")),
        ("step_exponent", -0.1),
        ("accuracy_exponent", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.5),
        ("record", 0),
        ("record", True),
        ("box", [3, 2]),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=name):
        Stochastic(**{name: value})


def test_adam_has_its_own_momentum():
    with pytest.raises(InputError, match=r"momentum.*0\.9 with Adam"):
        Stochastic("adam", momentum=0.9)
