"""Kernels that are learned from a configuration file: keys, refusals, models, pages."""

from __future__ import annotations

import pytest
import torch
from tests.cli.cases import invoke

import learnreg as lr
from learnreg.cli.config import Config, load_config
from learnreg.cli.prepare import prepare
from learnreg.core.errors import ConfigError
from learnreg.physics import LearnedPhysics
from learnreg.physics.learning import MAKERS

SMALL = {
    "data": {"source": "phantoms", "size": 16, "train": 2, "test": 1},
    "regularizer": {"type": "TV", "weight": 0.02, "smoothing": 0.1},
}


def small(**physics):
    return Config.model_validate({**SMALL, "physics": {"type": "blur", "width": 0.7, **physics}})


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_learns_and_its_model_needs_nothing_else(kind, tmp_path):
    problem, test = prepare(small(learn=kind))
    physics = problem.energy.physics
    assert isinstance(physics, LearnedPhysics) and type(physics.base).__name__ == "Blur"
    assert physics.tensors()["filter"].shape == physics.base.filter.shape
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1), seed=0)
    model = lr.load_model(lr.save_model(tmp_path / "m.safetensors", run.trained))
    assert torch.equal(model.physics.tensors()["filter"], run.trained.physics.tensors()["filter"])
    assert lr.solve(model, test.y, 0.1).ok


def test_measurements_are_made_with_the_kernel_that_the_model_does_not_know():
    fixed, learned = prepare(small())[0], prepare(small(learn="gaussian"))[0]
    assert torch.equal(fixed.pairs.y, learned.pairs.y)
    x = fixed.pairs.x
    assert torch.equal(fixed.energy.physics.A(x), learned.energy.physics.base.A(x))
    assert not torch.allclose(fixed.energy.physics.A(x), learned.energy.physics.A(x))


def test_sizes_starts_and_channels():
    config = small(learn="motion", learn_size=7, learn_start=3.0, learn_channels=True)
    config = config.model_copy(update={"data": config.data.model_copy(update={"channels": 3})})
    physics = prepare(config)[0].energy.physics
    assert physics.tensors()["filter"].shape == (1, 3, 7, 7)
    assert physics.parametrizations["filter"].length()[0].tolist() == pytest.approx([3.0] * 3)


def test_super_resolution_learns_its_filter():
    config = Config.model_validate(
        {**SMALL, "physics": {"type": "superresolution", "learn": "gaussian"}}
    )
    problem, _ = prepare(config)
    before = problem.energy.physics.words()
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=2), seed=0)
    assert run.record.rows[-1]["loss"] < run.record.rows[0]["loss"]
    assert run.trained.physics.words() != before


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ('learn = "gausian"', "learn"),
        ("learn_size = 5", "given without learn"),
        ("learn_start = 0.7", "given without learn"),
        ("learn_channels = true", "given without learn"),
        (
            'learn = "gaussian"\nlearn_size = 4',
            "learn_size: given 4 pixels; expected an odd number",
        ),
        (
            'learn = "gaussian"\nlearn_start = 0.1',
            "learn_start: given 0.1; expected a number >= 0.5 pixel",
        ),
        (
            'learn = "motion"\nlearn_size = 5\nlearn_start = 9.0',
            r"learn_start: given 9.*a number in \[1, 5\]",
        ),
    ],
)
def test_keys_that_lead_nowhere_are_refused_when_the_file_is_read(keys, words, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(f"[physics]\ntype = 'blur'\n{keys}\n")
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_other_physics_have_no_such_key(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[physics]\ntype = 'CT'\nlearn = 'gaussian'\n")
    with pytest.raises(ConfigError, match="learn"):
        load_config(path)


@pytest.mark.slow
def test_the_command_says_what_kernel_was_learned(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(small(learn="gaussian").to_toml())
    said = invoke("learn", path, "--output", tmp_path / "out", "--seconds", "5").output
    assert "learned filter: 7 x 7 pixels, sum 1.000, standard deviations" in said
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "with a learned operator for deblurring" in page
    assert "filter by GaussianKernel(size=7x7)" in page
    assert "physics.parametrizations.filter.log_std" in page and "learned filter" in page
    model = lr.load_model(tmp_path / "out" / "model.safetensors")
    assert isinstance(model.physics, LearnedPhysics)
