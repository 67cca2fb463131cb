"""What must not lose a run, and what must not spoil its numbers: damaged files, full disks, two
writers, states of an unknown class.
"""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, make_dataclass, replace
from enum import Enum, IntEnum
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from tests.learners.cases import GALLERY, assert_same, phantoms, pictures, run
from tests.learners.test_packing import differences
from tests.runs.test_resume import at_call, files
from torch import Tensor

from learnreg.core.errors import CheckpointError, InputError, MissingPropertyError
from learnreg.core.files import load_tensors
from learnreg.core.grants import Grants
from learnreg.core.locks import FILE as LOCK
from learnreg.core.locks import locked
from learnreg.core.objective import Halt, Objective, Row, Value, row_of
from learnreg.core.results import StopReason
from learnreg.learners import MAID, Stochastic
from learnreg.objectives import ScoreMatching
from learnreg.objectives.bilevel import Bilevel, BilevelValue
from learnreg.regularizers import TV, FoE, Tikhonov
from learnreg.runs import Budget, learn
from learnreg.runs.checkpoint import FILE, FORMAT, VERSION, fingerprint

# --- damaged files --------------------------------------------------------------------------------


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path):
    """In the head, in the names, in the last digit of a tensor: nothing is continued from it."""
    problem = GALLERY["two_pixels"]
    run(problem(), MAID(), steps=1, checkpoint=tmp_path)
    path = tmp_path / FILE
    content = path.read_bytes()
    bits = 8 * len(content)
    places = {k * (bits - 1) // 60 for k in range(61)} | set(range(0, 128, 9))
    for bit in sorted(places):
        path.write_bytes(flipped(content, bit))
        with pytest.raises(CheckpointError, match=r"given .*; expected .*Start without resume"):
            run(problem(), MAID(), steps=2, checkpoint=tmp_path, resume=True)
        assert path.read_bytes() == flipped(content, bit), "and left as it was"
    path.write_bytes(content)
    whole = run(problem(), MAID(), steps=2)
    assert_same(whole, run(problem(), MAID(), steps=2, checkpoint=tmp_path, resume=True))


def test_a_checkpoint_of_an_earlier_version_is_refused_in_words(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("learnreg.runs.checkpoint.VERSION", VERSION - 1)
        run(pictures(), MAID(), steps=1, checkpoint=tmp_path)
    with pytest.raises(
        CheckpointError, match=rf"given version {VERSION - 1}; expected version {VERSION}.*release"
    ):
        run(pictures(), MAID(), steps=2, checkpoint=tmp_path, resume=True)


@pytest.mark.parametrize(
    "make",
    [
        pictures,
        lambda: pictures(FoE(filters=2, size=3)),
        lambda: pictures(TV() + Tikhonov(0.1, learned=False)),
        GALLERY["quadratic"],
    ],
    ids=["TV", "FoE", "sum", "quadratic"],
)
def test_what_was_sent_to_another_process_is_the_same_problem(make, tmp_path):
    """A run that was begun there goes on here."""
    sent = pickle.loads(pickle.dumps(make()))
    assert fingerprint(Bilevel(sent), MAID()) == fingerprint(Bilevel(make()), MAID())
    run(sent, MAID(), steps=1, checkpoint=tmp_path)
    resumed = run(make(), MAID(), steps=2, checkpoint=tmp_path, resume=True)
    assert_same(run(make(), MAID(), steps=2), resumed)


def test_fingerprints_are_the_same_in_every_process():
    code = (
        "from tests.learners.cases import pictures\n"
        "from learnreg.learners import MAID\n"
        "from learnreg.objectives.bilevel import Bilevel\n"
        "from learnreg.runs.checkpoint import fingerprint\n"
        "print(fingerprint(Bilevel(pictures()), MAID()))"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert found.stdout.strip() == fingerprint(Bilevel(pictures()), MAID())


# --- full disks -----------------------------------------------------------------------------------


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["os.fsync", "os.replace"])
@pytest.mark.parametrize(
    "learner", [MAID(), Stochastic(batch=1, record=1)], ids=["maid", "stochastic"]
)
def test_a_full_disk_is_said_once_and_the_run_goes_on(learner, function, tmp_path, monkeypatch):
    whole = run(pictures(), learner, steps=5)
    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr(function, full)
        outcome = run(pictures(), learner, steps=5, checkpoint=tmp_path)
    assert_same(whole, outcome)
    assert whole.stop == outcome.stop
    (warning,) = said
    assert warning.category is RuntimeWarning
    for words in (str(tmp_path), "No space left on device", "the run goes on", "Ctrl-C"):
        assert words in str(warning.message)
    assert files(tmp_path) == [], "nothing half-written is left"


def test_a_disk_that_has_room_again_is_written_to(tmp_path, monkeypatch):
    """The first write fails: one sentence, and the checkpoint of the end is that of the run."""
    calls = iter(range(10**6))
    replace = os.replace

    def sometimes(*arguments):
        return full() if next(calls) == 0 else replace(*arguments)

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning) as said:
        patch.setattr(os, "replace", sometimes)
        outcome = run(GALLERY["quadratic"](), MAID(), steps=4, checkpoint=tmp_path)
    assert len(said) == 1 and next(calls) > 1
    assert files(tmp_path) == [FILE]
    assert len(load_tensors(tmp_path / FILE, FORMAT)[1]["rows"]) == len(outcome.record.rows) == 5
    resumed = run(GALLERY["quadratic"](), MAID(), steps=6, checkpoint=tmp_path, resume=True)
    assert_same(run(GALLERY["quadratic"](), MAID(), steps=6), resumed)


def test_errors_that_are_not_of_the_disk_are_passed_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(os, "replace", at_call(1, os.replace, ZeroDivisionError))
        run(pictures(), MAID(), steps=2, checkpoint=tmp_path)


# --- two writers ----------------------------------------------------------------------------------


def assert_refused(folder: Path, **arguments: object) -> None:
    with pytest.raises(
        CheckpointError, match=r"^checkpoint .*: given a run that is still going on \(process \d+\)"
    ) as error:
        run(pictures(), MAID(), steps=1, checkpoint=folder, **arguments)
    assert str(folder) in str(error.value) and "another folder" in str(error.value)


def test_a_second_run_in_the_folder_is_refused_and_the_first_goes_on(tmp_path):
    """Whether it would start anew or resume; before it computes or writes anything."""

    def second(row: Row) -> None:
        before = (tmp_path / FILE).read_bytes()
        assert_refused(tmp_path)
        assert_refused(tmp_path, resume=True)
        assert (tmp_path / FILE).read_bytes() == before

    outcome = run(pictures(), MAID(), steps=2, checkpoint=tmp_path, progress=second)
    assert_same(run(pictures(), MAID(), steps=2), outcome)
    assert files(tmp_path) == [FILE], "the lock is gone"
    resumed = run(pictures(), MAID(), steps=3, checkpoint=tmp_path, resume=True)
    assert_same(run(pictures(), MAID(), steps=3), resumed)


def test_two_threads_do_not_share_a_folder(tmp_path):
    begun, ended = Event(), Event()

    def wait(row: Row) -> None:
        begun.set()
        assert ended.wait(60)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            run, GALLERY["quadratic"](), MAID(), steps=1, checkpoint=tmp_path, progress=wait
        )
        try:
            assert begun.wait(60)
            assert_refused(tmp_path)
            run(GALLERY["quadratic"](), MAID(), steps=1, checkpoint=tmp_path / "other")
        finally:
            ended.set()
        assert len(first.result().record.rows) == 2


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_run_that_ends_badly_leaves_the_folder_free(error, tmp_path):
    def explode(row: Row) -> None:
        raise error

    try:
        run(pictures(), MAID(), checkpoint=tmp_path, progress=explode)
    except ZeroDivisionError:
        assert error is ZeroDivisionError
    assert LOCK not in files(tmp_path)
    with locked(tmp_path):
        pass
    resumed = run(pictures(), MAID(), steps=1, checkpoint=tmp_path, resume=True)
    assert_same(run(pictures(), MAID(), steps=1), resumed)


def test_what_a_dead_process_left_blocks_nobody(tmp_path):
    (tmp_path / LOCK).write_text("999999 elsewhere\n", encoding="utf-8")
    run(pictures(), MAID(), steps=1, checkpoint=tmp_path)
    assert files(tmp_path) == [FILE]


# --- learners of one's own ------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a walker stands, and how often it has walked."""

    point: Value
    walked: int

    @property
    def theta(self) -> Tensor:
        return self.point.theta

    def row(self) -> Row:
        return row_of(self.point, {"eps": self.point.eps, "walked": self.walked})


@dataclass(frozen=True)
class Walker:
    """Steps of one length downhill; ``init`` says of which class its states are."""

    length: float = 0.05
    needs: ClassVar[Grants] = Grants.LOSS | Grants.GRADIENT

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> Place:
        return Place(objective.evaluate(theta, 1e-2), 0)

    def step(self, objective: Objective, state: Place) -> Place:
        z = objective.gradient(state.point, 1e-2)
        theta = state.theta - self.length * z.value / z.norm
        return Place(objective.evaluate(theta, 1e-2, state.point), state.walked + 1)


class Silent(Walker):
    """Does not say it."""

    def init(self, objective, theta, seed=0):
        return super().init(objective, theta, seed)


class Declared(Silent):
    """Says it in another way."""

    state: ClassVar[type[Place]] = Place


class Vague(Walker):
    """Says something that is no dataclass."""

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> object:
        return super().init(objective, theta, seed)


class Hidden(Walker):
    """Its annotations name what only a type checker sees."""

    def init(self, objective: OnlyForTypes, theta: Tensor, seed: int = 0) -> Place:  # noqa: F821
        return super().init(objective, theta, seed)


OBJECTIVES = {
    "bilevel": pictures,
    "scores": lambda: ScoreMatching(pictures().energy, phantoms()[0]),
}


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("learner", [Walker(), Declared()], ids=["annotated", "declared"])
def test_a_learner_of_ones_own_is_resumed(learner, make, tmp_path):
    whole = run(make(), learner, steps=4)
    assert whole.record.column("walked") == [0, 1, 2, 3, 4]
    assert whole.record.rows[-1]["loss"] < whole.record.rows[0]["loss"]
    for steps in (1, 2, 4):
        parts = run(make(), learner, steps=steps, checkpoint=tmp_path, resume=True)
    assert_same(whole, parts)


@pytest.mark.parametrize(
    "learner", [Silent(), Vague(), Hidden()], ids=["silent", "vague", "hidden"]
)
def test_a_state_of_an_unknown_class_is_refused_on_resume_in_words(learner, tmp_path):
    """It learns, and writes checkpoints; only going on needs to know what to restore."""
    outcome = run(pictures(), learner, steps=2, checkpoint=tmp_path)
    assert len(outcome.record.rows) == 3
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(CheckpointError) as error:
        run(pictures(), learner, steps=3, checkpoint=tmp_path, resume=True)
    message = str(error.value)
    assert type(learner).__name__ in message and "states are of no known class" in message
    assert "Annotate it: def init" in message
    assert (tmp_path / FILE).read_bytes() == before


def test_a_learner_of_ones_own_goes_on_in_float64():
    class Careful(Walker):
        def step(self, objective: Objective, state: Place) -> Place:
            if state.theta.dtype == torch.float32 and state.walked == 2:
                from learnreg.core.objective import rounding_floor

                raise rounding_floor(torch.float32, "no more digits")
            return super().step(objective, state)

    outcome = run(pictures(), Careful(), steps=4)
    assert outcome.theta.dtype == torch.float64 and outcome.record.column("walked")[-1] == 4
    stopped = run(pictures(), Careful(), steps=4, promote=False)
    assert stopped.stop.code == "rounding_floor" and len(stopped.record.rows) == 3
    assert outcome.thetas[:3].equal(stopped.thetas.double())


@dataclass(frozen=True)
class Demanding(Walker):
    """Needs more than a bilevel problem through a truncated series grants."""

    needs: ClassVar[Grants] = Grants.LOSS | Grants.GRADIENT | Grants.BOUND


def test_needs_of_a_learner_of_ones_own_are_checked_before_anything_is_computed(monkeypatch):
    from learnreg.core.errors import MissingPropertyError
    from learnreg.hypergradients import JacobianFree
    from learnreg.runs import Budget

    monkeypatch.setattr("learnreg.objectives.bilevel.Bilevel.evaluate", None)
    with pytest.raises(MissingPropertyError, match=r"^hypergradient: given JacobianFree.*bound"):
        learn(pictures(), Demanding(), budget=Budget(steps=1), hypergradient=JacobianFree())


# --- other settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("learner", "settings", "words"),
    [
        (Stochastic(batch=1), {"seed": 8}, "given 8; expected 7.*seed=7"),
        (MAID(), {"solver": "agd"}, "given 'agd'; expected 'auto'.*solver='auto'"),
    ],
    ids=["seed", "solver"],
)
def test_a_run_goes_on_with_its_own_settings_only(learner, settings, words, tmp_path):
    begun = {"seed": 7}
    run(pictures(), learner, steps=1, checkpoint=tmp_path, **begun)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(CheckpointError, match=words):
        run(
            pictures(),
            learner,
            steps=2,
            checkpoint=tmp_path,
            resume=True,
            **(begun | settings),
        )
    assert (tmp_path / FILE).read_bytes() == before


# --- what a learner returns -----------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """Anything as theta, anything as row."""

    theta: object
    told: object

    def row(self) -> object:
        return self.told


@dataclass(frozen=True)
class Teller:
    """Returns what it is told to."""

    make: Callable[[Tensor], object]
    needs: ClassVar[Grants] = Grants.LOSS

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> Told:
        return Told(theta, {"loss": 1.0})

    def step(self, objective: Objective, state: Told) -> object:
        return self.make(objective.theta)


BAD = {
    "nothing": (lambda t: None, "what Teller.step returned: given None.*theta and row"),
    "shape": (lambda t: Told(t[:0], {"loss": 1.0}), r"theta of Teller.step: .*\(0,\)"),
    "dtype": (lambda t: Told(t.double(), {"loss": 1.0}), "float64.*expected .*float32"),
    "list": (lambda t: Told(t.tolist(), {"loss": 1.0}), "theta of Teller.step"),
    "no_row": (lambda t: Told(t, None), "row of Teller: given None"),
    "no_loss": (lambda t: Told(t, {"eps": 1.0}), "row of Teller: given no loss"),
    "word": (lambda t: Told(t, {"loss": "low"}), "given the loss 'low'"),
    "step": (lambda t: Told(t, {"loss": 1.0, "step": 7}), "row of Teller: given 'step'"),
    "seconds": (lambda t: Told(t, {"loss": 1.0, "seconds": 7}), "given 'seconds'"),
    "work": (lambda t: Told(t, {"loss": 1.0, "work": 7}), "given 'work'"),
    "tensor": (lambda t: Told(t, {"loss": 1.0, "z": torch.ones(9)}), "z = a tensor.*tolist"),
}


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_what_a_learner_returns_is_refused_in_words(make, words):
    with pytest.raises(InputError, match=words):
        run(pictures(), Teller(make), steps=1)


def test_a_theta_that_is_not_finite_ends_the_run_in_words():
    outcome = run(pictures(), Teller(lambda t: Told(t * torch.nan, {"loss": 1.0})), steps=3)
    assert outcome.stop.code == "not_finite" and "Teller" in outcome.stop.sentence
    assert len(outcome.record.rows) == 1 and bool(outcome.theta.isfinite().all())


@pytest.mark.parametrize("loss", [torch.tensor(0.5), np.float32(0.5), np.array(0.5)], ids=type)
def test_numbers_of_a_row_are_those_of_python(loss):
    outcome = run(pictures(), Teller(lambda t: Told(t, {"loss": loss})), steps=1)
    assert type(outcome.record.rows[1]["loss"]) is float


def test_a_record_keeps_the_thetas_of_a_learner_that_writes_over_its_own(tmp_path):
    """In the same memory, step after step."""

    class Reckless(Teller):
        def step(self, objective: Objective, state: Told) -> Told:
            state.theta.add_(1.0)
            return Told(state.theta, {"loss": 1.0})

    outcome = run(pictures(), Reckless(lambda t: None), steps=3)
    moved = (outcome.thetas - outcome.thetas[:1])[:, 0]
    assert moved.tolist() == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-5)


# --- what a checkpoint can hold -------------------------------------------------------------------


class Holder:
    """Holds something in a field with some annotation; it keeps what it finds there."""

    needs: ClassVar[Grants] = Grants.LOSS

    def __init__(self, hint: object, make: Callable[[Objective], object]) -> None:
        told = {"row": lambda state: {"loss": 1.0}}
        fields = [("theta", Tensor), ("held", hint)]
        self.state = make_dataclass("Holding", fields, frozen=True, namespace=told)
        self.make, self.found = make, []

    def __repr__(self) -> str:
        return "Holder()"

    def init(self, objective: Objective, theta: Tensor, seed: int = 0) -> object:
        return self.state(theta, self.make(objective))

    def step(self, objective: Objective, state: object) -> object:
        self.found.append(state.held)
        return replace(state, theta=state.theta - 0.1)


@dataclass(frozen=True)
class Base:
    """A part of a state."""

    slope: Tensor


@dataclass(frozen=True)
class More(Base):
    """One with a field more."""

    extra: int = 3


class Corner(NamedTuple):
    """A tuple with names."""

    x: int
    y: int


class Level(IntEnum):
    """A number with a name."""

    LOW = 1


class Colour(Enum):
    """A name."""

    RED = "red"


ONES = torch.ones(2)
LOST = {
    "tuple_key": (dict, lambda o: {(0, 1): ONES}),
    "IntEnum": (Level, lambda o: Level.LOW),
    "Enum": (Colour, lambda o: Colour.RED),
    "subclass": (Base, lambda o: More(ONES)),
    "namedtuple": (Corner, lambda o: Corner(1, 2)),
    "namedtuple_in_table": (dict, lambda o: {"at": (Corner(1, 2),)}),
    "Parameter": (Tensor, lambda o: torch.nn.Parameter(ONES)),
    "requires_grad": (Tensor, lambda o: torch.ones(2, requires_grad=True)),
    "sparse": (Tensor, lambda o: torch.eye(2).to_sparse()),
    "complex128": (Tensor, lambda o: torch.ones(2, dtype=torch.complex128)),
    "set": (set, lambda o: {1, 2}),
    "complex": (complex, lambda o: 1j),
    "Generator": (torch.Generator, lambda o: torch.Generator()),
    "deque": (deque, lambda o: deque([1])),
    "dataclass_as_any": (Any, lambda o: Base(ONES)),
    "dataclass_in_bare_table": (dict, lambda o: {"a": Base(ONES)}),
    "OrderedDict": (OrderedDict, lambda o: OrderedDict(a=ONES)),
    "Size": (torch.Size, lambda o: ONES.shape),
    "objects": (np.ndarray, lambda o: np.array([None])),
    "array_as_any": (Any, lambda o: np.ones(2)),
    "function": (Any, lambda o: len),
}


@pytest.mark.parametrize(("hint", "make"), LOST.values(), ids=LOST)
def test_what_a_checkpoint_would_lose_is_refused_at_the_first_save(hint, make, tmp_path):
    with pytest.raises(InputError, match=r"^checkpoint of Holder: given held.*transient\(\)"):
        run(pictures(), Holder(hint, make), steps=1, checkpoint=tmp_path)
    assert files(tmp_path) == [], "nothing is written"
    run(pictures(), Holder(hint, make), steps=1)


def test_a_refusal_names_the_part_and_comes_when_the_part_does(tmp_path):
    class Later(Holder):
        def step(self, objective, state):
            return replace(state, held=({"a": (1, {2})},))

    with pytest.raises(InputError, match=r"given held\[0\]\['a'\]\[1\] = \{2\} \(set\)"):
        run(pictures(), Later(object, lambda o: None), steps=2, checkpoint=tmp_path)


def test_a_state_that_is_no_dataclass_is_refused_in_words(tmp_path):
    class Loose(Teller):
        def init(self, objective, theta, seed=0):
            return SimpleNamespace(theta=theta, row=lambda: {"loss": 1.0})

    with pytest.raises(InputError, match=r"^checkpoint of Loose: given its state"):
        run(pictures(), Loose(lambda t: None), steps=1, checkpoint=tmp_path)


KEPT = {
    "list_of_tensors": (list[Tensor], lambda o: [ONES, 2 * ONES]),
    "table_of_tables": (dict[str, object], lambda o: {"b": {"y": ONES, "a": 2 * ONES}, "a": 1}),
    "numbers_as_keys": (dict[int, Tensor], lambda o: {1: ONES, 0: ONES}),
    "tuples_in_tables": (dict, lambda o: {"pair": (1, (2.5, None)), "list": [1, {"deep": ()}]}),
    "bare_tuple": (tuple, lambda o: (1, (ONES, ("a", None)))),
    "table_as_any": (Any, lambda o: {"b": ONES, "a": 0.1}),
    "mapping": (Mapping[str, Tensor], lambda o: {"b": ONES, "a": ONES}),
    "union": (Tensor | float, lambda o: 0.1),
    "other_union": (Tensor | float | None, lambda o: ONES),
    "float32": (np.float32, lambda o: np.float32(0.1)),
    "int64": (int, lambda o: np.int64(3)),
    "bool": (object, lambda o: np.bool_(True)),
    "backwards": (np.ndarray, lambda o: np.arange(4.0)[::-1]),
    "without_dimensions": (np.ndarray, lambda o: np.array(1.5)),
    "nan": (dict, lambda o: {"nan": float("nan"), "inf": float("inf"), "zero": -0.0}),
    "parts": (dict[str, Base], lambda o: {"a": Base(ONES)}),
    "value": (BilevelValue, lambda o: o.evaluate(o.theta, 0.1)),
    "some": (Value, lambda o: o.subset(torch.tensor([1])).evaluate(o.theta, 0.1)),
}


@pytest.mark.parametrize(("hint", "make"), KEPT.values(), ids=KEPT)
def test_what_a_checkpoint_holds_comes_back_as_it_was(hint, make, tmp_path):
    run(pictures(), Holder(hint, make), steps=1, checkpoint=tmp_path)
    again = Holder(hint, make)
    run(pictures(), again, steps=2, checkpoint=tmp_path, resume=True)
    (found,), made = again.found, make(Bilevel(pictures()))
    assert differences(made, found) == []
    assert repr(found) == repr(made) or isinstance(made, BilevelValue)


def test_a_state_defined_in_a_function_comes_back(tmp_path):
    """Its annotations are words that nobody can look up."""

    class Own(NamedTuple):
        pass

    @dataclass(frozen=True)
    class Local:
        theta: Tensor
        other: Tensor | Own
        pair: tuple[int, Tensor]

        def row(self) -> Row:
            return {"loss": 1.0}

    class Localist(Teller):
        state: ClassVar[type] = Local

        def init(self, objective, theta, seed=0):
            return Local(theta, 2 * theta, (1, theta))

        def step(self, objective, state):
            return Local(state.theta + state.other, state.other, (state.pair[0] + 1, state.theta))

    whole = run(pictures(), Localist(len), steps=3)
    for steps in (1, 3):
        parts = run(pictures(), Localist(len), steps=steps, checkpoint=tmp_path, resume=True)
    assert_same(whole, parts)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_check_of_a_state_evaluates_nothing(make, tmp_path, monkeypatch):
    monkeypatch.setattr(Bilevel, "restore", None)
    monkeypatch.setattr(ScoreMatching, "restore", None)
    run(make(), Walker(), steps=2, checkpoint=tmp_path)


def test_a_learner_that_gives_up_at_once_says_why():
    @dataclass(frozen=True)
    class Hopeless:
        needs: ClassVar[Grants] = Grants.LOSS

        def init(self, objective, theta, seed=0):
            raise Halt(StopReason("not_finite", "everything is NaN"))

        def step(self, objective, state):
            raise AssertionError("there is no state")

    with pytest.raises(MissingPropertyError, match="a start at which nothing can be done: everyth"):
        learn(pictures(), Hopeless(), budget=Budget(steps=1))
