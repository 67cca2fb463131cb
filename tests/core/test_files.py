"""Files that are whole or refused: the checksum sees every bit, and old files still load."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save

from learnreg.core.errors import ModelFileError
from learnreg.core.files import CHECKSUM, KEY, load_tensors, save_tensors

KIND = "learnreg-test"

TENSORS = {
    "weights": torch.arange(3, dtype=torch.float64) / 7,
    "half": torch.ones(1, 2, dtype=torch.float16),
    "complex": torch.tensor([1 + 2j]),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(True),
    "näme": torch.zeros(1, dtype=torch.int64),
}
HEADER = {"format": KIND, "version": 1, "ä\n": [None, 1.5, {"x": "\u2028"}]}


@pytest.fixture
def path(tmp_path):
    save_tensors(tmp_path / "file", TENSORS, HEADER)
    return tmp_path / "file"


def same(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(
        found[k].dtype == t.dtype and found[k].equal(t) for k, t in wanted.items()
    )


def test_what_is_saved_comes_back(path):
    tensors, header = load_tensors(path, KIND)
    assert same(tensors, TENSORS) and header == HEADER


def test_it_is_plain_safetensors_with_aligned_data(path):
    assert same(load_file(path), TENSORS)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_nothing_but_a_header(tmp_path):
    save_tensors(tmp_path / "file", {}, {"format": KIND})
    assert load_tensors(tmp_path / "file", KIND) == ({}, {"format": KIND})


def test_the_file_carries_a_checksum(path):
    content = path.read_bytes()
    told = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert list(told) == [CHECKSUM, KEY] and len(told[CHECKSUM]) == 64


def test_equal_content_gives_equal_files_in_every_process(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from learnreg.core.files import *\n"
        "save_tensors(Path(sys.argv[1]), {'a': torch.ones(2), 'b': torch.ones(3)}, {'format': 'x'})"
    )
    for seed in range(2):
        file = tmp_path / str(seed)
        subprocess.run([sys.executable, "-c", code, str(file)], check=True, timeout=60)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_every_flipped_bit_is_refused(path):
    content = path.read_bytes()
    reasons = set()
    for place in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError) as error:
            load_tensors(path, KIND)
        assert error.value.expected == f"a {KIND} file", place
        assert error.value.remedy == f"Pass a {KIND} file written by this library."
        reasons.add(str(error.value.given)[:22])
    assert {"a file that is damaged", "a file that is not int"} <= reasons


def test_the_refusal_says_that_the_checksum_does_not_fit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged: its checksum does not fit; expected a "):
        load_tensors(path, KIND)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: b"\0" + c])
def test_another_length_is_refused(change, path):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelFileError, match="not intact"):
        load_tensors(path, KIND)


def test_a_file_of_an_earlier_release_loads(tmp_path):
    (tmp_path / "old").write_bytes(save(TENSORS, {KEY: json.dumps(HEADER)}))
    tensors, header = load_tensors(tmp_path / "old", KIND)
    assert same(tensors, TENSORS) and header == HEADER


@pytest.mark.parametrize("other", [{"sha255": "0"}, {CHECKSUM: "0"}, {CHECKSUM: "0" * 64}])
def test_a_checksum_in_another_place_does_not_count(other, tmp_path):
    (tmp_path / "odd").write_bytes(save(TENSORS, {KEY: json.dumps(HEADER), **other}))
    with pytest.raises(ModelFileError, match="checksum does not fit"):
        load_tensors(tmp_path / "odd", KIND)
