"""Every setting of the table refuses what it cannot use, by name, and takes numbers of any make."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.core.constraints import TABLE, Setting, denoising, energy, pair

import learnreg as lr
from learnreg.core.errors import InputError, LearnregError
from learnreg.core.ranges import plain


class Foreign:
    """A class that nothing asks for."""


def bad_values(setting: Setting) -> list[Any]:
    """Wrong types, what is not finite, and what is out of range."""
    by_kind: dict[str, list[Any]] = {
        "number": [True, "0.5", math.nan, math.inf, -math.inf, ["a"], float, 1j, np.bool_(True)],
        "integer": [True, "2", math.nan, math.inf, 1.5, [2], int, np.float64(1.5), np.ones(2)],
        "flag": ["yes", 1, 0.0, [True], bool],
        "choice": [True, 3, math.nan, [1], str],
        "object": [True, 3.5, math.nan, [1], Foreign, Foreign()],
        "text": [True, 3.5, ["a"], str],
        "images": [
            "x",
            3.0,
            [[[[0.5]]]],
            torch.Tensor,
            torch.ones(2, 1, 12, 12, dtype=torch.int64),
            torch.ones(0, 1, 12, 12),
            torch.ones(2, 1, 12, 12).to_sparse(),
            torch.ones(2, 1, 12, 12, device="meta"),
        ],
    }
    values = by_kind[setting.kind] + list(setting.outside)
    if setting.kind == "number" and not setting.plural:
        values += [[0.5], torch.ones(2)]
    return values if setting.optional else [None, *values]


BAD = [
    pytest.param(name, argument, value, id=f"{name}-{argument}-{number}")
    for name, entry in TABLE.items()
    for argument, setting in entry.settings.items()
    for number, value in enumerate(bad_values(setting))
]
GOOD = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, entry in TABLE.items()
    for argument, setting in entry.settings.items()
    if setting.good and entry.cheap
]


@pytest.mark.parametrize(("name", "argument", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name, argument, value):
    entry = TABLE[name]
    with pytest.raises(LearnregError) as caught:
        entry.call(**entry.needed() | {argument: value})

    message = str(caught.value)
    assert argument in message and ": given " in message and "; expected " in message
    assert len(message) < 500


@pytest.mark.parametrize(("name", "argument"), GOOD)
def test_a_good_value_is_taken(name, argument):
    entry = TABLE[name]
    for value in entry.settings[argument].good:
        entry.call(**entry.needed() | {argument: value})


@pytest.mark.parametrize(
    ("name", "argument"),
    [p for p in GOOD if TABLE[p.values[0]].settings[p.values[1]].kind in ("number", "integer")],
)
def test_numbers_of_numpy_and_torch_are_numbers(name, argument):
    entry = TABLE[name]
    setting = entry.settings[argument]
    (value,) = setting.good
    makes = (
        [np.int64, np.int32, np.uint8, torch.tensor, np.array]
        if setting.kind == "integer"
        else [np.float64, np.float32, torch.tensor, np.array]
    )
    for make in makes:
        made = entry.call(**entry.needed() | {argument: make(value)})
        kept = getattr(made, argument, None) if is_dataclass(made) else None
        if kept is not None:
            assert type(kept) in (int, float) and kept == pytest.approx(value)


def test_every_public_constructor_is_in_the_table():
    names = {n for n in lr.__all__ if n[0].isupper()}
    results = {
        "Bound", "Kind", "Cost", "Status", "LearnregError", "InputError", "SolveError", "Run",
        "Report", "Comparison", "SquaredError", "Measured", "WeightedL2", "Foreign", "Grants",
    }  # fmt: skip
    assert names - results <= set(TABLE)


@pytest.mark.parametrize("value", [3, 2.5, "a", None, [1], True])
def test_plain_leaves_the_rest_alone(value):
    assert plain(value) is value or plain(value) == value


def test_a_picture_without_batch_dimension_is_refused_with_the_remedy():
    picture = torch.rand(3, 12, 12)
    with pytest.raises(InputError, match=r"y: given shape \(3, 12, 12\).*y\[None\].*y\[:, None\]"):
        lr.solve(energy(), picture, 1.0)
    assert lr.solve(energy(), picture[None], 1.0).ok
    assert lr.solve(energy(), picture[:, None], 1.0).ok


@pytest.mark.parametrize("regularizer", [lr.regularizers.HuberTV(), lr.regularizers.FoE(4, 3)])
def test_so_it_is_for_sums_and_other_regularizers(regularizer):
    both = lr.Energy(denoising(), regularizer + lr.regularizers.Tikhonov())
    with pytest.raises(InputError, match=r"y\[None\]"):
        lr.solve(both, torch.rand(3, 12, 12), 1.0)


def test_another_device_is_named():
    with pytest.raises(InputError, match=r"y: given a tensor on the device meta; expected .*cpu"):
        lr.solve(energy(), pair().y.to("meta"), 1.0)
    with pytest.raises(InputError, match=r"x: given a tensor on the device meta; expected .*cpu"):
        lr.certify(energy(), pair().y, pair().x.to("meta"))


@pytest.mark.parametrize("part", ["regularizer", "physics"])
def test_a_class_is_not_its_object(part):
    parts = {"physics": denoising(), "regularizer": lr.regularizers.TV()}
    with pytest.raises(InputError, match=f"{part}: given .*class {type(parts[part]).__name__}"):
        lr.Energy(**parts | {part: type(parts[part])})


def test_classes_at_the_front_doors():
    for call in (
        lambda: lr.solve(lr.Energy, pair().y, 1.0),
        lambda: lr.BilevelProblem(lr.Energy, pair()),
        lambda: lr.Reconstructor(lr.SaddleEnergy, 1.0),
    ):
        with pytest.raises(InputError, match="energy: given the class"):
            call()
    for solver in (lr.solvers.AGD, lr.solvers.PDHG):
        with pytest.raises(InputError, match="solver: given the class"):
            lr.solve(energy(), pair().y, 1.0, solver=solver)
