"""The state of every learner: packed and restored to the same numbers, in float64, and nothing that
runs is kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tests.learners.cases import GALLERY, phantoms, pictures
from torch import Tensor

from learnreg.core.objective import Objective, State, Value
from learnreg.core.packing import TRANSIENT, Packed, pack, transient, unpack, widened
from learnreg.learners import (
    DFO,
    DFOLS,
    HOAG,
    LBFGSB,
    MAID,
    Deferred,
    FixedAccuracy,
    GridSearch,
    OptunaSearch,
    RandomSearch,
    Stochastic,
)
from learnreg.learners.warm_starts import OnDisk
from learnreg.objectives import ScoreMatching
from learnreg.objectives.bilevel import Bilevel, BilevelValue
from learnreg.objectives.score_matching import ScoreValue

BOX = [-5.0, 3.0]
LEARNERS: dict[str, Callable[[], object]] = {
    "maid": MAID,
    "paper": lambda: MAID(memory=0),
    "fixed": lambda: FixedAccuracy(eps=1e-4, delta=1e-4),
    "hoag": HOAG,
    "lbfgsb": LBFGSB,
    "sgd": lambda: Stochastic(batch=1, momentum=0.5),
    "adam": lambda: Stochastic.preset("iadam", batch=1, record=1),
    "deferred": lambda: Deferred(Stochastic.preset("iadam", batch=1), length=2),
    "dfo": lambda: DFO(box=BOX),
    "dfols": lambda: DFOLS(box=BOX),
    "grid": lambda: GridSearch(BOX, points=3),
    "random": lambda: RandomSearch(BOX),
    "optuna": lambda: OptunaSearch(BOX),
}
EXTRAS = {"dfols": "dfols", "optuna": "optuna"}
SCORED = ("maid", "hoag", "lbfgsb", "sgd", "adam", "deferred", "grid", "random")

known = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name in EXTRAS and find_spec(EXTRAS[name]) is None, reason="an optional extra"
            ),
        )
        for name in LEARNERS
    ],
)


def after(learner, objective: Objective, steps: int = 2) -> State:
    state = learner.init(objective, objective.theta, 3)
    for _ in range(steps):
        state = learner.step(objective, state)
    return state


def through_json(packed: Packed) -> Packed:
    """As a checkpoint file gives it back; its numbers must be plain, its tensors tensors."""
    assert all(isinstance(v, Tensor) for v in packed.tensors.values())
    return Packed(
        {k: v.clone() for k, v in packed.tensors.items()}, json.loads(json.dumps(packed.numbers))
    )


def kept(state: object) -> Iterator[tuple[str, object]]:
    for field in dataclasses.fields(state):
        if not field.metadata.get(TRANSIENT):
            yield field.name, getattr(state, field.name)


def differences(one: object, two: object) -> list[str]:
    """Where two states are not bitwise the same, by the path of the field."""
    return list(_apart(one, two, "state"))


def _apart(one: object, two: object, where: str) -> Iterator[str]:
    if isinstance(one, OnDisk):
        every = list(range(len(one.places)))
        one, two = one.take(every), two.take(every)
    if type(one) is not type(two):
        yield f"{where}: {type(one).__name__}, {type(two).__name__}"
    elif isinstance(one, Tensor | np.ndarray):
        if one.dtype != two.dtype or one.shape != two.shape or not _equal(one, two):
            yield where
    elif isinstance(one, BilevelValue | ScoreValue):
        for name in ("theta", "solution", "residual", "psnr", "eps", "loss", "lower", "upper"):
            if hasattr(one, name):
                yield from _apart(getattr(one, name), getattr(two, name), f"{where}.{name}")
    elif dataclasses.is_dataclass(one):
        for (name, a), (_, b) in zip(kept(one), kept(two), strict=True):
            yield from _apart(a, b, f"{where}.{name}")
    elif isinstance(one, tuple | list | dict):
        if len(one) != len(two) or (isinstance(one, dict) and list(one) != list(two)):
            yield where
            return
        for key in one if isinstance(one, dict) else range(len(one)):
            yield from _apart(one[key], two[key], f"{where}[{key!r}]")
    elif not (one == two or one != one):
        yield where


def _equal(one: Tensor | np.ndarray, two: Tensor | np.ndarray) -> bool:
    """NaN is NaN."""
    return bool(((one == two) | ((one != one) & (two != two))).all())


def restored(learner, objective: Objective, state: State) -> State:
    return unpack(learner.state, through_json(pack(state)), objective.restore)


# --- there and back -------------------------------------------------------------------------------


@known
@pytest.mark.parametrize("make", [GALLERY["two_pixels"], pictures], ids=["two_pixels", "TV"])
def test_every_state_comes_back_and_goes_on_alike(name, make):
    learner, objective = LEARNERS[name](), Bilevel(make())
    state = after(learner, objective)
    before = objective.meter.cost
    again = restored(learner, objective, state)
    assert objective.meter.cost == before, "restoring costs nothing"
    assert type(again) is learner.state and differences(state, again) == []
    assert json.dumps(again.row()) == json.dumps(state.row())
    one, two = learner.step(objective, state), learner.step(objective, again)
    assert differences(one, two) == [] and one.theta.equal(two.theta)


@known
def test_a_first_state_comes_back(name):
    """No adjoint, no pair, no memory of an optimizer yet."""
    learner, objective = LEARNERS[name](), Bilevel(GALLERY["two_pixels"]())
    state = after(learner, objective, 0)
    again = restored(learner, objective, state)
    assert differences(state, again) == []
    one, two = learner.step(objective, state), learner.step(objective, again)
    assert differences(one, two) == []


@pytest.mark.parametrize("name", SCORED)
def test_states_of_another_objective_come_back(name):
    """Their values are those of score matching, which no learner knows."""
    learner, objective = LEARNERS[name](), ScoreMatching(pictures().energy, phantoms()[0])
    state = after(learner, objective)
    again = restored(learner, objective, state)
    assert differences(state, again) == []
    one, two = learner.step(objective, state), learner.step(objective, again)
    assert one.theta.equal(two.theta)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5}, {"optimizer": "adam"}], ids=str)
def test_warm_starts_on_disk_come_back(settings, tmp_path):
    learner = Stochastic(batch=1, store=str(tmp_path), **settings)
    objective = Bilevel(pictures())
    state = after(learner, objective)
    again = restored(learner, objective, state)
    assert isinstance(again.solutions, OnDisk) and differences(state, again) == []


# --- float64 --------------------------------------------------------------------------------------


@known
def test_every_state_goes_on_in_float64(name):
    """Same numbers, more digits; counters without dimensions keep their type."""
    learner, objective = LEARNERS[name](), Bilevel(pictures())
    assert objective.theta.dtype == torch.float32
    state = after(learner, objective)
    narrow = pack(state).tensors
    assert any(t.dtype == torch.float32 for t in narrow.values())

    wide_objective = objective.widened()
    assert wide_objective.meter is objective.meter
    wide = widened(state, wide_objective.adopt)
    assert type(wide) is type(state) and wide.theta.dtype == torch.float64
    found = pack(wide).tensors
    assert found.keys() == narrow.keys()
    for key, tensor in found.items():
        assert torch.allclose(tensor.double(), narrow[key].double(), 0, 0, equal_nan=True), key
        if narrow[key].is_floating_point() and narrow[key].dim():
            assert tensor.dtype == torch.float64, key
        else:
            assert tensor.dtype == narrow[key].dtype, key

    again = restored(learner, wide_objective, wide)
    assert differences(wide, again) == []
    following = learner.step(wide_objective, wide)
    assert following.theta.dtype == torch.float64 and bool(following.theta.isfinite().all())


def test_values_at_the_floor_of_float32_are_not_at_that_of_float64():
    objective = Bilevel(pictures())
    value = objective.evaluate(objective.theta, 1e-12)
    assert value.at_floor
    wide = objective.widened().adopt(value)
    assert not wide.at_floor and wide.error.equal(value.error)
    assert wide.loss == pytest.approx(value.loss, rel=1e-6)


# --- some of the images ---------------------------------------------------------------------------

OBJECTIVES = {
    "bilevel": lambda: Bilevel(pictures()),
    "scores": lambda: ScoreMatching(pictures().energy, phantoms()[0]),
}
INDICES = {"one": torch.tensor([1]), "mask": torch.tensor([False, True]), "twice": None}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_value_of_some_images_comes_back_as_one_of_these(make, index):
    """Restored on its own truths, not on those of all images, and so in float64."""
    objective = make()
    if index is None:
        some = objective.subset(torch.tensor([1, 0])).subset(torch.tensor([0]))
    else:
        some = objective.subset(index)
    value = some.evaluate(objective.theta, 0.01)
    again = objective.restore(through_json(value.pack()))
    assert json.dumps(again.row()) == json.dumps(value.row())
    assert again.images.tolist() == [1] and again.per_image().loss.equal(value.per_image().loss)

    wide = objective.widened().adopt(value)
    assert wide.images.tolist() == [1] and wide.theta.dtype == torch.float64
    assert wide.loss == pytest.approx(value.loss, rel=1e-5)
    assert some.restore(through_json(value.pack())).loss == value.loss, "and by the subset itself"


# --- what runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "field"), [("lbfgsb", "dialogue"), ("dfols", "dialogue"), ("optuna", "study")]
)
def test_what_runs_is_left_out(name, field):
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name])
    learner, objective = LEARNERS[name](), Bilevel(GALLERY["two_pixels"]())
    state = after(learner, objective)
    assert getattr(state, field) is not None
    packed = pack(state)
    assert field not in packed.numbers
    assert not any(key.split(".")[0] == field for key in packed.tensors)
    assert getattr(restored(learner, objective, state), field) is None
    assert replace(state, **{field: None}).row() == state.row()


# --- states of one's own --------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    slope: Tensor
    name: str
    deeper: tuple[Tensor, ...]


@dataclass(frozen=True)
class Own:
    """Everything that a field may hold."""

    point: Value
    best: Value | None
    missing: Value | None
    inner: Inner
    spare: Inner | None
    several: tuple[Inner, ...]
    values: tuple[Value, ...]
    counts: tuple[int, ...]
    nothing: tuple[Tensor, ...]
    table: dict[str, Tensor]
    words: dict[str, object]
    array: np.ndarray
    number: float
    count: int
    flag: bool
    word: str | None
    cache: list[int] | None = transient()  # type: ignore[assignment]


def own(objective: Objective) -> Own:
    one = objective.evaluate(objective.theta, 0.1)
    two = objective.evaluate(objective.theta + 0.1, 0.05, one)
    inner = Inner(torch.arange(3.0), "a", (torch.ones(2), torch.zeros(0)))
    return Own(
        one,
        two,
        None,
        inner,
        None,
        (inner, replace(inner, name="b")),
        (two, one),
        (1, 2, 3),
        (),
        {"momentum": torch.ones(2), "step": torch.tensor(3.0)},
        {"loss": 0.1, "why": None, "list": [1, 2]},
        np.arange(4.0),
        0.1 + 0.2,
        7,
        True,
        None,
        [1, 2],
    )


@pytest.mark.parametrize("make", [GALLERY["two_pixels"], pictures], ids=["two_pixels", "TV"])
def test_a_state_of_ones_own_comes_back(make):
    objective = Bilevel(make())
    state = own(objective)
    again = unpack(Own, through_json(pack(state)), objective.restore)
    assert differences(state, again) == [] and again.cache is None


def test_a_state_of_ones_own_goes_on_in_float64():
    objective = Bilevel(pictures())
    state, wide = own(objective), objective.widened()
    found = widened(state, wide.adopt)
    assert found.point.theta.dtype == found.values[1].theta.dtype == torch.float64
    assert found.inner.slope.dtype == found.several[1].deeper[0].dtype == torch.float64
    assert found.table["momentum"].dtype == torch.float64
    assert found.table["step"].dtype == torch.float32, "a counter"
    assert found.missing is None and found.counts == (1, 2, 3) and found.words == state.words


@dataclass(frozen=True)
class Mixed:
    """Items of different kinds in one tuple, numbers beside tensors in one table."""

    pair: tuple[int, Tensor]
    table: dict[str, object]


def test_tables_may_hold_numbers_beside_tensors():
    state = Mixed((3, torch.ones(2)), {"exp_avg": torch.ones(2), "step": 4, "none": None})
    again = unpack(Mixed, through_json(pack(state)), lambda packed: packed)
    assert differences(state, again) == []


def test_tables_and_tuples_of_earlier_checkpoints_are_read():
    """Those did not say what they are made of."""
    tensors = {"pair.1": torch.ones(2), "table.exp_avg": torch.ones(2)}
    packed = Packed(tensors, {"pair": {"length": 2, "0": 3}, "table": {"step": 4}})
    again = unpack(Mixed, through_json(packed), lambda packed: packed)
    assert (
        differences(Mixed((3, torch.ones(2)), {"exp_avg": torch.ones(2), "step": 4}), again) == []
    )
