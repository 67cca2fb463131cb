"""The section [data]: every argument of ``pairs`` is a key, and old files mean what they meant."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise
from tests.data.image_files import picture, tiff

from learnreg.cli.config import load_config
from learnreg.cli.data_section import Data, build_pairs
from learnreg.cli.prepare import prepare
from learnreg.core.errors import ConfigError, DataWarning
from learnreg.data import pairs

PHYSICS = Denoising(GaussianNoise(0.01))


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(6):
        stored = (picture(40, 40, seed=i) * 4000).astype(np.uint16)
        tiff(folder / f"p{i // 2}_{i}.tif", stored)
    return folder


def config(path, **keys):
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path.write_text("[data]\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return load_config(path).data


def test_every_argument_of_pairs_is_a_key():
    arguments = set(inspect.signature(pairs).parameters) - {"physics", "seed", "split"}
    assert set(Data.model_fields) == arguments | {"type", "train", "validation", "test"}


def test_keys_reach_the_pairs(tmp_path, scans):
    keys = {"size": 16, "train": 4, "validation": 2, "test": 2, "group": "^(p.)_"}
    data = config(tmp_path / "c.toml", source=str(scans), range=[0, 4095], **keys)
    sides = build_pairs(data, PHYSICS, 0)
    same = pairs(scans, PHYSICS, size=16, split=(4, 2, 2), seed=0, range=(0, 4095), group=r"^(p.)_")
    for one, other in zip(sides, same, strict=True):
        assert torch.equal(one.y, other.y) and one.units == (0.0, 4095.0)


def test_an_old_section_has_no_validation(tmp_path, scans):
    data = config(tmp_path / "c.toml", source=str(scans), size=16, train=4, test=2)
    with pytest.warns(DataWarning, match=r"range = \[0, 4095\]"):
        sides = build_pairs(data, Denoising(GaussianNoise(1e-3)), 0)
    assert [len(side) for side in sides] == [4, 0, 2] and sides.train.units is None


@pytest.mark.parametrize("value", ["wide", 4095, [0, "a"], True, [4095, 0], [0], [0, 1, 2], []])
def test_bad_ranges_are_refused_with_the_file(tmp_path, value):
    words = (
        r'\[data\] range: given .*expected two numbers \[lo, hi\] with lo < hi, "dtype" or "auto"'
    )
    with pytest.raises(ConfigError, match=words):
        config(tmp_path / "c.toml", range=value)


@pytest.mark.parametrize("value", ["(", "[a"])
def test_bad_groups_are_refused_with_the_file(tmp_path, value):
    with pytest.raises(
        ConfigError, match=r"\[data\] group: given .*expected a regular expression \("
    ):
        config(tmp_path / "c.toml", group=value)


@pytest.mark.parametrize("value", ["auto", "dtype", [0.0, 4095.0]])
def test_sections_are_written_and_read_back(tmp_path, value):
    path = tmp_path / "c.toml"
    config(path, range=value, group=r"^(p\d)_", skip_small=True, validation=3)
    once = load_config(path)
    path.write_text(once.to_toml(comments=True), encoding="utf-8")
    assert load_config(path) == once and once.data.range == value


def test_a_run_is_prepared_with_the_units(tmp_path, scans):
    config(tmp_path / "c.toml", source=str(scans), size=16, train=2, test=1, range=[0, 4095])
    problem, test = prepare(load_config(tmp_path / "c.toml"))
    assert problem.pairs.units == test.units == (0.0, 4095.0)
    assert 0.5 < problem.pairs.x.max() <= 1
