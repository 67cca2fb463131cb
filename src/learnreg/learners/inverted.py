"""Optimizers that call back, turned round: ask for the next point, tell its value, so that our loop
owns the steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np

Answer = TypeVar("Answer")

Evaluate: TypeAlias = Callable[[np.ndarray], Answer]
Run: TypeAlias = Callable[[Evaluate[Answer], Callable[[np.ndarray], None]], object]


class _Question(NamedTuple):
    """A point to be evaluated."""

    point: np.ndarray


class _Accepted(NamedTuple):
    """A point that the optimizer has moved to."""

    point: np.ndarray


class _Finished(NamedTuple):
    """What the optimizer returned, or the exception that ended it."""

    result: Any
    error: BaseException | None


class _Closed(BaseException):
    """Ends the optimizer's thread; nobody waits for it any more."""


_Event: TypeAlias = _Question | _Accepted | _Finished


class Inverted(Generic[Answer]):
    """A callback-style optimizer as a dialogue.

    The optimizer runs in a daemon thread of its own, but never at the same time as the caller: one
    of the two always waits for the other, so evaluations happen in the caller's thread and can be
    interrupted there.

    Args:
        run: called as ``run(evaluate, accept)``; it calls ``evaluate(x)`` for every value that it
            needs and may announce points that it moves to by ``accept(x)``. What it returns becomes
            ``result``.

    Attributes:
        accepted: the latest announced point, or None.
        moves: how many points were announced.
        told: how many questions were answered.
        result: what ``run`` returned, once ``ask`` gives None.
    """

    def __init__(self, run: Run[Answer]) -> None:
        self.accepted: np.ndarray | None = None
        self.moves = self.told = 0
        self.result: Any = None
        self._pending: np.ndarray | None = None
        self._finished = False
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._answers: SimpleQueue[Answer | _Closed] = SimpleQueue()
        self._close = weakref.finalize(self, self._answers.put, _Closed())
        Thread(target=_work, args=(run, self._events, self._answers), daemon=True).start()

    def ask(self) -> np.ndarray | None:
        """The next point to evaluate, the same one until ``tell`` is called; None when the
        optimizer has ended.

        Raises:
            BaseException: whatever ended the optimizer.
        """
        while self._pending is None and not self._finished:
            event = self._events.get()
            if isinstance(event, _Accepted):
                self.accepted, self.moves = event.point, self.moves + 1
            elif isinstance(event, _Question):
                self._pending = event.point
            else:
                self._finished, self.result = True, event.result
                if event.error is not None:
                    raise event.error
        return self._pending

    def tell(self, answer: Answer) -> None:
        """The value at the point that ``ask`` gave."""
        if self._pending is None:
            raise RuntimeError("tell without a question: call ask first")
        self._pending, self.told = None, self.told + 1
        self._answers.put(answer)

    def replay(self, log: Iterable[tuple[np.ndarray, Answer]]) -> bool:
        """Tell the answers of an earlier dialogue; False where the optimizer now asks for something
        else.
        """
        for point, answer in log:
            asked = self.ask()
            if asked is None or not np.array_equal(asked, point):
                return False
            self.tell(answer)
        return True

    def close(self) -> None:
        """End the optimizer; harmless when it has ended."""
        self._close()


def _work(
    run: Run[Answer],
    events: SimpleQueue[_Event],
    answers: SimpleQueue[Answer | _Closed],
) -> None:
    """The life of the thread; it holds no reference to the Inverted, which can so be collected."""

    def evaluate(x: np.ndarray) -> Answer:
        events.put(_Question(np.array(x, dtype=np.float64, copy=True)))
        answer = answers.get()
        if isinstance(answer, _Closed):
            raise answer
        return answer

    def accept(x: np.ndarray) -> None:
        events.put(_Accepted(np.array(x, dtype=np.float64, copy=True)))

    try:
        events.put(_Finished(run(evaluate, accept), None))
    except _Closed:
        pass
    except BaseException as error:  # whoever asks would wait for ever
        events.put(_Finished(None, error))
