"""The dialogue with an optimizer that calls back: order, endings, and a thread that never outlives
its use.
"""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
from scipy.optimize import minimize

from learnreg.learners.inverted import Inverted


def alive() -> set[threading.Thread]:
    return set(threading.enumerate())


def none_but(before: set[threading.Thread]) -> bool:
    """Whether no thread is left that was not there before, after a moment if need be."""
    deadline = time.monotonic() + 5
    while alive() - before and time.monotonic() < deadline:
        time.sleep(0.001)
    return not alive() - before


def rosen(x: np.ndarray) -> tuple[float, np.ndarray]:
    value = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
    inner = x[1] - x[0] ** 2
    return float(value), np.array([-2 * (1 - x[0]) - 400 * x[0] * inner, 200 * inner])


def lbfgsb(evaluate, accept):
    return minimize(evaluate, np.array([-1.2, 1.0]), jac=True, method="L-BFGS-B", callback=accept)


def answered(dialogue: Inverted) -> list[np.ndarray]:
    """All questions, each answered."""
    asked = []
    while (x := dialogue.ask()) is not None:
        asked.append(x)
        dialogue.tell(rosen(x))
    return asked


def test_the_optimizer_sees_the_same_as_if_it_called_back():
    direct, moves = [], []

    def evaluate(x):
        direct.append(x.copy())
        return rosen(x)

    result = lbfgsb(evaluate, lambda x: moves.append(x.copy()))
    before = alive()
    dialogue = Inverted(lbfgsb)
    asked = answered(dialogue)
    assert len(asked) == len(direct) == dialogue.told
    assert all(np.array_equal(a, d) for a, d in zip(asked, direct, strict=True))
    assert dialogue.moves == len(moves) and np.array_equal(dialogue.accepted, moves[-1])
    assert np.array_equal(dialogue.result.x, result.x) and dialogue.result.message == result.message
    assert none_but(before)


def test_a_question_stays_until_it_is_answered():
    dialogue = Inverted(lbfgsb)
    first = dialogue.ask()
    assert dialogue.ask() is first and dialogue.told == 0
    dialogue.tell(rosen(first))
    assert not np.array_equal(dialogue.ask(), first) and dialogue.told == 1


def test_telling_without_a_question_is_refused():
    dialogue = Inverted(lbfgsb)
    with pytest.raises(RuntimeError, match="call ask first"):
        dialogue.tell((0.0, np.zeros(2)))
    dialogue.close()


def test_what_is_asked_is_a_copy():
    """The optimizer may write over its own arrays, and so may the caller."""
    seen = []

    def run(evaluate, accept):
        x = np.zeros(2)
        for _ in range(3):
            x += 1
            seen.append(evaluate(x))
            accept(x)
        return x

    dialogue = Inverted(run)
    for k in (1, 2, 3):
        x = dialogue.ask()
        assert np.array_equal(x, [k, k])
        x[:] = -5
        dialogue.tell(k)
    assert dialogue.ask() is None and np.array_equal(dialogue.accepted, [3, 3])
    assert np.array_equal(dialogue.result, [3, 3]) and seen == [1, 2, 3] and dialogue.moves == 3


def test_points_announced_before_the_end_are_counted():
    def run(evaluate, accept):
        evaluate(np.zeros(1))
        accept(np.ones(1))
        accept(2 * np.ones(1))
        return "done"

    dialogue = Inverted(run)
    dialogue.tell(dialogue.ask())
    assert dialogue.ask() is None and dialogue.result == "done"
    assert dialogue.moves == 2 and dialogue.accepted == 2
    assert dialogue.ask() is None, "it has ended for good"


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 1])
def test_whatever_ends_the_optimizer_is_passed_on(error, after):
    def run(evaluate, accept):
        for _ in range(after):
            evaluate(np.zeros(1))
        raise error("mine")

    before = alive()
    dialogue = Inverted(run)
    for _ in range(after):
        dialogue.ask()
        dialogue.tell(0.0)
    with pytest.raises(error, match="mine"):
        dialogue.ask()
    assert dialogue.ask() is None and dialogue.result is None
    assert none_but(before)


@pytest.mark.parametrize("how", ["close", "collected"])
@pytest.mark.parametrize("told", [0, 3])
def test_the_thread_ends_with_the_dialogue(how, told):
    before = alive()
    dialogue = Inverted(lbfgsb)
    for _ in range(told):
        dialogue.tell(rosen(dialogue.ask()))
    dialogue.ask()
    assert len(alive() - before) == 1
    if how == "close":
        dialogue.close()
        dialogue.close()  # harmless
    else:
        del dialogue
        gc.collect()
    assert none_but(before)


def test_an_optimizer_that_ended_can_be_closed():
    dialogue = Inverted(lbfgsb)
    answered(dialogue)
    dialogue.close()
    assert dialogue.ask() is None


def test_one_of_the_two_always_waits():
    """The optimizer does nothing while a question is open, and it runs in one thread of its own."""
    log = []

    def run(evaluate, accept):
        for k in range(3):
            log.append((threading.get_ident(), "asks", k))
            evaluate(np.array([float(k)]))
            log.append((threading.get_ident(), "knows", k))

    dialogue = Inverted(run)
    for k in range(3):
        dialogue.ask()
        time.sleep(0.01)
        assert log[-1][1:] == ("asks", k)
        dialogue.tell(None)
    assert dialogue.ask() is None
    assert [entry[1:] for entry in log] == [
        (word, k) for k in range(3) for word in ("asks", "knows")
    ]
    assert {entry[0] for entry in log} != {threading.get_ident()} and len(
        {entry[0] for entry in log}
    ) == 1
