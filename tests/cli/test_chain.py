"""From files of measurements to a folder of reconstructions, without a line of Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.cli.cases import invoke, save_png
from torch import Tensor

from learnreg import physics as setups
from learnreg.data import phantoms, read_array, save_array
from learnreg.models import load, save_model
from learnreg.problems import Energy
from learnreg.regularizers import TV

SIZE = 24
CONFIG = """
[data]
type = "measured"
images = "{folder}/truth"
measurements = "{folder}/measured"
train = 3
test = 1
[physics]
{physics}
[noise]
type = "gaussian"
sigma = 0.02
[regularizer]
type = "{regularizer}"
[budget]
steps = 1
[run]
output = "{folder}/run"
baselines = []
"""
CASES = {
    "CT": ("TV", 'type = "CT"\nangles = 20', setups.CT(angles=20)),
    "MRI": ("FoE", 'type = "MRI"', setups.MRI()),
    "fan": ("TV", 'type = "CT"\ngeometry = "fan"\nangles = 20', setups.CT(20, "fan")),
}


def stored(y: Tensor) -> np.ndarray:
    """As scanners give it: complex numbers where there are two channels of the same size."""
    if y.shape[0] == 2:
        return torch.view_as_complex(y.movedim(0, -1).contiguous()).numpy()
    return y[0].numpy()


@pytest.mark.parametrize(
    "name",
    [
        "CT",
        pytest.param("MRI", marks=pytest.mark.slow),
        pytest.param("fan", marks=pytest.mark.slow),
    ],
)
def test_measurements_in_files_become_images_in_files(tmp_path, name):
    regularizer, lines, setup = CASES[name]
    physics = setup.build((SIZE, SIZE), 1, 0, setups.Gaussian(0.02))
    x = phantoms(6, SIZE, seed=0)
    for folder in ("truth", "measured", "new"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        y = physics(x[i : i + 1])[0]
        place = "measured" if i < 4 else "new"
        np.save(tmp_path / place / f"scan{i}.npy", stored(y))
        if i < 4:
            np.save(tmp_path / "truth" / f"scan{i}.npy", x[i, 0].numpy())
    config = tmp_path / "config.toml"
    config.write_text(
        CONFIG.format(folder=tmp_path.as_posix(), physics=lines, regularizer=regularizer)
    )

    assert invoke("learn", config).exit_code == 0
    out = tmp_path / "out"
    told = invoke("reconstruct", "-m", tmp_path / "run", tmp_path / "new", "-o", out)
    assert told.exit_code == 0, told.output
    assert f"{SIZE} x {SIZE}, grey" in told.output

    model = load(tmp_path / "run")
    for i in (4, 5):
        found = read_array(out / f"scan{i}.npy")
        assert found.shape == (SIZE, SIZE)
        assert float((found - x[i, 0]).square().mean()) < 0.6 * float(x[i, 0].var())
        y = physics(x[i : i + 1])  # other noise, the same scan
        again = model.reconstruct(y).value[0, 0]
        assert float((found - again).norm()) < 0.2 * float(again.norm())


def test_a_picture_may_be_written_as_an_array(tmp_path):
    physics = setups.Denoising().build((SIZE, SIZE), 1, 0, setups.Gaussian(0.1))
    save_model(tmp_path / "model.safetensors", Energy(physics, TV(0.1)))
    image = save_png(tmp_path / "x.png", 30, 20)
    told = invoke("reconstruct", "-m", tmp_path, image, "-o", tmp_path / "clean.npy")
    assert told.exit_code == 0, told.output
    assert read_array(tmp_path / "clean.npy").shape == (30, 20)
    save_array(tmp_path / "y.npy", torch.rand(20, 20))
    told = invoke("reconstruct", "-m", tmp_path, tmp_path / "y.npy", "-o", tmp_path / "y.png")
    assert told.exit_code == 0 and (tmp_path / "y.png").is_file()
