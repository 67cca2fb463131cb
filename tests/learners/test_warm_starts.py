"""Warm-start stores: what a recorded state or a checkpoint refers to is never written over."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from learnreg.core.errors import CheckpointError
from learnreg.core.packing import Packed
from learnreg.learners.warm_starts import SLOTS, InMemory, OnDisk

SIZE, SHAPE = 4, (2, 3)
DEFAULT = -1.0


def empty(kind: str, folder: Path, dtype: torch.dtype = torch.float64):
    if kind == "memory":
        return InMemory.empty(SIZE)
    return OnDisk.empty(folder / "deep" / "pages", (SIZE, *SHAPE), dtype)


def values(count: int, number: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Another tensor for every number."""
    return number + torch.arange(count * 6, dtype=dtype).reshape(count, *SHAPE) / 100


def content(store) -> list[torch.Tensor]:
    """All images; DEFAULT for those that are not known."""
    return list(
        store.take(list(range(SIZE)), torch.full((SIZE, *SHAPE), DEFAULT, dtype=torch.float64))
    )


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, two, strict=True))


def through_json(packed: Packed) -> Packed:
    """As a checkpoint file gives it back."""
    return Packed(
        {k: v.clone() for k, v in packed.tensors.items()}, json.loads(json.dumps(packed.numbers))
    )


class Stores(RuleBasedStateMachine):
    """A learner in the loop: steps that are recorded or given up, checkpoints now and then, and a
    process that dies.

    Both kinds of store are compared with a plain list at every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.number = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def start(self) -> None:
        unknown = [torch.full(SHAPE, DEFAULT, dtype=torch.float64)] * SIZE
        self.now = {kind: empty(kind, self.folder) for kind in ("memory", "disk")}
        self.recorded, self.packed = dict(self.now), {}
        self.model = {"now": list(unknown), "recorded": list(unknown)}

    @rule(index=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=SIZE, unique=True))
    def put(self, index: list[int]) -> None:
        self.number += 1
        new = values(len(index), self.number)
        self.now = {kind: store.put(index, new) for kind, store in self.now.items()}
        for i, value in zip(index, new, strict=True):
            self.model["now"][i] = value.clone()
        new.fill_(float("nan"))  # what was put is a copy

    @rule()
    def record(self) -> None:
        self.now = {kind: store.recorded() for kind, store in self.now.items()}
        self.recorded, self.model["recorded"] = dict(self.now), list(self.model["now"])

    @rule()
    def give_up(self) -> None:
        self.now, self.model["now"] = dict(self.recorded), list(self.model["recorded"])

    @rule()
    def save(self) -> None:
        """The loop saves the recorded state, at the end of a step or after one that was given
        up.
        """
        self.packed = {kind: through_json(store.pack()) for kind, store in self.recorded.items()}
        self.model["packed"] = list(self.model["recorded"])

    @precondition(lambda self: self.packed)
    @rule()
    def die_and_resume(self) -> None:
        self.now = {
            "memory": InMemory.restore(self.packed["memory"]),
            "disk": OnDisk.restore(self.packed["disk"]),
        }
        self.recorded = dict(self.now)
        self.model |= {"now": list(self.model["packed"]), "recorded": list(self.model["packed"])}

    @rule(index=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=SIZE))
    def take(self, index: list[int]) -> None:
        for store in self.now.values():
            found = store.take(
                index, torch.full((len(index), *SHAPE), DEFAULT, dtype=torch.float64)
            )
            assert same(list(found), [self.model["now"][i] for i in index])
            found.fill_(float("nan"))  # what was taken is a copy

    @invariant()
    def nothing_was_written_over(self) -> None:
        if not hasattr(self, "now"):
            return
        for kind in ("memory", "disk"):
            assert same(content(self.now[kind]), self.model["now"]), kind
            assert same(content(self.recorded[kind]), self.model["recorded"]), kind
        if self.packed:
            assert same(content(InMemory.restore(self.packed["memory"])), self.model["packed"])
            assert same(content(OnDisk.restore(self.packed["disk"])), self.model["packed"])


TestStores = Stores.TestCase
TestStores.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, derandomize=True
)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_new_store_knows_nothing(kind, tmp_path):
    store, default = empty(kind, tmp_path), values(2, 7.0)
    assert store.take([3, 1], default).equal(default)
    assert content(store.put([1], values(1, 5.0)))[1].equal(values(1, 5.0)[0])
    if kind == "memory":
        assert store.take([3, 1], default).equal(default), "put leaves the store as it was"


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float64_holds_what_float32_held(kind, dtype, tmp_path):
    store = empty(kind, tmp_path, dtype).put([0, 2], values(2, 0.1, dtype)).recorded()
    wide = store.double()
    default = torch.zeros(SIZE, *SHAPE, dtype=torch.float64)
    found = wide.take([0, 1, 2, 3], default)
    assert found.dtype == torch.float64
    assert found[[0, 2]].equal(values(2, 0.1, dtype).double()) and found[[1, 3]].equal(
        default[[1, 3]]
    )
    precise = values(1, 1 / 3)
    assert wide.put([1], precise).take([1], default[:1]).equal(precise)
    restored = type(wide).restore(through_json(wide.pack()))
    assert restored.take([0, 1, 2, 3], default).equal(found)
    assert same(content(store), content(store.double()))


def test_a_batch_on_disk_is_read_as_it_is_asked_for(tmp_path):
    store = empty("disk", tmp_path, torch.float32).put([1], values(1, 0.3, torch.float32))
    found = store.take([1, 0], torch.zeros(2, *SHAPE, dtype=torch.float64))
    assert found.dtype == torch.float64 and found[0].equal(
        values(1, 0.3, torch.float32)[0].double()
    )


def test_the_file_is_no_larger_than_three_versions(tmp_path):
    empty("disk", tmp_path)
    assert (tmp_path / "deep" / "pages").stat().st_size <= SLOTS * SIZE * 6 * 8 + 64


# --- files that are not the ones of the checkpoint ------------------------------------------------


def packed(folder: Path) -> Packed:
    return through_json(empty("disk", folder).put([0], values(1, 1.0)).recorded().pack())


def refused(checkpoint: Packed, given: str) -> None:
    with pytest.raises(CheckpointError, match=given) as error:
        OnDisk.restore(checkpoint)
    assert "pages" in str(error.value) and "Start without resume" in str(error.value)


def test_a_file_that_is_gone_is_an_error(tmp_path):
    checkpoint = packed(tmp_path)
    (tmp_path / "deep" / "pages").unlink()
    refused(checkpoint, "no such file")


def test_a_file_that_another_run_wrote_is_an_error(tmp_path):
    """Otherwise the run would go on from warm starts that it never had, and give other numbers."""
    checkpoint = packed(tmp_path)
    packed(tmp_path)
    refused(checkpoint, "another run")


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: b"\0" * len(b)]
)
def test_a_file_that_is_not_intact_is_an_error(change, tmp_path):
    checkpoint, path = packed(tmp_path), tmp_path / "deep" / "pages"
    path.write_bytes(change(path.read_bytes()))
    refused(checkpoint, "another run")


def test_a_new_store_leaves_open_ones_alone(tmp_path):
    """A run that was started again in the same process must not pull the file from under the old
    one.
    """
    old = empty("disk", tmp_path).put([0], values(1, 1.0))
    new = empty("disk", tmp_path)
    assert content(old)[0].equal(values(1, 1.0)[0]) and content(new)[0].equal(
        torch.full(SHAPE, DEFAULT).double()
    )
    old.put([0], values(1, 2.0))
    assert np.array_equal(new.pages.data, np.zeros_like(new.pages.data))
