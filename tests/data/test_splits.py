"""Sides of a split: the same crops as ever, three of them, groups that stay together, sources of
their own, and every useless file named at once.
"""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from deepinv.physics import Denoising, GaussianNoise
from PIL import Image
from tests.data.image_files import picture

from learnreg.core.errors import DataWarning, InputError
from learnreg.data import Pairs, gather, images, load_image, natural_photographs, pairs, phantoms
from learnreg.data.seeds import generator


def make(source, split=(6, 4), *, seed=0, size=12, **options):
    return pairs(
        source, Denoising(GaussianNoise(0.1)), size=size, split=split, seed=seed, **options
    )


def save(path, seed, height=24, width=32):
    path.parent.mkdir(exist_ok=True)
    pixels = (picture(height, width, seed=seed) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photographs")
    for i in range(9):
        save(path / f"p{i // 3}_{i}.png", i)
    return path


# --- two sides, as ever ---------------------------------------------------------------------------


def as_ever(names, shapes, split, size, seed):
    """The rule of the first release, written out: shuffle, deal, then one place after another."""
    n_train, n_test = split
    order = torch.randperm(len(names), generator=generator(seed, "deal")).tolist()
    shuffled = [names[i] for i in order]
    k = 0 if n_test == 0 else len(names)
    if n_train and n_test:
        k = min(
            max(math.ceil(len(names) * n_test / sum(split)), min(3, len(names) // 2)),
            len(names) - 1,
        )
    sides = []
    for photos, n in ((shuffled[k:][:n_train], n_train), (shuffled[:k][:n_test], n_test)):
        rngs = {name: generator(seed, "crop", name) for name in photos}
        crops = []
        for i in range(n):
            name = photos[i % len(photos)]
            columns = shapes[name][1] - size + 1
            while True:  # lively pictures: only a window that was there already is drawn again
                rows = shapes[name][0] - size + 1
                index = int(torch.randint(rows * columns, (), generator=rngs[name]))
                crop = f"{name}@{index // columns},{index % columns}"
                if crop not in crops:
                    break
            crops.append(crop)
        sides.append(tuple(crops))
    return tuple(sides)


@pytest.mark.parametrize("split", [(6, 4), (24, 8), (5, 0), (0, 5), (1, 1), (2, 12)])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_same_seed_gives_the_same_crops_as_ever(folder, split, seed):
    shapes = {path.name: load_image(path).shape[1:] for path in sorted(folder.iterdir())}
    train, test = make(folder, split, seed=seed)
    assert (train.names, test.names) == as_ever(list(shapes), shapes, split, 12, seed)


# --- three sides ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["folder", "natural", "phantoms"])
@pytest.mark.parametrize("seed", range(3))
def test_three_sides_share_nothing_and_the_test_side_stays(folder, source, seed):
    source = folder if source == "folder" else source
    train, validation, test = sides = make(source, (6, 3, 4), seed=seed)
    assert [len(side) for side in sides] == [6, 3, 4]
    assert sides.validation is validation and isinstance(validation, Pairs)
    assert not set(train.sources) & set(validation.sources)
    assert not set(test.sources) & {*train.sources, *validation.sources}
    two_train, two_test = make(source, (6, 4), seed=seed)
    assert torch.equal(test.y, two_test.y)
    assert set(train.sources) <= set(two_train.sources)


@pytest.mark.parametrize("split", [(6, 0, 4), (0, 3, 4), (6, 3, 0), (0, 3, 0)])
def test_some_of_three_sides_may_be_empty(folder, split):
    assert tuple(len(side) for side in make(folder, split)) == split


def test_three_sides_need_three_photographs(folder):
    files = sorted(folder.iterdir())
    assert [len(side) for side in make(files[:3], (6, 3, 4))] == [6, 3, 4]
    with pytest.raises(InputError, match=r"two photographs for training, validation and test"):
        make(files[:2], (6, 3, 4))
    for split in ((1, 2, 3, 4), (1,), (0, 0, 0)):
        with pytest.raises(InputError, match="split: given"):
            make(folder, split)


# --- groups and sources ---------------------------------------------------------------------------


@pytest.mark.parametrize("group", [r"^(p\d+)_", r"^p\d+"])
@pytest.mark.parametrize("split", [(6, 4), (6, 3, 4), (20, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_groups_stay_together(folder, group, split, seed):
    sides = make(folder, split, seed=seed, group=group)
    patients = [{name[:2] for name in side.sources} for side in sides]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 3
    assert [len(side) for side in sides] == list(split)


def test_a_side_shows_all_its_groups_first(folder):
    train, _ = make(folder, (3, 0), group=r"^p\d")
    assert {name[:2] for name in train.sources} == {"p0", "p1", "p2"}


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ("(", "group: given '\\('.*a regular expression"),
        (7, "group: given 7"),
        ("^p0", "does not match p1_3.png"),
        ("png$", "one group"),
    ],
)
def test_bad_groups(folder, group, words):
    with pytest.raises(InputError, match=words):
        make(folder, group=group)


def test_sources_of_their_own(folder, tmp_path):
    for i in range(3):
        save(tmp_path / "other" / f"p0_{i}.png", 100 + i)  # names as in the first folder
    other = tmp_path / "other"
    train, test = make(folder, (12, 5), test_source=other)
    assert len(train.sources) == 9 and len(test.sources) == 3
    assert not set(train.sources) & set(test.sources)
    assert all(str(other) in name for name in test.names)
    sides = make(folder, (9, 2, 3), validation_source=other, test_source="phantoms")
    assert len(sides.train.sources) == 9 and len(sides.validation.sources) == 2
    assert sides.test.sources == ("phantom-0", "phantom-1", "phantom-2")
    train, test = make("phantoms", (4, 3), test_source=other)
    assert len(train.sources) == 4 and set(test.sources) == {f"p0_{i}.png" for i in range(3)}


def test_sources_must_not_overlap(folder, tmp_path):
    with pytest.raises(InputError, match=r"p0_0\.png twice"):
        make(folder, test_source=[folder / "p0_0.png"])
    save(tmp_path / "p0_100.png", 100)
    with pytest.raises(InputError, match=r"group: given 'p0' of .*training.* and of .*test"):
        make(folder, (9, 1), test_source=tmp_path, group=r"p\d")
    with pytest.raises(InputError, match=r"test_source: given .* for 0 crops"):
        make(folder, (5, 0), test_source=tmp_path)


# --- useless files --------------------------------------------------------------------------------


@pytest.fixture
def mixed(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save(tmp_path / "thumb.png", 50, 8, 10)
    save(tmp_path / "tiny.png", 51, 11, 40)
    return tmp_path


def test_all_small_files_are_named_at_once(mixed):
    with pytest.raises(InputError) as caught:
        make(mixed, (30, 11))
    message = str(caught.value)
    assert "thumb.png (an image of 8 x 10" in message and "tiny.png (an image of 11 x 40" in message
    assert "at least 12 x 12" in message and "skip_small" in message and "p0_0" not in message


def test_and_before_a_photograph_is_decoded(mixed, monkeypatch):
    monkeypatch.setattr(gather, "as_image", lambda *_: pytest.fail("read whole"))
    monkeypatch.setattr(gather, "auto_levels", lambda *_: pytest.fail("read whole"))
    for levels in (None, "auto"):
        with pytest.raises(InputError, match="thumb"):
            make(mixed, (30, 11), range=levels)


def test_small_files_can_be_skipped(mixed, folder):
    with pytest.warns(DataWarning, match=r"thumb\.png, tiny\.png: smaller than a crop .*left out"):
        skipped = make(mixed, (30, 11), skip_small=True)
    for one, other in zip(skipped, make(folder, (30, 11)), strict=True):
        assert torch.equal(one.y, other.y)
    with pytest.raises(InputError, match=r"11 files that cannot be used.*at least 25 x 25"):
        make(mixed, size=25, skip_small=True)


def test_unreadable_files_are_named_at_once(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cut1.png").write_bytes((folder / "p0_0.png").read_bytes()[:300])
    (tmp_path / "cut2.png").write_bytes((folder / "p0_1.png").read_bytes()[:300])
    with pytest.raises(InputError, match=r"2 files that cannot be used: .*cut.*300 bytes.*cut"):
        make(tmp_path, (30, 11))
    (tmp_path / "text.png").write_text("no picture")  # its header is no header already
    save(tmp_path / "thumb.png", 50, 8, 10)
    with pytest.raises(InputError, match="4 files that cannot be used") as caught:
        make(tmp_path, (30, 13))
    assert all(f"{name}.png (" in str(caught.value) for name in ("cut1", "cut2", "text", "thumb"))


# --- colour ---------------------------------------------------------------------------------------


def test_natural_colour_photographs():
    train, test = make("natural", (10, 5), size=48, channels=3)
    assert {*train.sources, *test.sources} == set(images.NATURAL) - set(images.GREY)
    assert train.x.shape == (10, 3, 48, 48)
    assert all(float(x.std(0).max()) > 0.02 for x in [*train.x, *test.x])


def test_grey_names_those_without_colour():
    for name in natural_photographs():
        red, green, _ = load_image(images.natural_file(name), 3)
        assert torch.equal(red, green) == (name in images.GREY)


@pytest.mark.parametrize("stored", ["L", "RGB"])
def test_grey_among_colour_is_named(tmp_path, stored):
    for i in range(3):
        bands = [picture(seed=3 * i + k) for k in range(3)]
        pixels = (np.stack(bands, axis=-1) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    pixels = (picture(seed=20) * 255).astype(np.uint8)
    Image.fromarray(pixels).convert(stored).save(tmp_path / "grey.png")
    with pytest.warns(DataWarning, match=r"^grey\.png: grey among images of 3 channels"):
        make(tmp_path, channels=3)


def test_colour_phantoms():
    train, _ = make("phantoms", (3, 2), channels=3)
    assert train.x.shape == (3, 3, 12, 12)
    assert float((train.x[:, 0] - train.x[:, 1]).abs().max()) > 0.1
    assert torch.equal(phantoms(2, 16, 0, 3), phantoms(5, 16, 0, 3)[:2])
    with pytest.raises(InputError, match="channels"):
        phantoms(2, 16, 0, 0)


# --- memory ---------------------------------------------------------------------------------------


def test_photographs_are_held_one_at_a_time(folder, monkeypatch):
    alive, most, read = weakref.WeakSet(), 0, gather.read_raw

    def counted(path, page=None):
        nonlocal most
        raw = read(path, page)
        alive.add(raw)
        most = max(most, len(alive))
        return raw

    monkeypatch.setattr(gather, "read_raw", counted)
    train, test = make(folder, (30, 11))
    assert len(train.sources) + len(test.sources) == 9 and most <= 2
    assert train.x.untyped_storage().nbytes() == train.x.numel() * 4
