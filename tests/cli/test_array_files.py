"""Files of arrays as inputs and results of ``reconstruct``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from learnreg.cli.array_files import list_inputs, read_measured, result_name, write_result
from learnreg.core.errors import DataWarning, InputError
from learnreg.data import read_array


@pytest.mark.parametrize(
    "shape, kind, expected",
    [
        ((5, 6), "float32", (1, 5, 6)),
        ((3, 5, 6), "float64", (3, 5, 6)),
        ((5, 6), "complex64", (2, 5, 6)),
        ((4, 5, 6), "complex64", (2, 4, 5, 6)),
    ],
)
def test_measurements_get_their_channels(
    tmp_path: Path, shape: tuple[int, ...], kind: str, expected: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(kind) * 1000
    np.save(tmp_path / "a.npy", array)

    pixels = read_measured(tmp_path / "a.npy").pixels

    assert pixels.shape == expected
    back = torch.view_as_complex(pixels.movedim(0, -1).contiguous()) if "c" in kind else pixels
    assert np.array_equal(back.numpy().reshape(shape), array)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1.0, np.nan]]))

    with pytest.raises(InputError, match=r"a\.npy: given NaN"):
        read_measured(tmp_path / "a.npy")


def test_a_folder_of_pictures_and_arrays(tmp_path: Path) -> None:
    for name in ("b.npy", "a.png", "c.NII.GZ", ".hidden.npy", "notes.txt"):
        (tmp_path / name).write_bytes(b"")

    with pytest.warns(DataWarning, match="left out notes.txt"):
        found = list_inputs(tmp_path, (".png",))

    assert [path.name for path in found] == ["a.png", "b.npy", "c.NII.GZ"]
    assert [result_name(path) for path in found[1:]] == ["b.npy", "c.npy"]
    with pytest.raises(InputError, match=r"2 files, none of them readable|1 files"):
        list_inputs(_only(tmp_path / "other", "notes.txt"), (".png",))
    with pytest.raises(InputError, match="an empty folder"):
        list_inputs(_only(tmp_path / "empty"), (".png",))


def _only(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_results_are_whole_or_absent(tmp_path: Path, suffix: str) -> None:
    x = torch.randn(1, 4, 5)

    write_result(tmp_path / f"a{suffix}", x)

    assert torch.equal(read_array(tmp_path / f"a{suffix}"), x[0])
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]
    with pytest.raises(InputError, match="does not exist"):
        write_result(tmp_path / "no" / f"a{suffix}", x)
