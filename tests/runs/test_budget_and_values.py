"""Bad values: every numeric setting refuses what it cannot mean, and says its name, its range and
the value.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

import deepinv
import pytest
import torch
from tests.learners.cases import Plain, denoising, exact_loss, phantoms, pictures

from learnreg.core.errors import InputError, MissingPropertyError
from learnreg.core.status import Status
from learnreg.learners import MAID, Adaptive, FixedAccuracy
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem, Energy
from learnreg.regularizers import TV, Tikhonov
from learnreg.runs import Budget, learn
from learnreg.solvers import AGD

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Range:
    """What a field accepts: the words of its message, some values that it takes and some that it
    does not.
    """

    words: str
    good: tuple
    bad: tuple


POSITIVE = Range("positive", (1e-300, 0.1, 7, 1e300), (0, 0.0, -1, NAN, INF, -INF, "0.1", [0.1]))
OPTIONAL = Range("positive", (None, *POSITIVE.good), POSITIVE.bad)
REQUIRED = Range("positive", POSITIVE.good, (None, *POSITIVE.bad))
FRACTION = Range("(0, 1)", (1e-9, 0.5, 0.999), (0, 1, -0.5, 2, NAN, INF, None, "0.5"))
FACTOR = Range(">= 1", (1, 1.0, 1.5, 100), (0, 0.99, -2, NAN, INF, None, "2"))
BELOW_ETA = Range("(0, eta=0.5)", (1e-9, 0.49), (0, 0.5, 0.7, -1, NAN, INF, None, "0.1"))
COUNT = Range("integer >= 1", (1, 7), (0, -1, 1.5, NAN, INF, None, "3"))
COUNT_OR_NONE = Range("integer >= 1", (1, 7), (0, -1, 1.5, NAN, INF, "3"))
COUNT_OR_ZERO = Range("integer >= 0", (0, 1, 7), (-1, 0.5, 1.5, NAN, INF, None, "3"))

DESCENT = {
    "alpha0": OPTIONAL,
    "rho": FRACTION,
    "growth": FACTOR,
    "eta": FRACTION,
    "sufficient": BELOW_ETA,
    "trials": COUNT,
    "memory": COUNT_OR_ZERO,
}
TABLE: dict[type, dict[str, Range]] = {
    MAID: {
        **DESCENT,
        "eps0": OPTIONAL,
        "delta0": OPTIONAL,
        "rounds": COUNT,
        "gradient_tolerance": REQUIRED,
        "smallest_eps": REQUIRED,
    },
    FixedAccuracy: {**DESCENT, "eps": REQUIRED, "delta": REQUIRED},
    Budget: {
        "seconds": POSITIVE,
        "work": POSITIVE,
        "steps": COUNT_OR_NONE,
        "patience": POSITIVE,
    },
    Adaptive: {"tighten": FRACTION, "loosen": FACTOR},
}
NOT_NUMBERS = {
    MAID: {"accuracy", "test", "box", "rescale"},
    FixedAccuracy: {"box"},
    Budget: {"plateau"},  # no limit
}

ROWS = [
    pytest.param(cls, name, limits, id=f"{cls.__name__}.{name}")
    for cls, table in TABLE.items()
    for name, limits in table.items()
]


@pytest.mark.parametrize("cls", TABLE)
def test_the_table_is_complete(cls):
    assert {f.name for f in fields(cls)} == set(TABLE[cls]) | NOT_NUMBERS.get(cls, set())


def complaint(cls: type, name: str, limits: Range, value: object) -> str | None:
    """What is wrong with the way a bad value is received; None if it is refused by name, range and
    value.
    """
    try:
        cls(**{name: value})
    except InputError as error:
        message = str(error)
        named = re.match(rf"(budget )?{name}: given ", message)
        shown = f"given {value}; " in message or f"given {value!r}; " in message
        told = limits.words in message.partition("expected ")[2]
        return None if named and shown and told else f"{value!r}: {message}"
    except Exception as error:
        return f"{value!r}: {type(error).__name__}: {error}"
    return f"{value!r}: accepted"


@pytest.mark.parametrize(("cls", "name", "limits"), ROWS)
def test_bad_values_are_refused_by_name_range_and_value(cls, name, limits):
    assert [c for value in limits.bad if (c := complaint(cls, name, limits, value))] == []


@pytest.mark.parametrize(("cls", "name", "limits"), ROWS)
def test_good_values_are_kept(cls, name, limits):
    for value in limits.good:
        others = {"sufficient": 1e-10} if name == "eta" else {}
        assert getattr(cls(**{name: value, **others}), name) == value


def test_the_share_of_the_decrease_stays_below_that_of_the_slope():
    with pytest.raises(
        InputError, match=re.escape("sufficient: given 0.3; expected a number in (0, eta=0.2)")
    ):
        MAID(eta=0.2, sufficient=0.3)


@pytest.mark.parametrize("value", ["certify", "", None, True])
def test_an_unknown_test_is_refused(value):
    with pytest.raises(InputError, match=r"test: given .*expected 'estimated' or 'certified'"):
        MAID(test=value)


def test_a_budget_without_a_limit_is_refused():
    with pytest.raises(
        InputError,
        match=r"budget: given no limit; expected seconds, work, steps or patience.*Budget",
    ):
        Budget()


@pytest.mark.parametrize(
    ("budget", "used", "words"),
    [
        (Budget(seconds=2), (2.0, 0, 0), "the budget of 2 seconds was used up"),
        (Budget(work=100), (0.0, 100.5, 0), "the budget of 100 evaluations per image was used up"),
        (Budget(steps=3), (0.0, 0, 3), "the budget of 3 accepted steps was used up"),
        (Budget(seconds=2, steps=3), (1.0, 1e9, 3), "the budget of 3 accepted steps was used up"),
        (Budget(seconds=2, work=100, steps=3), (1.9, 99.9, 2), None),
    ],
)
def test_the_first_limit_that_is_reached_ends_a_run(budget, used, words):
    stop = budget.spent(*used)
    assert stop is None if words is None else (stop.code, stop.sentence) == ("budget", words)


# --- learn ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [60, None, {"seconds": 60}, Budget], ids=repr)
def test_a_budget_must_be_one(budget):
    with pytest.raises(
        InputError, match=r"^budget: given .*; expected a Budget\. For example Budget\(seconds=60\)"
    ):
        learn(pictures(), MAID(), budget=budget)


@pytest.mark.parametrize("learner", ["maid", None, 3, torch.optim.Adam, MAID], ids=repr)
def test_a_learner_must_be_one(learner):
    with pytest.raises(
        InputError, match=r"^learner: given .*; expected a learner such as MAID\(\)"
    ):
        learn(pictures(), learner, budget=Budget(steps=1))


def inpainting(regularizer) -> BilevelProblem:
    """A square of every picture was never measured."""
    mask = torch.ones(1, 24, 24)
    mask[:, 8:14, 8:14] = 0
    physics = deepinv.physics.Inpainting((1, 24, 24), mask=mask)
    x = phantoms()[0].x
    return BilevelProblem(Energy(physics, regularizer), Plain(x=x, y=physics(x)))


@pytest.mark.parametrize(
    "learner",
    [MAID(), MAID(eps0=0.1, delta0=0.1), FixedAccuracy()],
    ids=["derived", "given", "fixed"],
)
def test_an_energy_without_strong_convexity_is_refused_and_told_what_to_add(learner):
    with pytest.raises(MissingPropertyError, match=r"mu = 0.*expected mu > 0.*Tikhonov"):
        learn(inpainting(TV()), learner, budget=Budget(steps=1))


def test_the_remedy_works():
    run = learn(inpainting(TV() + Tikhonov(0.1)), MAID(), budget=Budget(steps=2))
    assert len(run.record.rows) == 3
    assert run.record.rows[-1]["upper"] < run.record.rows[0]["lower"]


@pytest.mark.parametrize("counts", [(0, 0), (2, 1), (1, 2), (0, 2)], ids=str)
def test_images_and_measurements_must_be_as_many_and_some(counts):
    x, y = phantoms()[0].x, phantoms()[0].y
    with pytest.raises(
        InputError, match=r"^pairs: given {} images and {} measurements; expected".format(*counts)
    ):
        pictures(data=Plain(x=x[: counts[0]], y=y[: counts[1]]))


def test_an_empty_side_of_a_split_is_refused():
    with pytest.raises(InputError, match=r"^pairs: given 0 images and 0 measurements"):
        pictures(data=phantoms()[0][:0])


def test_images_and_measurements_of_different_size_are_refused():
    data = Plain(x=phantoms()[0].x[..., :20], y=phantoms()[0].y)
    with pytest.raises(InputError, match=r"\(?2, 1, 24, 20\)?"):
        learn(pictures(data=data), MAID(), budget=Budget(steps=1))


@pytest.mark.parametrize(
    "regularizer",
    [lambda: Tikhonov(0.1, learned=False), lambda: TV().requires_grad_(False)],
    ids=["fixed", "frozen"],
)
def test_something_must_be_trainable(regularizer):
    with pytest.raises(
        InputError, match=r"^energy: given no trainable parameter; expected at least one.*grad"
    ):
        pictures(regularizer())


def test_an_unknown_solver_is_refused():
    with pytest.raises(
        InputError, match=r"^solver: given 'simplex'; expected 'auto' or one of 'agd'"
    ):
        learn(pictures(), MAID(), budget=Budget(steps=1), solver="simplex")


class StandingStill:
    """A solver that never gets anywhere."""

    name = "standing still"

    def init(self, f, x0):
        return AGD().init(f, x0)

    def step(self, f, state):
        return state


def test_a_solve_that_reaches_its_step_limit_is_reported(monkeypatch):
    """Nothing is silently capped: the run ends, and its bracket still holds the exact loss."""
    problem = BilevelProblem(Energy(denoising(), TV()), phantoms()[0])
    monkeypatch.setattr(Bilevel.__init__, "__defaults__", (None, "auto", 30, None))
    run = learn(
        problem, MAID(eps0=1e-3, delta0=1e-3), budget=Budget(steps=1), solver=StandingStill()
    )
    assert Status.MAX_STEPS.value in run.stop.sentence
    row = run.record.rows[0]
    assert row["lower"] <= exact_loss(problem, run.theta) <= row["upper"]
