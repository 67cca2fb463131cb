"""The upper-level penalty: in the loss, its bracket and every hypergradient, and in what each
learner reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tests.learners.cases import GALLERY, Watched, assert_certified, assert_same, pictures, run

from learnreg.core.errors import CheckpointError, InputError, MissingPropertyError
from learnreg.hypergradients import Implicit, JacobianFree, Unrolled, hypergradient
from learnreg.learners import HOAG, LBFGSB, MAID, FixedAccuracy, GridSearch, Stochastic
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem
from learnreg.problems.gallery import QuadraticProblem
from learnreg.runs.checkpoint import fingerprint

WEIGHT, CENTRE = 0.3, 2.0


def ridge(theta: torch.Tensor) -> torch.Tensor:
    """Pulls every entry of theta towards CENTRE."""
    return 0.5 * WEIGHT * (theta - CENTRE).square().sum()


class Penalized(QuadraticProblem):
    """Quadratic with the ridge: exact answers with it."""

    def exact_loss(self, theta=None) -> float:
        return super().exact_loss(theta) + float(ridge(self._at(theta)))

    def exact_hypergradient(self, theta=None) -> torch.Tensor:
        return super().exact_hypergradient(theta) + WEIGHT * (self._at(theta) - CENTRE)


def penalized() -> Penalized:
    problem = GALLERY["quadratic"]()
    problem.__class__ = Penalized
    problem.penalty = ridge
    return problem


def of_pictures(penalty=ridge) -> BilevelProblem:
    plain = pictures()
    return BilevelProblem(plain.energy, plain.pairs, penalty=penalty)


# --- value, bracket, gradient ---------------------------------------------------------------------


def test_loss_and_bracket_include_it():
    plain, problem = GALLERY["quadratic"](), penalized()
    points = []
    for p in (plain, problem):
        lower = Bilevel(p, Implicit())
        points.append(lower.evaluate(p.theta, 0.1))
    extra = float(ridge(problem.theta))
    assert extra > 0.1
    for name in ("loss", "lower", "upper"):
        assert getattr(points[1], name) == pytest.approx(
            getattr(points[0], name) + extra, rel=1e-14
        )
    assert points[1].lower <= problem.exact_loss() <= points[1].upper
    assert points[1].width == pytest.approx(points[0].width)


@pytest.mark.parametrize(
    "strategy",
    [
        Implicit(),
        Implicit(estimate=True),
        JacobianFree(terms=400),
        Unrolled(steps=400),
        Unrolled(steps=400, start="solution"),
    ],
    ids=repr,
)
def test_every_hypergradient_is_a_finite_difference(strategy):
    problem = penalized()
    found = hypergradient(problem, 1e-10, 1e-10, strategy=strategy)
    step = 1e-4
    difference = torch.tensor(
        [
            (
                problem.exact_loss(problem.theta + step * e)
                - problem.exact_loss(problem.theta - step * e)
            )
            / (2 * step)
            for e in torch.eye(3, dtype=torch.float64)
        ],
        dtype=torch.float64,
    )
    assert torch.allclose(found.value, difference, rtol=0, atol=1e-6)
    assert found.loss == pytest.approx(problem.exact_loss(), abs=1e-8)
    assert found.bracket[0] - 1e-12 <= problem.exact_loss() <= found.bracket[1] + 1e-12


def test_the_certified_error_does_not_depend_on_it():
    plain, problem = (
        hypergradient(p, 0.1, 0.1, strategy=Implicit(certify=True))
        for p in (GALLERY["quadratic"](), penalized())
    )
    assert plain.certified == problem.certified
    assert float((problem.value - penalized().exact_hypergradient()).norm()) <= problem.certified


def test_a_hypergradient_elsewhere_has_the_penalty_of_there():
    problem, theta = penalized(), torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64)
    found = hypergradient(problem, 1e-9, 1e-9, theta=theta)
    assert torch.allclose(found.value, problem.exact_hypergradient(theta), rtol=0, atol=1e-6)
    assert found.loss == pytest.approx(problem.exact_loss(theta), abs=1e-7)


def test_parts_and_other_types_of_number_keep_it():
    problem = of_pictures()
    for other in (
        problem.select(torch.tensor([1])),
        problem.to(torch.float64),
        penalized().to(torch.float32),
        problem.select(torch.tensor([0])).to(torch.float64),
    ):
        assert other.penalty is ridge
        value, gradient = other.penalty_at(other.theta)
        assert (
            value == pytest.approx(float(ridge(other.theta)))
            and gradient.dtype == other.theta.dtype
        )
        assert torch.allclose(gradient, WEIGHT * (other.theta - CENTRE))


def test_without_one_nothing_is_added():
    value, gradient = pictures().penalty_at(pictures().theta)
    assert value == 0.0 and gradient.equal(torch.zeros(2))
    one, two = (
        run(p, MAID(), steps=2) for p in (pictures(), of_pictures(lambda theta: 0.0 * theta.sum()))
    )
    assert one.thetas.equal(two.thetas)


def test_theta_is_lent_and_gradients_may_be_off():
    problem, theta = penalized(), torch.ones(3, dtype=torch.float64)
    with torch.no_grad():
        _, gradient = problem.penalty_at(theta)
    assert gradient.tolist() == pytest.approx([WEIGHT * (1 - CENTRE)] * 3)
    assert not theta.requires_grad and theta.grad is None and not gradient.requires_grad


# --- learners -------------------------------------------------------------------------------------

LEARNERS = {
    "maid": (MAID(gradient_tolerance=1e-7), 60),
    "paper": (MAID(memory=0, gradient_tolerance=1e-4), 60),
    "fixed": (FixedAccuracy(eps=1e-7, delta=1e-7), 60),
    "hoag": (HOAG(alpha0=0.7, eps0=1e-2, delta0=1e-2), 30),
    "lbfgsb": (LBFGSB(eps=1e-8, delta=1e-8), 30),
    "sgd": (
        Stochastic(
            batch=3,
            alpha0=0.7,
            step_exponent=0.0,
            accuracy_exponent=2.0,
            eps0=1e-2,
            delta0=1e-2,
            record=30,
        ),
        1,
    ),
    "adam": (
        Stochastic(
            "adam",
            batch=3,
            alpha0=0.1,
            step_exponent=0.4,
            accuracy_exponent=1.0,
            eps0=1e-2,
            delta0=1e-2,
            record=60,
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_reaches_the_penalized_optimum(name):
    problem = penalized()
    learner, steps = LEARNERS[name]
    outcome = run(problem, learner, steps=steps)
    optimum = problem.exact_optimum()
    assert float((optimum - GALLERY["quadratic"]().exact_optimum()).norm()) > 0.5, (
        "the penalty matters"
    )
    assert torch.allclose(outcome.theta, optimum, rtol=0, atol=2e-2 if name == "adam" else 1e-3)


def test_the_certified_decrease_is_that_of_the_penalized_loss():
    problem = penalized()
    watched = Watched(MAID())
    outcome = run(problem, watched, steps=8)
    assert_certified(
        problem, watched, outcome, [problem.exact_loss(theta) for theta in outcome.thetas]
    )


def test_a_search_minds_it():
    problem = penalized()
    outcome = run(problem, GridSearch([-1.0, 3.0], points=3, eps=1e-2))
    plain = run(GALLERY["quadratic"](), GridSearch([-1.0, 3.0], points=3, eps=1e-2))
    assert not outcome.theta.equal(plain.theta)
    assert problem.exact_loss(outcome.theta) < problem.exact_loss(plain.theta)


def test_the_first_row_of_a_stochastic_run_brackets_it_and_the_later_ones_show_it():
    problem = penalized()
    rows = run(problem, Stochastic(batch=2, record=1, alpha0=1e-9), steps=2).record.rows
    assert rows[0]["lower"] <= problem.exact_loss() <= rows[0]["upper"]
    assert rows[0]["loss"] == pytest.approx(rows[2]["loss"], rel=0.05)
    assert rows[2]["loss"] > float(ridge(problem.theta))


def test_it_survives_the_step_to_float64_and_a_checkpoint(tmp_path):
    whole = run(of_pictures(), MAID(), steps=12)
    assert whole.theta.dtype == torch.float64 and whole.record.rows[-1]["loss"] > float(
        ridge(whole.theta)
    )
    for steps in (3, 12):
        parts = run(of_pictures(), MAID(), steps=steps, checkpoint=tmp_path, resume=True)
    assert_same(whole, parts)


# --- where it is infinite -------------------------------------------------------------------------


def barrier(theta: torch.Tensor) -> torch.Tensor:
    """Infinite unless the first entry is below -2.9."""
    return torch.where(theta[0] < -2.9, 0.0, torch.inf) + 1e-3 * theta.square().sum()


@pytest.mark.parametrize(
    "learner",
    [MAID(), MAID(memory=0), LBFGSB(), HOAG(), GridSearch([-4.0, 0.0], points=3)],
    ids=["maid", "paper", "lbfgsb", "hoag", "grid"],
)
def test_a_trial_where_it_is_infinite_is_a_failed_trial(learner):
    outcome = run(of_pictures(barrier), learner, steps=3)
    assert len(outcome.record.rows) > 2 and bool((outcome.thetas[:, 0] < -2.9).all())


def test_a_start_where_it_is_infinite_is_an_error():
    problem = of_pictures(lambda theta: theta.sum() * torch.inf * -1)
    with pytest.raises(MissingPropertyError, match="penalty: given inf"):
        run(problem, MAID(), steps=1)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("penalty", "given"),
    [
        (lambda theta: -theta.square().sum(), "-"),
        (lambda theta: theta.square(), "tensor"),
        (lambda theta: theta.detach().square().sum(), "24.2"),
        (lambda theta: torch.tensor(1.0), "1.0"),
        (lambda theta: 1.0, "1.0"),
        (lambda theta: float(theta.detach().sum()) ** 2, "47"),
        (lambda theta: None, "None"),
    ],
    ids=["negative", "vector", "detached", "constant", "float", "item", "none"],
)
@pytest.mark.parametrize("learner", [MAID(), Stochastic()], ids=["maid", "stochastic"])
def test_what_is_no_penalty_is_refused(penalty, given, learner):
    with pytest.raises(
        InputError, match=rf"^penalty: given .*{given}.*finite scalar >= 0 that depends on theta"
    ):
        run(of_pictures(penalty), learner, steps=1)


# --- fingerprints ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ridge:
    weight: float

    def __call__(self, theta: torch.Tensor) -> torch.Tensor:
        return self.weight * theta.square().sum()

    def method(self, theta: torch.Tensor) -> torch.Tensor:
        return self(theta)


class Module(torch.nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        return self.weight * theta.square().sum()


def closed(weight: float):
    return lambda theta: weight * theta.square().sum()


def nested(weight: float):
    def outer(theta: torch.Tensor) -> torch.Tensor:
        return closed(weight)(theta)

    return outer


def weighted(theta: torch.Tensor, weight: float) -> torch.Tensor:
    return weight * theta.square().sum()


TWINS = {
    "function": (lambda t: 0.1 * t.square().sum(), lambda t: 0.2 * t.square().sum()),
    "operation": (lambda t: t.square().sum(), lambda t: t.abs().sum()),
    "generator": (lambda t: sum(0.1 * v * v for v in t), lambda t: sum(0.2 * v * v for v in t)),
    "default": (lambda t, w=0.1: w * t.square().sum(), lambda t, w=0.2: w * t.square().sum()),
    "keyword": (lambda t, *, w=0.1: w * t.square().sum(), lambda t, *, w=0.2: w * t.square().sum()),
    "tensor": (closed(torch.tensor([1.0, 2.0])), closed(torch.tensor([1.0, 3.0]))),
    **{
        name: (make(0.1), make(0.2))
        for name, make in {
            "closure": closed,
            "nested": nested,
            "object": Ridge,
            "module": Module,
            "method": lambda w: Ridge(w).method,
            "partial": lambda w: partial(weighted, weight=w),
        }.items()
    },
}


def print_of(penalty) -> str:
    return fingerprint(Bilevel(of_pictures(penalty), Implicit()), MAID())


@pytest.mark.parametrize("kind", TWINS)
def test_fingerprints_tell_penalties_apart(kind):
    one, two = TWINS[kind]
    assert print_of(one) != print_of(two) and print_of(one) != print_of(None)
    assert print_of(one) == print_of(one)


def test_equal_penalties_have_equal_fingerprints():
    assert print_of(closed(0.1)) == print_of(closed(0.1)) and print_of(Ridge(0.1)) == print_of(
        Ridge(0.1)
    )
    assert print_of(nested(0.1)) == print_of(nested(0.1)) and print_of(Module(0.1)) == print_of(
        Module(0.1)
    )


def test_a_penalty_that_knows_itself_and_a_package_has_a_fingerprint():
    """Nothing is followed round in circles, and no package is taken apart."""
    import torch as package

    def penalty(theta, depth=1):
        return penalty(theta, depth - 1) if depth else package.square(theta).sum()

    holder = Ridge(0.1)
    object.__setattr__(holder, "itself", [holder, holder.method, penalty])
    assert print_of(penalty) == print_of(penalty) and print_of(holder) == print_of(holder)


def test_a_checkpoint_of_another_penalty_is_refused(tmp_path):
    run(of_pictures(closed(0.1)), MAID(), steps=1, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="another problem"):
        run(of_pictures(closed(0.2)), MAID(), steps=2, checkpoint=tmp_path, resume=True)
    assert (
        len(
            run(
                of_pictures(closed(0.1)), MAID(), steps=2, checkpoint=tmp_path, resume=True
            ).record.rows
        )
        == 3
    )
