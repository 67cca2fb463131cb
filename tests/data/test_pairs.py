"""Pairs: the same seed gives the same data, no photograph is on both sides, nothing lent is
changed.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deepinv.physics import BlurFFT, Denoising, GaussianNoise, LinearPhysics, StackedLinearPhysics
from deepinv.physics.noise import NoiseModel
from PIL import Image

from learnreg.core.errors import InputError
from learnreg.data import Pairs, load_image, pairs


def denoising(rng: torch.Generator | None = None) -> Denoising:
    return Denoising(GaussianNoise(0.1, rng=rng))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path / f"{i}.png")
    return path


def make(source, physics=None, *, size=16, split=(10, 4), seed=0, **options) -> tuple[Pairs, Pairs]:
    return pairs(source, physics or denoising(), size=size, split=split, seed=seed, **options)


def test_natural_pairs():
    train, test = make("natural", size=96, split=(10, 4))
    assert train.x.shape == train.y.shape == (10, 1, 96, 96) and test.x.shape == (4, 1, 96, 96)
    assert train.x.dtype == torch.float32 and train.x.min() >= 0 and train.x.max() <= 1
    assert train.x.flatten(1).std(1).min() > 0.02
    noise = (train.y - train.x).flatten(1)
    torch.testing.assert_close(noise.std(1), torch.full((10,), 0.1), rtol=0.05, atol=0)
    assert (noise.corrcoef() - torch.eye(10)).abs().max() < 0.06  # every image has noise of its own


@pytest.mark.parametrize("source", ["natural", "phantoms", "folder"])
def test_the_seed_decides(source, folder):
    source = folder if source == "folder" else source
    one, again, other = make(source), make(source), make(source, seed=1)
    for a, b, c in zip(one, again, other, strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and a.names == b.names
        assert not torch.equal(a.x, c.x)


@pytest.mark.parametrize("split", [(10, 4), (1, 1), (3, 30), (30, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_no_photograph_is_on_both_sides(folder, split, seed):
    train, test = make(folder, split=split, seed=seed)
    assert (len(train), len(test)) == split
    assert not set(train.sources) & set(test.sources)
    assert len(set(train.names)) == len(train)
    for side in (train, test):  # crops are what their names say, and spread evenly
        per_source = [
            sum(name.startswith(source + "@") for name in side.names) for source in side.sources
        ]
        assert max(per_source) - min(per_source) <= 1
        for x, name in zip(side.x, side.names, strict=True):
            file, place = name.split("@")
            row, column = map(int, place.split(","))
            assert torch.equal(
                x, load_image(folder / file)[:, row : row + 16, column : column + 16]
            )


def test_photographs_change_sides_with_the_seed():
    assert len({make("natural", seed=seed)[1].sources for seed in range(6)}) > 3


def test_every_photograph_is_used_and_several_are_held_out():
    train, test = make("natural", split=(24, 8))
    assert len(train.sources) + len(test.sources) == 7
    assert len(test.sources) == 3


def test_one_side_may_be_empty(folder):
    train, test = make(folder, split=(5, 0))
    assert (
        len(train) == 5 and len(test) == 0 and test.x.shape == (0, 1, 16, 16) and test.names == ()
    )
    train, test = make(sorted(folder.iterdir())[:1], split=(0, 5))
    assert len(train) == 0 and test.sources == ("0.png",)


def test_all_windows_of_an_image_can_be_asked_for(tmp_path):
    Image.fromarray(np.arange(9 * 9, dtype=np.uint8).reshape(9, 9)).save(tmp_path / "one.png")
    train, _ = make(tmp_path, size=8, split=(4, 0))
    assert set(train.names) == {f"one.png@{row},{column}" for row in (0, 1) for column in (0, 1)}


def test_flat_crops_are_avoided(tmp_path):
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[40:, 40:] = np.random.default_rng(0).integers(0, 255, (24, 24))
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    train, _ = make(tmp_path, size=16, split=(8, 0))
    assert (train.x.flatten(1).std(1) > 0.02).float().mean() >= 0.75
    Image.fromarray(np.full((64, 64), 9, dtype=np.uint8)).save(tmp_path / "corner.png")
    assert (
        len(make(tmp_path, split=(3, 0))[0]) == 3
    )  # a flat photograph still gives what was asked for


@pytest.mark.parametrize("rng", [None, torch.Generator()])
def test_noise_does_not_depend_on_the_other_images(folder, rng):
    files = sorted(folder.iterdir())
    many, _ = make(folder, denoising(rng), split=(14, 0))
    few, _ = make(files[2:4], denoising(rng), split=(4, 0))
    for name in set(few.names) & set(many.names):
        i, j = few.names.index(name), many.names.index(name)
        assert torch.equal(few.y[i], many.y[j])
    assert len(set(few.names) & set(many.names)) == 4


def test_generators_are_left_alone_and_do_not_matter(folder):
    torch.manual_seed(7)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    rng = torch.Generator().manual_seed(3)
    state, physics = rng.get_state(), denoising(rng)
    with_rng, _ = make(folder, physics)
    assert physics.noise_model.rng is rng and torch.equal(rng.get_state(), state)
    without, _ = make(folder)
    assert torch.equal(with_rng.y, without.y)
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(numpy_before, np.random.get_state()[1])


def test_generators_inside_a_noise_function_are_seeded_and_left_alone(folder):
    rng = torch.Generator().manual_seed(3)
    state, gauss = rng.get_state(), GaussianNoise(0.1, rng=rng)
    physics = Denoising(NoiseModel(lambda z: gauss(2 * z)))
    one, again = make(folder, physics)[0], make(folder, physics)[0]
    assert torch.equal(one.y, again.y)
    assert (one.y - 2 * one.x).std() > 0.05
    assert gauss.rng is rng and torch.equal(rng.get_state(), state)


def test_generators_are_given_back_when_the_physics_fails(folder):
    rng = torch.Generator().manual_seed(3)
    state, before = rng.get_state(), torch.random.get_rng_state()
    with pytest.raises(InputError):
        make(folder, Picky(noise_model=GaussianNoise(0.1, rng=rng)))
    assert torch.equal(rng.get_state(), state) and torch.equal(before, torch.random.get_rng_state())


def test_colour_scale_and_same_names(folder, tmp_path):
    train, _ = make(folder, channels=3)
    assert train.x.shape == (10, 3, 16, 16)
    assert make(folder, scale=0.5, size=20, split=(7, 0))[0].x.shape == (7, 1, 20, 20)
    (tmp_path / "b").mkdir()
    Image.open(folder / "0.png").save(tmp_path / "0.png")
    Image.open(folder / "1.png").save(tmp_path / "b" / "0.png")
    train, test = make([tmp_path / "0.png", str(tmp_path / "b" / "0.png")])
    assert train.sources != test.sources


def scaled(factor: float) -> Denoising:
    physics = denoising()
    physics.A = lambda x, **_: x * factor
    return physics


class Picky(LinearPhysics):
    def A(self, x, **_):
        return x + torch.zeros(1, 1, 99, 99)


BAD = {
    "size": ({"size": 0}, "size: given 0; expected a whole number >= 1"),
    "size float": ({"size": 16.0}, "size: given 16.0"),
    "split": ({"split": (0, 0)}, "at least one crop"),
    "split negative": ({"split": (4, -1)}, "split: given -1"),
    "split number": ({"split": 24}, "split: given 24; expected two numbers"),
    "seed": ({"seed": None}, "seed: given None"),
    "seed bool": ({"seed": True}, "seed: given True"),
    "channels": ({"channels": 2}, "channels: given 2"),
    "scale": ({"scale": 0.0}, "scale: given 0.0"),
    "scale up": ({"scale": 2.0}, "scale: given 2.0"),
    "too large a crop": (
        {"size": 41},
        r"7 files that cannot be used: 0.png \(an image of 40 x 50 pixels, .* at least 41 x 41",
    ),
    "scaled too small": (
        {"scale": 0.3},
        r"12 x 15 pixels \(of 40 x 50, at scale 0.3\).*larger scale",
    ),
    "too many crops": ({"size": 40, "split": (78, 1)}, "split: given .* expected at most 11"),
    "no folder": ({"source": "no/such/folder"}, "no such folder"),
    "no list": ({"source": []}, "source: given an empty list"),
    "numbers": ({"source": [1, 2]}, r"source: given \[1, 2\]"),
    "none": ({"source": None}, "source: given None"),
    "large photographs": ({"source": "natural", "size": 400}, "at least 400 x 400 pixels"),
    "scaled phantoms": ({"source": "phantoms", "scale": 0.5}, 'scale: given 0.5 with "phantoms"'),
    "physics": (
        {"physics": GaussianNoise(0.1)},
        "physics: given GaussianNoise; expected a deepinv",
    ),
    "physics size": ({"physics": Picky()}, r"fails on an image of shape \(1, 1, 16, 16\)"),
    "stacked": (
        {"physics": StackedLinearPhysics([denoising(), denoising()])},
        "answers .* with TensorList",
    ),
    "nan": ({"physics": scaled(float("nan"))}, "y: given NaN or Inf in image 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, folder):
    options, message = BAD[case]
    arguments = {
        "source": folder,
        "physics": denoising(),
        "size": 16,
        "split": (10, 4),
        "seed": 0,
    } | options
    with pytest.raises(InputError, match=message):
        pairs(arguments.pop("source"), arguments.pop("physics"), **arguments)


def test_bad_lists(folder, tmp_path):
    files = sorted(folder.iterdir())
    with pytest.raises(InputError, match="one photograph"):
        make(files[:1])
    with pytest.raises(InputError, match=r"0\.png twice"):
        make([files[0], files[1], folder / ".." / folder.name / "0.png"])
    Image.open(files[0]).save(tmp_path / "copy.png")
    with pytest.raises(InputError, match="the same picture as"):
        make([files[0], tmp_path / "copy.png"])


def test_indexing(folder):
    train, _ = make(folder)
    assert (
        len(train[3]) == 1
        and torch.equal(train[3].x, train.x[3:4])
        and train[3].names == train.names[3:4]
    )
    assert train[-1].names == train.names[-1:]
    assert train[2:5].names == train.names[2:5] and train[::-1].names == train.names[::-1]
    for index in (torch.tensor([4, 1]), [4, 1], (4, 1)):
        assert train[index].names == (train.names[4], train.names[1])
        assert torch.equal(train[index].y, train.y[[4, 1]])
    mask = torch.arange(10) % 2 == 0
    assert train[mask].names == train.names[::2]
    assert [one.names[0] for one in train] == list(train.names)
    assert len(train[:0]) == 0 and list(train[:0].batches(2, seed=0)) == []
    for index in (10, -11, [0, 10]):
        with pytest.raises(IndexError, match="out of range for 10 pairs"):
            train[index]
    for index in (1.5, "a", [True, False], torch.tensor([0.5]), torch.tensor([True])):
        with pytest.raises(InputError, match="index"):
            train[index]


def test_batches(folder):
    train, _ = make(folder)
    batches = list(train.batches(4, seed=0))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    names = [name for batch in batches for name in batch.names]
    assert sorted(names) == sorted(train.names) and names != list(train.names)
    assert [name for batch in train.batches(4, seed=0) for name in batch.names] == names
    assert [name for batch in train.batches(4, seed=1) for name in batch.names] != names
    for batch in batches:
        for one in batch:
            assert torch.equal(one.y[0], train.y[train.names.index(one.names[0])])
    for size, seed in ((0, 0), (2.5, 0), (4, None)):
        with pytest.raises(InputError):
            train.batches(size, seed)


def test_to_copies_the_physics(folder):
    physics = BlurFFT((1, 16, 16), filter=torch.rand(1, 1, 3, 3), noise_model=GaussianNoise(0.1))
    train, _ = make(folder, physics)
    double = train.to(dtype=torch.float64)
    assert double.x.dtype == double.y.dtype == torch.float64
    assert physics.noise_model.sigma.dtype == torch.float32 and double.physics is not physics
    torch.testing.assert_close(double.physics.A(double.x).float(), physics.A(train.x))
    assert train.to(dtype=torch.float32) is train and train.to(device="cpu") is train
    with pytest.raises(InputError, match=r"dtype: given torch\.float16"):
        train.to(dtype=torch.float16)


def test_repr(folder):
    images = "10 image(s) of 1 x 16 x 16 from 4 source(s)"
    measurements = "measurements of 1 x 16 x 16 by Denoising"
    assert repr(make(folder, seed=3)[0]) == f"Pairs({images}; {measurements}, seed 3)"


X = torch.zeros(2, 1, 20, 20)


@pytest.mark.parametrize(
    ("x", "y", "names", "message"),
    [
        (X[0], X, ("a", "b"), r"x: given shape \(1, 20, 20\)"),
        (X, X[:1], ("a", "b"), "y: given shape .* expected 2 measurements"),
        (X, X, ("a",), "names: given 1 names; expected 2"),
        (X.int(), X, ("a", "b"), "x: given torch.int32"),
        (X.numpy(), X, ("a", "b"), "x: given ndarray"),
        (X * torch.nan, X, ("a", "b"), "x: given NaN or Inf"),
        (X, X + torch.inf, ("a", "b"), "y: given NaN or Inf"),
        (X, torch.full((2, 3), complex(0, float("nan"))), ("a", "b"), "y: given NaN or Inf"),
    ],
)
def test_bad_pairs(x, y, names, message):
    with pytest.raises(InputError, match=message):
        Pairs(x, y, denoising(), names)
