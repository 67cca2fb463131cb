"""Fingerprints: whatever the numbers of a run depend on changes them, wherever it is kept, and
nothing else does.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.learners.cases import pictures, run
from torch import Tensor, nn

from learnreg.core.errors import CheckpointError
from learnreg.hypergradients import Implicit
from learnreg.learners import MAID
from learnreg.objectives.bilevel import Bilevel
from learnreg.problems import BilevelProblem
from learnreg.regularizers import FoE
from learnreg.runs.checkpoint import fingerprint
from learnreg.runs.digest import digest_of


class Holder:
    """Keeps what it is given where it is told to."""

    def __init__(self, name: str, value: object) -> None:
        setattr(self, name, value)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Private(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self._value = value


class Colour(Enum):
    RED = 1
    BLUE = 2


def caught(value: object) -> Callable[[], object]:
    return lambda: value


def code(text: str, name: str = "f", **known: object) -> Any:
    """What ``text`` defines, as a module of a user's own would."""
    space: dict[str, Any] = {
        "__name__": "__main__",
        "torch": torch,
        "dataclass": dataclass,
        **known,
    }
    exec(text, space)
    return space[name]


def module_of(text: str) -> types.ModuleType:
    module = types.ModuleType("mine_too")
    exec(text, vars(module))
    return module


VALUES = {
    "array": (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
    "long array": (np.zeros(9999), np.eye(1, 9999, 5000)[0]),
    "objects": (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
    "scalar": (np.float32(0.1), np.float32(0.2)),
    "double": (np.float64(0.1), np.float64(0.2)),
    "tensor": (torch.zeros(9999), torch.arange(9999.0)),
    "member": (Colour.RED, Colour.BLUE),
    "slots": (Slotted(1), Slotted(2)),
    "private": (Holder("_value", 1), Holder("_value", 2)),
    "mangled": (Holder("__value", 1), Holder("__value", 2)),
    "module": (Private(1.0), Private(2.0)),
    "module with array": (Private(np.ones(1)), Private(np.zeros(1))),
    "bytes": (b"a", b"b"),
    "set": ({"a", "b"}, {"a", "c"}),
    "frozen": (frozenset("ab"), frozenset("ac")),
    "deque": (deque([1]), deque([2])),
    "fraction": (Fraction(1, 3), Fraction(2, 3)),
    "path": (Path("a"), Path("b")),
    "ordered": (OrderedDict(a=1), OrderedDict(a=2)),
    "nesting": (((1,), 2), ((1, 2),)),
    "words": (("ab", "c"), ("a", "bc")),
    "class": (int, float),
    "builtin": (torch.square, torch.abs),
    "bound": ([1].append, [2].append),
    "generator": (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)),
    "random": (np.random.default_rng(1), np.random.default_rng(2)),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    "hold",
    [lambda v: v, lambda v: Holder("value", v), Private, Slotted, caught, lambda v: {"a": [v]}],
    ids=["itself", "attribute", "module", "slot", "closure", "container"],
)
def test_values_are_told_apart_wherever_they_are(kind, hold):
    one, two = VALUES[kind]
    assert digest_of(hold(one)) != digest_of(hold(two))
    assert digest_of(hold(one)) == digest_of(hold(one))
    if kind not in ("class", "builtin", "bound"):
        assert digest_of(hold(one)) == digest_of(hold(copy.deepcopy(one)))


CODES = {
    "global": ("w = {}\ndef f(t): return w * t", "0.1", "0.2"),
    "global array": ("import numpy\nw = numpy.array([{}])\ndef f(t): return w * t", "0.1", "0.2"),
    "helper": ("def g(t): return {} * t\ndef f(t): return g(t)", "0.1", "0.2"),
    "inner": ("w = {}\ndef f(t):\n    return sum(w * v for v in t)", "0.1", "0.2"),
    "method": ("class f:\n    def step(self): return {}", "0.1", "0.2"),
    "static": ("class f:\n    @staticmethod\n    def step(): return {}", "0.1", "0.2"),
    "class method": ("class f:\n    @classmethod\n    def step(cls): return {}", "0.1", "0.2"),
    "property": ("class f:\n    @property\n    def step(self): return {}", "0.1", "0.2"),
    "attribute": ("class f:\n    w = {}", "0.1", "0.2"),
    "private attribute": ("class f:\n    _w = {}", "0.1", "0.2"),
    "base": ("class g:\n    def step(self): return {}\nclass f(g): pass", "0.1", "0.2"),
    "super": (
        "class g:\n    def step(self): return {}\n"
        "class f(g):\n    def step(self): return super().step()",
        "0.1",
        "0.2",
    ),
    "dunder": ("class f:\n    def __call__(self): return {}", "0.1", "0.2"),
    "made": ("class g:\n    def w(self): return {}\ndef f(): return g().w()", "0.1", "0.2"),
    "dataclass": ("@dataclass\nclass f:\n    w: float = {}", "0.1", "0.2"),
    "nn": ("class f(torch.nn.Module):\n    def forward(self): return {}", "0.1", "0.2"),
    "cached": (
        "import functools\n@functools.cache\ndef f(): return {}",
        "0.1",
        "0.2",
    ),
    "numbers of a set": ("def f(t): return t in {{'a', {}}}", "'b'", "'c'"),
}


@pytest.mark.parametrize("kind", CODES)
def test_what_is_done_is_told_apart(kind):
    text, one, two = CODES[kind]
    made = [code(text.format(w)) for w in (one, one, two)]
    assert digest_of(made[0]) == digest_of(made[1]) != digest_of(made[2])
    if isinstance(made[0], type):
        objects = [kind() for kind in made]
        assert digest_of(objects[0]) == digest_of(objects[1]) != digest_of(objects[2])


def test_what_a_function_uses_of_a_module_counts_and_the_rest_does_not():
    text = "w = {}\nunused = {}\ndef g(t): return w * t"
    mine = [module_of(text.format(*given)) for given in ((0.1, 1), (0.1, 2), (0.2, 1))]
    users = [code("def f(t): return tools.g(t)", tools=module) for module in mine]
    assert digest_of(users[0]) == digest_of(users[1]) != digest_of(users[2])


def test_what_goes_round_in_circles_comes_to_an_end():
    ring: list[object] = [1]
    ring.append(ring)
    even = "def f(n): return n == 0 or g(n - 1)\ndef g(n): return n != 0 and f(n - 1)"
    assert digest_of(ring) == digest_of(copy.deepcopy(ring))
    assert digest_of(code(even)) == digest_of(code(even))


def test_one_object_held_twice_is_as_two_equal_ones():
    one = Holder("value", 1)
    assert digest_of(one, one) == digest_of(one, Holder("value", 1))


# --- what does not count --------------------------------------------------------------------------


def test_hooks_training_and_memory_do_not_count():
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))

    changed = make().eval()
    changed.register_forward_hook(lambda *_: None)
    assert digest_of(make()) == digest_of(changed)
    x = torch.rand(2, 3, 4, 5)
    assert digest_of(x) == digest_of(x.to(memory_format=torch.channels_last))
    assert digest_of(x) == digest_of(x.mT.contiguous().mT)
    assert digest_of(torch.eye(3)) == digest_of(torch.eye(3).to_sparse())


def test_how_far_a_generator_has_come_does_not_count():
    used = torch.Generator().manual_seed(3)
    torch.rand(5, generator=used)
    assert digest_of(used) == digest_of(torch.Generator().manual_seed(3))


def test_attributes_that_a_class_leaves_out_do_not_count():
    class Caching:
        __fingerprint_exclude__ = ("_cache",)

    class Dropping:
        def __getstate__(self) -> dict[str, object]:
            return {k: v for k, v in vars(self).items() if k != "_cache"}

    for kind in (Caching, Dropping, type("Heir", (Caching,), {})):
        one, two, three = kind(), kind(), kind()
        vars(one).update(_cache=1, weight=1)
        vars(two).update(weight=1, _cache=threading.local())
        vars(three).update(weight=2, _cache=1)
        assert digest_of(one) == digest_of(two) != digest_of(three)


def test_a_run_leaves_the_fingerprint_of_its_problem():
    problem = pictures(FoE(filters=2, size=3))
    before = fingerprint(Bilevel(problem), MAID())
    run(problem, MAID(), steps=1)
    problem.energy.value(problem.truth, problem.data)
    problem.energy.regularizer._remember("effective", lambda: 1)
    assert fingerprint(Bilevel(problem), MAID()) == before
    sent = pickle.loads(pickle.dumps(problem))
    assert fingerprint(Bilevel(sent), MAID()) == before


def test_locks_and_logs_do_not_count_and_connections_are_refused():
    assert digest_of(threading.Lock()) == digest_of(threading.Lock())
    assert digest_of(sys.stderr)
    holder = Holder("_source", (k for k in range(3)))
    with pytest.raises(CheckpointError, match=r"\._source.*generator.*__fingerprint_exclude__"):
        digest_of({"a": holder})
    with pytest.raises(CheckpointError, match=r"Tensor, which cannot be told"):
        digest_of(torch.empty(2, device="meta"))


# --- learners, maps and objectives ----------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A learner, as far as a fingerprint goes."""

    value: Any = None
    hidden: Any = field(default=None, repr=False)


def of_learner(learner: object) -> str:
    return fingerprint(Bilevel(pictures()), learner)


def test_fields_of_learners_are_told_whatever_their_repr_says():
    long = torch.zeros(5000)
    other = long.clone()
    other[2500] = 1
    assert repr(Held(long)) == repr(Held(other))
    assert of_learner(Held(long)) != of_learner(Held(other))
    assert of_learner(Held(np.zeros(5000))) != of_learner(Held(other.numpy()))
    assert of_learner(Held(hidden=1)) != of_learner(Held(hidden=2))
    assert of_learner(Held(lambda v: 2 * v)) == of_learner(Held(lambda v: 2 * v))
    assert of_learner(Held(lambda v: 2 * v)) != of_learner(Held(lambda v: 3 * v))
    assert of_learner(Held(Slotted(1))) == of_learner(Held(Slotted(1)))


def test_the_code_of_a_learner_counts():
    text = "class f:\n    needs = 0\n    def step(self, objective, state): return {}"
    one, again, two = (code(text.format(w))() for w in ("1.0", "1.0", "2.0"))
    assert of_learner(one) == of_learner(again) != of_learner(two)


def test_solution_maps_and_objectives_count_by_what_they_are():
    @dataclass(frozen=True)
    class Map(Implicit):
        weight: Any = None

        def __repr__(self) -> str:
            return object.__repr__(self)

    def of_map(weight: object) -> str:
        return fingerprint(Bilevel(pictures(), Map(weight=weight)), MAID())

    assert of_map(1) == of_map(1) != of_map(2)

    class Mine(Bilevel):
        def penalty(self, theta: Tensor) -> float:
            return 1.0

    assert fingerprint(Mine(pictures()), MAID()) != fingerprint(Bilevel(pictures()), MAID())


@pytest.mark.parametrize("hold", [Private, lambda v: Holder("_value", v), caught])
def test_a_loss_is_told_by_what_it_holds(hold):
    def of_loss(value: object) -> str:
        held = hold(value)
        problem = pictures()

        def loss(x: Tensor, truth: Tensor) -> Tensor:
            assert held
            return (x - truth).square().flatten(1).sum(1)

        return fingerprint(
            Bilevel(BilevelProblem(problem.energy, problem.pairs, loss=loss)), MAID()
        )

    assert of_loss(np.ones(2)) == of_loss(np.ones(2)) != of_loss(np.zeros(2))


# --- in other processes ---------------------------------------------------------------------------

SCRIPT = """
import enum, threading
from collections import OrderedDict
from dataclasses import dataclass, field
import numpy as np, torch
from learnreg.runs.digest import digest_of
class Word(enum.Enum):
    A = "a"
names = {"a", "b", "c", "d", "e"}
@dataclass
class Learner:
    scale: object = field(default_factory=lambda: np.arange(3.0))
    lock: object = field(default_factory=threading.Lock)
    rule: object = lambda x: x in {"p", "q", "r"} or x in names
    def step(self): return [Word.A, names, np.mean, torch.nn.functional.relu, OrderedDict(a=1)]
    def walk(self): return super().__repr__()
layer = torch.nn.Conv2d(1, 1, 1, bias=False)
torch.nn.init.ones_(layer.weight)
print(digest_of(Learner(), Learner, layer, frozenset(names), object()))
"""


def test_digests_are_the_same_in_every_process():
    def one(seed: str) -> str:
        import os

        known = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=known
        ).stdout.strip()

    first, second = one("1"), one("2")
    assert len(first) == 64 and first == second
