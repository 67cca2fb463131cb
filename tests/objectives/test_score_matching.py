"""Score matching: the closed form, gradients against differences, every learner that it suits, and
what it refuses.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import deepinv
import pytest
import torch
from tests.learners.cases import IMAGES, Plain, assert_same, denoising, phantoms, run
from tests.runs.test_resume import at_call

import learnreg as lr
from learnreg.core.errors import CheckpointError, InputError, MissingPropertyError
from learnreg.core.grants import Grants
from learnreg.core.objective import Evaluated, rounding_floor
from learnreg.core.params import flatten, trainable
from learnreg.data import Pairs
from learnreg.hypergradients import Implicit
from learnreg.learners import (
    DFO,
    DFOLS,
    HOAG,
    LBFGSB,
    MAID,
    FixedAccuracy,
    GridSearch,
    RandomSearch,
    Stochastic,
)
from learnreg.objectives import ScoreMatching
from learnreg.problems import Energy
from learnreg.regularizers import TV, FoE, Regularizer, Tikhonov
from learnreg.runs import Budget, Run
from learnreg.runs.trajectory import trajectory

LEARNERS = {
    "maid": MAID(),
    "paper": MAID(memory=0),
    "certified": MAID(test="certified"),
    "fixed": FixedAccuracy(),
    "hoag": HOAG(alpha0=0.1),
    "lbfgsb": LBFGSB(),
    "sgd": Stochastic(batch=1, momentum=0.5),
    "adam": Stochastic.preset("iadam", batch=1),
    "grid": GridSearch([-4.0, -1.0], points=3),
    "random": RandomSearch([-6.0, 1.0]),
}


def scores(
    regularizer: Regularizer | None = None,
    pairs: Pairs | Plain | None = None,
    penalty: object = None,
) -> ScoreMatching:
    """Of the phantoms, with TV unless another regularizer is given."""
    energy = Energy(denoising(), regularizer or TV())
    return ScoreMatching(energy, phantoms()[0] if pairs is None else pairs, penalty)


def wide(pairs: Pairs | Plain | None = None) -> Plain:
    """Pairs in float64."""
    given = phantoms()[0] if pairs is None else pairs
    return Plain(x=given.x.double(), y=given.y.double())


def by_hand(objective: ScoreMatching, theta: torch.Tensor) -> float:
    """The formula of the module, by autograd through the value of R."""
    regularizer = objective.energy.with_theta(theta).regularizer
    y = objective.y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(regularizer.value(y).sum(), y)
    return float((y.detach() - slope - objective.x).square().flatten(1).sum(1).mean() / 2)


# --- the value ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_the_loss_is_that_of_the_formula(name):
    objective = scores(IMAGES[name](), wide())
    for step in (0.0, 0.3):
        theta = objective.theta + step
        value = objective.evaluate(theta, 1.0)
        assert value.loss == pytest.approx(by_hand(objective, theta), rel=1e-12)
        assert value.loss == value.lower == value.upper and value.width == 0
        assert value.certified and not value.failed and not value.limited and not value.at_floor
        assert value.per_image().loss.mean() == pytest.approx(value.loss, rel=1e-12)
        assert value.error.equal(torch.zeros(2, dtype=torch.float64)) and value.warm is None
        assert value.row()["psnr"] == pytest.approx(float(value.per_image().psnr.mean()))


def test_a_penalty_is_part_of_loss_and_gradient():
    plain = scores(pairs=wide())
    other = scores(pairs=wide(), penalty=lambda theta: 3 + theta.square().sum())
    theta = plain.theta + 0.2
    extra = 3 + float(theta.square().sum())
    one, two = plain.evaluate(theta, 1.0), other.evaluate(theta, 1.0)
    assert two.loss == pytest.approx(one.loss + extra, rel=1e-12)
    assert other.penalty(theta) == pytest.approx(extra) and plain.penalty(theta) == 0
    slopes = [o.gradient(v, 1.0).value for o, v in ((plain, one), (other, two))]
    assert torch.allclose(slopes[1], slopes[0] + 2 * theta, rtol=1e-12)


def test_subsets_share_the_counters_and_make_up_the_whole():
    objective = scores(pairs=wide())
    theta = objective.theta
    whole = objective.evaluate(theta, 1.0)
    z = objective.gradient(whole, 1.0).value
    parts = [objective.subset(torch.tensor([i])) for i in range(2)]
    values = [part.evaluate(theta, 1.0) for part in parts]
    slopes = [p.gradient(v, 1.0).value for p, v in zip(parts, values, strict=True)]
    assert [part.size for part in parts] == [1, 1]
    assert sum(v.loss for v in values) / 2 == pytest.approx(whole.loss, rel=1e-12)
    assert torch.allclose(sum(slopes) / 2, z, rtol=1e-10)
    assert all(part.meter is objective.meter for part in parts)
    cost = objective.meter.cost
    assert (cost.gradients, cost.mixed_products) == (4, 4), "one per image and evaluation"


def test_nothing_lent_is_changed():
    energy, pairs = Energy(denoising(), FoE(filters=2, size=3)), phantoms()[0]
    before = flatten(trainable(energy)).clone()
    x, y, state = pairs.x.clone(), pairs.y.clone(), torch.get_rng_state()
    outcome = run(ScoreMatching(energy, pairs), MAID(), steps=2)
    assert flatten(trainable(energy)).equal(before) and not outcome.theta.equal(before)
    assert all(p.grad is None and p.requires_grad for p in energy.regularizer.parameters())
    assert pairs.x.equal(x) and pairs.y.equal(y) and torch.get_rng_state().equal(state)


# --- the gradient ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: TV(),
        lambda: TV(isotropic=False),
        lambda: FoE(filters=3, size=3),
        lambda: TV() + Tikhonov(0.1),
        lambda: 2.0 * FoE(filters=2, size=3),
    ],
    ids=["TV", "anisotropic", "FoE", "sum", "scaled"],
)
def test_gradients_are_central_differences(make):
    """In float64, to a ten-millionth of the largest entry."""
    objective = scores(make(), wide())
    theta, step = objective.theta + 0.1, 1e-5
    found = objective.gradient(objective.evaluate(theta, 1.0), 1.0)

    def loss(moved: torch.Tensor) -> float:
        return objective.evaluate(moved, 1.0).loss

    units = torch.eye(theta.numel(), dtype=torch.float64)
    differences = torch.tensor(
        [(loss(theta + step * e) - loss(theta - step * e)) / (2 * step) for e in units],
        dtype=torch.float64,
    )
    scale = float(differences.abs().max())
    assert scale > 1e-3
    assert torch.allclose(found.value, differences, rtol=0, atol=1e-7 * scale)
    assert found.certified == found.estimated == 0.0
    assert found.along(found.value, "certified") == found.along(found.value, "estimated") == 0.0


def test_gradients_in_float32_are_those_in_float64():
    objective = scores(FoE(filters=3, size=3))
    precise = objective.widened()
    z = objective.gradient(objective.evaluate(objective.theta, 1.0), 1.0).value
    exact = precise.gradient(precise.evaluate(precise.theta, 1.0), 1.0).value
    assert z.dtype == torch.float32 and exact.dtype == torch.float64
    assert float((z - exact).norm()) < 1e-5 * float(exact.norm())


# --- what is learned ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "learner",
    [MAID(gradient_tolerance=1e-8), LBFGSB(), HOAG(alpha0=5.0, gradient_tolerance=1e-8)],
    ids=["maid", "lbfgsb", "hoag"],
)
def test_tikhonov_learns_the_closed_form(learner):
    """grad R(y) = w y, so that w = <y, y - x> / <y, y> is the least-squares solution."""
    pairs = wide()
    wanted = float((pairs.y * (pairs.y - pairs.x)).sum() / pairs.y.square().sum())
    assert 1e-3 < wanted < 1
    start = 0.03 if isinstance(learner, HOAG) else 0.5  # HOAG's first steps are as long as told
    outcome = run(scores(Tikhonov(start), pairs), learner, steps=200)
    assert math.exp(float(outcome.theta)) == pytest.approx(wanted, rel=1e-4)
    least = 0.5 * float((pairs.y - wanted * pairs.y - pairs.x).square().sum()) / 2
    assert outcome.record.rows[-1]["loss"] == pytest.approx(least, rel=1e-8)


def test_stochastic_steps_come_near_the_closed_form():
    pairs = wide()
    wanted = float((pairs.y * (pairs.y - pairs.x)).sum() / pairs.y.square().sum())
    learner = Stochastic.preset("iadam", batch=2, alpha0=0.3, record=100)
    outcome = run(scores(Tikhonov(0.1), pairs), learner, steps=1)
    assert math.exp(float(outcome.theta)) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_lower_the_loss(name):
    objective = scores()
    outcome = run(objective, LEARNERS[name], steps=8)
    exact = scores(pairs=wide())
    first, last = (exact.evaluate(outcome.thetas[k].double(), 1.0).loss for k in (0, -1))
    assert len(outcome.record.rows) >= 3, outcome.stop
    assert last < 0.999 * first
    for row in outcome.record.rows:
        assert row["upper"] is None or row["lower"] == row["loss"] == row["upper"]
    work = outcome.record.column("work")
    assert work == sorted(work) and work[-1] > work[0]


@pytest.mark.parametrize("name", ["maid", "paper", "certified", "fixed"])
def test_every_accepted_step_decreases_the_loss(name):
    outcome = run(scores(FoE(filters=2, size=3), wide()), LEARNERS[name], steps=6)
    losses = outcome.record.column("loss")
    assert len(losses) == 7 and all(a > b for a, b in pairwise(losses))


def test_learning_was_worth_it():
    """The step y - grad R(y) removes noise, from images that were not seen too."""
    outcome = run(scores(FoE(filters=3, size=3)), LBFGSB(), steps=25)
    held_out = scores(FoE(filters=3, size=3), phantoms()[1])
    quality = [held_out.evaluate(outcome.thetas[k], 1.0).row()["psnr"] for k in (0, -1)]
    assert quality[1] > quality[0] + 0.5


def test_data_in_float32_are_learned_from_in_float32():
    outcome = run(scores(), MAID(), steps=5)
    assert outcome.theta.dtype == torch.float32 and outcome.stop.code == "budget"
    wide_run = run(scores(pairs=wide()), MAID(), steps=5)
    assert wide_run.theta.dtype == torch.float64
    one, two = (r.record.rows[-1]["loss"] for r in (outcome, wide_run))
    assert one == pytest.approx(two, rel=1e-2)


def test_a_run_goes_on_in_float64_where_a_learner_asks_for_it():
    """A step that finds float32 exhausted is made again on the same objective in float64."""

    class Once(MAID):
        def step(self, objective, state):
            if state.theta.dtype == torch.float32 and state.info["trials"]:
                raise rounding_floor(torch.float32, "no more digits")
            return super().step(objective, state)

    outcome = run(scores(), Once(), steps=3)
    assert len(outcome.record.rows) == 4 and outcome.theta.dtype == torch.float64
    losses = outcome.record.column("loss")
    assert losses == sorted(losses, reverse=True)
    stopped = run(scores(), Once(), steps=3, promote=False)
    assert stopped.stop.code == "rounding_floor" and len(stopped.record.rows) == 2


def test_seeds_decide_what_is_drawn_and_nothing_else():
    one, two, other = (run(scores(), Stochastic(batch=1), steps=2, seed=seed) for seed in (3, 3, 4))
    assert_same(one, two)
    assert not one.theta.equal(other.theta)


def test_an_objective_serves_several_runs_one_after_the_other(tmp_path):
    """Neither the work nor the budget of one is that of the next."""
    objective, alone = scores(), run(scores(), MAID(), steps=3)
    for _ in range(2):
        assert_same(run(objective, MAID(), steps=3), alone)
    run(objective, LBFGSB(), budget=Budget(work=1.5))
    run(objective, MAID(), steps=1, checkpoint=tmp_path)
    resumed = run(objective, MAID(), steps=3, checkpoint=tmp_path, resume=True)
    assert_same(resumed, alone)
    assert objective.evaluate(objective.theta, 1.0).loss == alone.record.rows[0]["loss"]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence():
    class Broken(TV):
        def grad(self, x):
            return super().grad(x) * float("nan")

    outcome = run(scores(Broken()), MAID(), steps=2)
    assert outcome.stop.code == "not_finite" and "NaN or Inf" in outcome.stop.sentence


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LEARNERS)
def test_a_run_in_parts_is_the_whole_run(name, dtype, tmp_path):
    pairs = phantoms()[0] if dtype == torch.float32 else wide()
    learner = LEARNERS[name]
    whole = run(scores(pairs=pairs), learner, steps=6)
    for steps in (1, 3, 6):
        parts = run(scores(pairs=pairs), learner, steps=steps, checkpoint=tmp_path, resume=True)
    assert_same(whole, parts)
    assert repr(whole.stop) == repr(parts.stop)


@pytest.mark.parametrize("where", ["evaluate", "gradient"])
def test_ctrl_c_loses_nothing(where, tmp_path, monkeypatch):
    original = getattr(ScoreMatching, where)
    with monkeypatch.context() as patch:
        patch.setattr(ScoreMatching, where, at_call(4, original, KeyboardInterrupt))
        outcome = run(scores(), MAID(), checkpoint=tmp_path)
    kept = len(outcome.record.rows)
    assert outcome.stop.code == "interrupted" and kept >= 2
    resumed = run(scores(), MAID(), steps=kept + 1, checkpoint=tmp_path, resume=True)
    assert_same(run(scores(), MAID(), steps=kept + 1), resumed)


def nudged() -> Plain:
    data = Plain(x=phantoms()[0].x.clone(), y=phantoms()[0].y.clone())
    data.y[0, 0, 0, 0] += 1e-6
    return data


@pytest.mark.parametrize(
    "other",
    [
        lambda: scores(TV(weight=0.06)),
        lambda: scores(TV(isotropic=False)),
        lambda: scores(FoE(2, 3)),
        lambda: scores(pairs=nudged()),
        lambda: scores(pairs=phantoms()[0][:1]),
        lambda: scores(penalty=lambda theta: theta.square().sum()),
        lambda: lr.BilevelProblem(Energy(denoising(), TV()), phantoms()[0]),
    ],
    ids=["start", "isotropy", "kind", "measurements", "images", "penalty", "bilevel"],
)
def test_a_checkpoint_of_another_objective_is_refused(other, tmp_path):
    run(scores(), MAID(), steps=1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="another problem, data set or learner"):
        run(other(), MAID(), steps=2, checkpoint=tmp_path, resume=True)


# --- what is left behind --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned() -> Run:
    return run(scores(FoE(filters=3, size=3)), LBFGSB(), steps=6)


def test_a_run_reconstructs_and_evaluates(learned):
    test = phantoms()[1]
    found = learned.evaluate(test, 1e-2, check_certificate=True)
    assert bool((found.error <= 1e-2).all()) and found.mean("psnr") > found.mean("psnr_input")
    assert all(r["true"] <= r["certified"] + r["reference"] for r in found.honesty)
    assert "score matching" in repr(learned) and learned.name == "FoE"
    assert learned.filters["kernels"].shape == (3, 1, 3, 3)


def test_a_run_is_a_prior_for_other_physics():
    regularizer = TV() + Tikhonov(0.05, learned=False)
    outcome = run(scores(regularizer), MAID(), steps=3)
    kernel = torch.tensor([[0, 1.0, 0], [1, 4, 1], [0, 1, 0]])[None, None] / 8
    blur = deepinv.physics.Blur(filter=kernel, padding="circular")
    y = blur(phantoms()[1].x)
    found = outcome.reconstruct(y, 1e-2, physics=blur)
    assert found.ok and bool((found.error <= 1e-2).all()) and found.kind.certifies


def test_a_saved_run_is_the_run(learned, tmp_path):
    learned.save(tmp_path)
    again = Run.load(tmp_path)
    assert again.theta.equal(learned.theta) and again.record == learned.record
    y = phantoms()[1].y
    assert again.reconstruct(y, 1e-2).value.equal(learned.reconstruct(y, 1e-2).value)


def test_a_report_can_be_made(learned, tmp_path):
    evaluation = learned.evaluate(phantoms()[1], 1e-2)
    page = lr.Report(learned, evaluation).save(tmp_path)
    assert "score matching" in page.read_text(encoding="utf-8")


def test_a_trajectory_measures_it(learned):
    objective = scores(FoE(filters=3, size=3))
    rows = trajectory(learned, objective, phantoms()[1], points=3)
    assert [rows[0]["step"], rows[-1]["step"]] == [0, len(learned.record.rows) - 1]
    exact = scores(FoE(filters=3, size=3), wide())
    for row in rows:
        theta = learned.thetas[row["step"]].double()
        assert row["loss"] == pytest.approx(exact.evaluate(theta, 1.0).loss, rel=1e-5)
        assert row["lower"] <= row["loss"] <= row["upper"] and row["note"] is None
        assert row["psnr_test"] > 15 and row["psnr_test_own"] is None


# --- what is granted, what is refused -------------------------------------------------------------


def test_it_is_an_objective():
    objective = scores()
    assert isinstance(objective, Evaluated)
    assert Grants.RESIDUALS not in objective.grants and Grants.DATA not in objective.grants
    assert Grants.ADAPTIVE | Grants.BOUND | Grants.SUBSETS in objective.grants
    assert objective.names == ("log_weight", "log_smoothing") and objective.size == 2
    assert objective.describe().startswith("score matching, ")
    assert "2 parameters, 2 images of 1x24x24" in objective.describe()
    moved = objective.learned(objective.theta + 1)
    assert flatten(trainable(moved)).equal(objective.theta + 1)


@pytest.mark.parametrize("learner", [DFO(), DFO(eps=0.1), DFOLS()], ids=["dfo", "fixed", "dfols"])
def test_models_of_residuals_are_refused_in_words(learner):
    with pytest.raises(
        MissingPropertyError,
        match=r"^loss: given score matching.*sum of squares.*for DFO.*Use SquaredError\(\).*MAID",
    ):
        run(scores(), learner, steps=1)


def test_a_solution_map_has_nothing_to_do_here():
    with pytest.raises(InputError, match=r"^hypergradient: given Implicit.*ScoreMatching.*Leave"):
        run(scores(), MAID(), steps=1, hypergradient=Implicit())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ScoreMatching(TV(), phantoms()[0]),
            r"^energy: given .*; expected an Energy",
        ),
        (
            lambda: scores(Tikhonov(0.1, learned=False)),
            r"^energy: given no trainable parameter",
        ),
        (
            lambda: scores(pairs=Plain(x=phantoms()[0].x, y=phantoms()[0].y[..., :20])),
            r"^pairs: given x of shape \(2, 1, 24, 24\), y of shape \(2, 1, 24, 20\)",
        ),
        (
            lambda: scores(pairs=Plain(x=phantoms()[0].x, y=phantoms()[0].y / 0)),
            r"^y: given NaN or Inf in image 0",
        ),
        (lambda: scores(pairs=phantoms()[0].x), r"^pairs: given "),
        (
            lambda: scores(pairs=phantoms()[0][:0]),
            r"^pairs: given none; expected at least one",
        ),
    ],
    ids=["energy", "nothing", "shape", "nan", "no pairs", "none"],
)
def test_what_cannot_be_learned_from_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_what_is_learned_elsewhere_is_refused():
    energy = Energy(denoising(), TV())
    energy.extra = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(InputError, match=r"outside of the regularizer.*requires_grad_\(False\)"):
        ScoreMatching(energy, phantoms()[0])


def test_what_is_no_penalty_is_refused():
    with pytest.raises(InputError, match=r"^penalty: given "):
        run(scores(penalty=lambda theta: -theta.square().sum()), MAID(), steps=1)


def test_a_learner_may_be_changed_with_replace():
    assert_same(
        run(scores(), replace(MAID(), memory=0), steps=2), run(scores(), MAID(memory=0), steps=2)
    )
