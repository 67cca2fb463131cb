"""Runs on measured pairs from files: [data] type = "measured"."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cli.cases import invoke, rows

from learnreg.cli.config import Config, load_config
from learnreg.cli.measured_section import MeasuredData, size_of
from learnreg.core.errors import ConfigError, DataWarning
from learnreg.data import phantoms

CONFIG = """\
[data]
type = "measured"
images = {images}
measurements = {measurements}
{more}
[regularizer]
type = "TV"
[budget]
steps = {steps}
[run]
threads = 1
output = {output}
"""


def truth_and_noisy(n: int = 5, size: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = phantoms(n, size, seed)[:, 0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x.numpy(), (x + 0.1 * noise).numpy()


def write_files(folder: Path, names: list[str], seed: int = 0) -> tuple[Path, Path]:
    """Folders of images and measurements with these names."""
    both = folder / "truth", folder / "noisy"
    for place, arrays in zip(both, truth_and_noisy(len(names), seed=seed), strict=True):
        place.mkdir(parents=True)
        for name, array in zip(names, arrays, strict=True):
            np.save(place / f"{name}.npy", array)
    return both


def write_config(
    folder: Path, images: Path, measurements: Path, more: str = "", steps: int = 1
) -> Path:
    path = folder / "config.toml"
    texts = {"images": images, "measurements": measurements, "output": folder / "out"}
    quoted = {name: json.dumps(str(text)) for name, text in texts.items()}
    path.write_text(CONFIG.format(more=more, steps=steps, **quoted), encoding="utf-8")
    return path


def test_a_run_on_measured_pairs_is_that_on_the_same_pairs_in_memory(tmp_path: Path) -> None:
    import deepinv as dinv

    import learnreg as lr

    names = [f"scan-{i}" for i in range(5)]
    config = write_config(tmp_path, *write_files(tmp_path, names), "train = 4\ntest = 1")
    invoke("learn", config)

    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    x, y = (torch.from_numpy(a)[:, None] for a in truth_and_noisy())
    train, _ = lr.data.measured(x, y, physics, split=(4, 1), seed=0)
    problem = lr.BilevelProblem(lr.Energy(physics, lr.regularizers.TV()), train)
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1), seed=0)

    _, thetas = rows(tmp_path / "out")
    torch.testing.assert_close(thetas, run.thetas)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert load_config(tmp_path / "out" / "config.toml").data == load_config(config).data


@pytest.mark.parametrize(
    "more, sizes",
    [
        ("", (8, 0, 2)),
        ("test = 3", (7, 0, 3)),
        ("train = 2", (2, 0, 8)),
        ("train = 0.5\ntest = 0.3", (5, 0, 3)),
        ("train = 4\nvalidation = 2\ntest = 3", (4, 2, 3)),
        ("validation = 0.2", (6, 2, 2)),
        ('group = "^(.)"\ntest = 0.5', (5, 0, 5)),
    ],
)
def test_how_pairs_are_dealt(tmp_path: Path, more: str, sizes: tuple[int, int, int]) -> None:
    from deepinv.physics import Denoising

    from learnreg.cli.measured_section import build_measured

    names = [f"{patient}{i}" for patient in "ab" for i in range(5)]
    data = load_config(write_config(tmp_path, *write_files(tmp_path, names), more)).data
    assert isinstance(data, MeasuredData)

    sides = build_measured(data, Denoising(), 0, torch.float64)

    assert tuple(map(len, sides)) == sizes
    dealt = [name for side in sides for name in side.names]
    assert len(set(dealt)) == len(dealt)
    assert all(side.x.dtype == torch.float64 for side in sides)
    if "group" in more:
        assert not {name[0] for name in sides[0].names} & {name[0] for name in sides[2].names}


def test_held_out_pairs_from_files_of_their_own(tmp_path: Path) -> None:
    from learnreg.cli.prepare import prepare

    pair = write_files(tmp_path / "train", ["a", "b", "c"])
    images, measurements = write_files(tmp_path / "test", ["d", "e"], seed=1)
    own = (
        f"test_images = {json.dumps(str(images))}\n"
        f"test_measurements = {json.dumps(str(measurements))}"
    )
    problem, test = prepare(load_config(write_config(tmp_path, *pair, own)))

    assert problem.size == 3
    assert sorted(test.names) == ["d", "e"]


def test_the_same_measurement_on_two_sides_is_warned_of(tmp_path: Path) -> None:
    from learnreg.cli.prepare import prepare

    pair = write_files(tmp_path / "train", ["a", "b", "c"])
    again = write_files(tmp_path / "test", ["d"])  # the first of them under another name
    own = "\n".join(
        f"test_{name} = {json.dumps(str(place))}"
        for name, place in zip(("images", "measurements"), again, strict=True)
    )
    with pytest.warns(DataWarning, match="a and d"):
        prepare(load_config(write_config(tmp_path, *pair, own)))


@pytest.mark.parametrize(
    "more, words",
    [
        ("train = true", r"\[data\] train: given true; expected a number of pairs"),
        ("test = 0", r"\[data\] test: given 0; expected at least one pair"),
        ("test = 1.5", r"\[data\] test: given 1.5; expected a number of pairs, or a fraction"),
        ("validation = 2", r"\[data\] test: given nothing beside a number"),
        ("train = 0.5\ntest = 3", r"\[data\] split: .*not both"),
        ("train = 40", r"\[data\] split: given .*40.* of 3 pairs"),
        ("channels = 3", r"channels = 3"),
        ('test_images = "x"', r"\[data\] test_measurements: given nothing"),
        ('group = "("', r"\[data\] group: .*regular expression"),
        ('group = "patient"', r"\[data\] group: .*not found"),
        ("size = 24", r"\[data\] size: given an unknown key"),
        ("measurement_factor = 0.0", r"\[data\] measurement_factor: given 0"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, more: str, words: str) -> None:
    from learnreg.cli.prepare import prepare

    config = write_config(tmp_path, *write_files(tmp_path, ["a", "b", "c"]), more)
    with pytest.raises(ConfigError, match=words):
        prepare(load_config(config))


def test_missing_keys_and_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text, words in (
        ('[data]\ntype = "measured"', r"\[data\] images: given nothing; expected true images"),
        ('[data]\ntype = "mesured"', "one of simulated, measured. Did you mean 'measured'"),
        ('[data]\nimages = "truth"', r"\[data\] images: given an unknown key"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            load_config(path)


def test_files_without_a_type_are_simulated() -> None:
    plain = Config.model_validate({"data": {"source": "phantoms"}})

    assert plain == Config.model_validate({"data": {"type": "simulated", "source": "phantoms"}})
    assert size_of(plain.data) == (96, 96)


@pytest.mark.parametrize("shape", [(20, 30), (1, 20, 30), (20, 30, 3)])
def test_the_size_is_that_of_the_first_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    np.save(tmp_path / "b.npy", np.zeros((2, *shape)))

    for place in (tmp_path / "b.npy", tmp_path):
        data = MeasuredData(images=str(place), measurements="y")
        assert size_of(data) == (20, 30)
        (tmp_path / "b.npy").unlink(missing_ok=True)


def test_a_comparison_on_measured_pairs(tmp_path: Path) -> None:
    from learnreg.cli.compare_config import load_comparison

    images, measurements = write_files(tmp_path, ["a", "b", "c"])
    text = (
        f'[data]\ntype = "measured"\nimages = {json.dumps(str(images))}\n'
        f"measurements = {json.dumps(str(measurements))}\n"
        '[[learners]]\ntype = "maid"\n[[learners]]\ntype = "hoag"\n'
    )
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")

    plan = load_comparison(tmp_path / "c.toml")

    assert isinstance(plan.config.data, MeasuredData)
