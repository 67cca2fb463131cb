"""Measured pairs: matched, dealt, brought into the form of their physics, and looked at."""

from __future__ import annotations

import warnings
from pathlib import Path

import deepinv as dinv
import numpy as np
import pytest
import torch
from PIL import Image

from learnreg.core.errors import DataWarning, InputError
from learnreg.core.measured import Measured
from learnreg.data import Pairs, measured, phantoms

SIZE = 24


class Projections(dinv.physics.LinearPhysics):
    """Sums along both axes and both diagonals, in more numbers than pixels of a row: (1, 5, 24)."""

    def A(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        if x.shape[-2:] != (SIZE, SIZE):
            raise RuntimeError(f"made for {SIZE} x {SIZE}")
        rolled = torch.stack([x[..., i, :].roll(i, -1) for i in range(SIZE)], -2)
        ramp = torch.linspace(0, 1, SIZE).to(x)
        parts = [x.sum(-1), x.sum(-2), rolled.sum(-2), (x * ramp).sum(-1), (x * ramp).sum(-2)]
        return torch.stack(parts, dim=-2)

    def A_adjoint(self, y: torch.Tensor, **_: object) -> torch.Tensor:
        x = torch.zeros(*y.shape[:-2], SIZE, SIZE, dtype=y.dtype, requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.A(x), x, y)
        return found


def images(n: int = 5) -> torch.Tensor:
    return phantoms(n, SIZE, 0)


def save(folder: Path, names: list[str], arrays: torch.Tensor, suffix: str = ".npy") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        if suffix == ".png":
            levels = (array.squeeze() * 255).round().numpy().astype(np.uint8)
            Image.fromarray(levels).save(folder / f"{name}.png")
        else:
            np.save(folder / f"{name}.npy", array.numpy())
    return folder


NAMES = [f"p{i}" for i in range(5)]


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_folders_are_matched_by_name(tmp_path: Path, suffix: str) -> None:
    x, physics = images(), Projections()
    order = [3, 1, 4, 0, 2]
    truth = save(tmp_path / "x", NAMES, x[:, 0], suffix)
    sinograms = save(tmp_path / "y", [NAMES[i] for i in order], physics.A(x)[order][:, 0])

    train, test = measured(truth, sinograms, physics, split=(3, 2))

    assert len(train) == 3 and len(test) == 2
    assert sorted(train.names + test.names) == NAMES
    for pair in (*train, *test):
        number = NAMES.index(pair.names[0])
        assert torch.allclose(pair.x[0], x[number], atol=1 / 255)
        assert torch.allclose(pair.y[0], physics.A(x)[number], atol=1e-5)


def test_files_lists_and_tensors_are_matched_by_place(tmp_path: Path) -> None:
    x, physics = images(), Projections()
    y = physics.A(x)
    np.savez(tmp_path / "all.npz", x=x[:, 0].numpy(), y=y[:, 0].numpy())
    files = [
        [str(folder / f"{name}.npy") for name in names]
        for folder, names in (
            (save(tmp_path / "x", NAMES, x), NAMES),
            (save(tmp_path / "y", [f"s{n}" for n in NAMES], y), [f"s{n}" for n in NAMES]),
        )
    ]
    found = [
        measured(f"{tmp_path}/all.npz:x", f"{tmp_path}/all.npz:y", physics, split=(1.0, 0.0)),
        measured(*files, physics, split=(1.0, 0.0)),
        measured(x, y, physics, split=(1.0, 0.0)),
    ]

    for train, test in found:
        assert len(test) == 0
        assert torch.equal(train.x, found[0][0].x) and torch.equal(train.y, found[0][0].y)


def test_arrays_of_numpy_are_tensors() -> None:
    x = images()

    train, _ = measured(x.numpy(), x.double().numpy(), dinv.physics.Denoising(), split=(5, 0))

    assert torch.equal(train.x, measured(x, x, dinv.physics.Denoising(), split=(5, 0))[0].x)
    assert torch.equal(train.x, train.y)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_on_both_sides(tmp_path: Path, channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    for folder, suffix in (("x", "png"), ("y", "bmp")):
        (tmp_path / folder).mkdir()
        Image.fromarray(levels).save(tmp_path / folder / f"a.{suffix}")

    physics = dinv.physics.Denoising()
    train, _ = measured(tmp_path / "x", tmp_path / "y", physics, channels=channels)

    assert train.x.shape == (1, channels, SIZE, SIZE) and torch.equal(train.x, train.y)


def test_a_stacked_physics_is_sent_to_datasets() -> None:
    x, physics = images(), dinv.physics.Denoising()
    with pytest.raises(
        InputError, match=r"physics: given measurements of type TensorList.*Dataset"
    ):
        measured(x, x, dinv.physics.stack(physics, physics))


def test_all_unmatched_files_stand_in_one_message(tmp_path: Path) -> None:
    x = images()
    truth = save(tmp_path / "x", [*NAMES[:3], "u", "v"], x)
    noisy = save(tmp_path / "y", [*NAMES[:3], "p7", "w"], x)

    with pytest.raises(InputError) as error:
        measured(truth, noisy, dinv.physics.Denoising())

    assert all(f"{name}" in str(error.value) for name in ("u", "v", "p7", "w"))
    assert "2 of measurements" in str(error.value) and "2 of images" in str(error.value)


def test_sources_that_do_not_go_together(tmp_path: Path) -> None:
    x, physics = images(), dinv.physics.Denoising()
    folder = save(tmp_path / "x", NAMES, x)
    np.save(tmp_path / "y.npy", x.numpy())
    (tmp_path / "empty").mkdir()
    save(tmp_path / "double", ["a"], x[:1], ".png")
    save(tmp_path / "double", ["a"], x[:1])

    for given, other, words in (
        (folder, tmp_path / "y.npy", "a folder and rows|rows of one array and a folder"),
        (x, x[:3], "5|3"),
        (tmp_path / "empty", folder, "no file"),
        (tmp_path / "nowhere", folder, "no such file"),
        ([], folder, "an empty list"),
        ([str(tmp_path / "no.npy")], folder, "no such file"),
        (tmp_path / "double", folder, "a.npy and a.png"),
        (folder / "p0.npy", folder, "rows of one array"),
        (3, folder, "a folder, a file, a list of files or a tensor"),
    ):
        with pytest.raises(InputError, match=words):
            measured(given, other, physics)  # type: ignore[call-overload]


def test_only_what_is_used_is_read(tmp_path: Path) -> None:
    x = images()
    truth, noisy = save(tmp_path / "x", NAMES, x), save(tmp_path / "y", NAMES, x)
    train, test = measured(truth, noisy, dinv.physics.Denoising(), split=(2, 1))
    used = {*train.names, *test.names}
    for name in NAMES:
        if name not in used:
            (truth / f"{name}.npy").write_bytes(b"rubbish")

    again, _ = measured(truth, noisy, dinv.physics.Denoising(), split=(2, 1))

    assert again.names == train.names


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_stay_together(seed: int) -> None:
    x = images(12)
    physics = dinv.physics.Denoising()
    names = [f"{patient}_{i}" for patient in "abcd" for i in range(3)]

    def group(name: str) -> str:
        return names[int(name[13:-1])][0]

    sides = measured(x, x, physics, split=(0.5, 0.25, 0.25), seed=seed, group=group)
    again = measured(x, x, physics, split=(0.5, 0.25, 0.25), seed=seed, group=group)

    patients = [{group(name) for name in side.names} for side in sides]
    assert [len(side) for side in sides] == [6, 3, 3]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 4
    assert [side.names for side in sides] == [side.names for side in again]


@pytest.mark.parametrize(
    "split, sizes",
    [
        (None, (4, 1)),
        ((3, 2), (3, 2)),
        ((2, 1), (2, 1)),
        ((0.5, 0.5), (2, 2)),
        ((1.0, 0.0), (5, 0)),
        ((0, 5), (0, 5)),
        ((None, 2), (3, 2)),
        ((0.6, 0.2, 0.2), (3, 1, 1)),
        ((None, 1, 1), (3, 1, 1)),
        ((np.int64(3), np.int64(2)), (3, 2)),
    ],
)
def test_splits(split: tuple[int, int] | None, sizes: tuple[int, ...]) -> None:
    x = images()

    sides = measured(x, x, dinv.physics.Denoising(), split=split)

    assert tuple(map(len, sides)) == sizes or (split == (0.5, 0.5) and sum(map(len, sides)) >= 4)
    names = [name for side in sides for name in side.names]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "split",
    [(0, 0), (6, 0), (3, 3), (-1, 2), (0.9, 0.2), (0.5, 2), (None, None), 3, (1,), "32", (True, 1)],
)
def test_splits_that_are_none(split: object) -> None:
    x = images()
    with pytest.raises(InputError, match="split"):
        measured(x, x, dinv.physics.Denoising(), split=split)  # type: ignore[call-overload]


# --- forms ----------------------------------------------------------------------------------------


def mri(size: int = 16) -> tuple[dinv.physics.MRI, torch.Tensor, torch.Tensor]:
    """An MRI physics, complex images (n, h, w) and their k-space (n, h, w)."""
    physics = dinv.physics.MRI(mask=torch.ones(size, size), img_size=(2, size, size))
    x = torch.complex(*phantoms(6, size, 0)[:, 0].chunk(2))
    y = physics.A(torch.stack([x.real, x.imag], 1))
    return physics, x, torch.complex(y[:, 0], y[:, 1])


@pytest.mark.parametrize("parts", [False, True])
def test_complex_numbers_become_the_channels_of_mri(parts: bool) -> None:
    physics, x, y = mri()
    given = torch.stack([x.real, x.imag], 1) if parts else x

    train, _ = measured(given, y, physics, split=(1.0, 0.0))

    assert train.x.shape == train.y.shape == (3, 2, 16, 16)
    assert torch.allclose(physics.A(train.x), train.y, atol=1e-5)


def test_colour_in_the_last_axis() -> None:
    x = images(6).reshape(2, 3, SIZE, SIZE)
    last = x.movedim(1, -1)

    for y in (x, last):
        train, _ = measured(last, y, dinv.physics.Denoising(), split=(2, 0))
        assert all(torch.equal(train.x[i], x[int(n[13:-1])]) for i, n in enumerate(train.names))
        assert torch.equal(train.x, train.y)


def test_volumes_get_their_channel() -> None:
    x = torch.rand(2, 10, 11, 12)

    train, _ = measured(x, x, dinv.physics.Denoising(), split=(2, 0))

    assert train.x.shape == train.y.shape == (2, 1, 10, 11, 12)


@pytest.mark.parametrize("shape", [(5, SIZE), (1, 5, SIZE), (1, 1, 5, SIZE)])
def test_axes_of_length_one_come_and_go(shape: tuple[int, ...]) -> None:
    x, physics = images(), Projections()

    train, _ = measured(x, physics.A(x).reshape(5, *shape), physics, split=(5, 0))

    assert train.y.shape == (5, 1, 5, SIZE)


def test_shapes_that_do_not_fit_are_explained() -> None:
    x, physics = images(), Projections()
    y = physics.A(x)
    for given, other, words in (
        (x, y.mT, "the other way round"),
        (x, y[..., :20], r"expected \(1, 5, 24\).*Build the physics"),
        (x[..., :20], y, "made for 24 x 24.*img_size"),
        (x, y.to(torch.complex64), "complex64; expected"),
    ):
        with pytest.raises(InputError, match=words):
            measured(given, other, physics)
    with pytest.raises(InputError, match="channels = 3"):
        measured(x, y, physics, channels=3)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    x = images(3)
    truth, noisy = save(tmp_path / "x", NAMES[:3], x), save(tmp_path / "y", NAMES[:3], x)
    for folder in (truth, noisy):
        np.save(folder / "p1.npy", x[1, :, :20].numpy())

    with pytest.raises(InputError, match=r"p\d\.npy.*as in .*p\d\.npy"):
        measured(truth, noisy, dinv.physics.Denoising(), split=(3, 0))


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    x = images(3)
    truth = save(tmp_path / "x", NAMES[:3], x)
    x[1, 0, 3, 3] = torch.nan
    noisy = save(tmp_path / "y", NAMES[:3], x)

    with pytest.raises(InputError, match=r"p1\.npy: given NaN"):
        measured(truth, noisy, dinv.physics.Denoising(), split=(3, 0))


def test_parameters_of_every_image() -> None:
    x = images()
    masks = (torch.rand(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    physics = dinv.physics.Inpainting(img_size=(1, SIZE, SIZE), mask=torch.ones(1, SIZE, SIZE))
    before = physics.mask.clone()

    train, test = measured(x, x * masks, physics, split=(3, 2), params={"mask": masks})

    for pair in (*train, *test):
        assert torch.equal(pair.y, pair.x * pair.params["mask"])
    assert torch.equal(physics.mask, before)


def test_factors_and_types() -> None:
    x = images()
    train, _ = measured(
        (x * 255).to(torch.uint8),
        x * 10,
        dinv.physics.Denoising(),
        image_factor=1 / 255,
        measurement_factor=0.1,
        dtype=torch.float64,
    )

    assert train.x.dtype == train.y.dtype == torch.float64
    assert float((train.x - train.y).abs().max()) <= 1 / 255


# --- without images, and large ones ---------------------------------------------------------------


def test_measurements_alone_are_learned_from() -> None:
    import learnreg as lr

    x = images()
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))

    train, test = measured(None, y[:, 0], physics, split=(4, 1))

    assert isinstance(train, Measured) and len(train) == 4 and len(test) == 1
    energy = lr.Energy(physics, lr.regularizers.TV())
    assert lr.BilevelProblem(energy, train, loss=lr.SURE(sigma=0.1)).size >= 4
    with pytest.raises(InputError, match="a measurement that Projections makes"):
        measured(None, y[..., :10], Projections())
    kspace = mri()[2]
    assert measured(None, kspace, mri()[0], split=(3, 0))[0].tensors[0].shape == (3, 2, 16, 16)


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (5_000, SIZE, SIZE)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, shape).flush()
    monkeypatch.setattr("learnreg.core.memory.free_memory", lambda: 10_000_000)

    with pytest.raises(InputError, match=r"5000 pairs.*split=\(n_train, n_test\)"):
        measured(tmp_path / "x.npy", tmp_path / "x.npy", dinv.physics.Denoising(), split=(1.0, 0.0))


# --- plausible ------------------------------------------------------------------------------------


def shifted(x: torch.Tensor) -> torch.Tensor:
    """Images that no flip leaves as they are."""
    return x * torch.linspace(0.2, 1, SIZE) * torch.linspace(0.5, 1, SIZE)[:, None]


@pytest.mark.parametrize("factor", [1000.0, 1e-3, -1.0])
def test_a_factor_is_found(factor: float) -> None:
    x, physics = shifted(images()), Projections()
    with pytest.warns(DataWarning, match=f"measurement_factor = {1 / factor:.4g} would"):
        measured(x, factor * physics.A(x), physics)


@pytest.mark.parametrize(
    "turn, words",
    [
        (lambda x: x.flip(-1), "flipped along the last axis it"),
        (lambda x: x.flip(-2), "flipped along the last axis but one"),
        (lambda x: x.mT, "transposed"),
        (lambda x: x.flip((-2, -1)), "turned by 180 degrees"),
        (lambda x: 100 * x.flip(-1), "flipped along the last axis and y = "),
    ],
)
def test_a_turn_is_found(turn: object, words: str) -> None:
    x, physics = shifted(images()), Projections()
    with pytest.warns(DataWarning, match=words):
        measured(turn(x), physics.A(x), physics)  # type: ignore[operator]


def test_strangers_are_named() -> None:
    x, physics = images(), dinv.physics.Denoising()
    y = x.clone()
    y[2] = 1 - x[2].flip(-1) + torch.rand(x[2].shape)
    with pytest.warns(DataWarning, match=r"above 0.5 for measurements\[2\]\. Check"):
        measured(x, y, physics, split=(5, 0))
    with pytest.warns(DataWarning, match="No factor or turn"):
        measured(torch.rand(4, 8, 8) - 0.5, torch.rand(4, 8, 8) - 0.5, physics)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.2])
def test_good_pairs_are_taken_without_a_word(sigma: float) -> None:
    x, physics = shifted(images()), Projections()
    y = physics.A(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(x, y + sigma * y.abs().mean() * torch.randn_like(y), physics)
        measured(torch.zeros(2, SIZE, SIZE), torch.zeros(2, 5, SIZE), physics, split=(2, 0))


def test_copies_on_two_sides_are_warned_of() -> None:
    x = images()
    with pytest.warns(DataWarning, match="two sides"):
        measured(torch.cat([x, x]), torch.cat([x, x]), dinv.physics.Denoising(), split=(5, 5))


def test_settings_are_checked() -> None:
    x, physics = images(), dinv.physics.Denoising()
    for changes in (
        {"channels": 0},
        {"channels": True},
        {"image_factor": 0.0},
        {"measurement_factor": float("nan")},
        {"dtype": torch.float16},
        {"seed": -1},
        {"physics": "CT"},
    ):
        with pytest.raises(InputError, match=next(iter(changes))):
            measured(x, x, **{"physics": physics, **changes})  # type: ignore[call-overload]


def test_names_lead_back_to_files(tmp_path: Path) -> None:
    x = images()
    truth = save(tmp_path / "x", NAMES, x)

    train, _ = measured(truth, truth, dinv.physics.Denoising(), split=(5, 0))

    assert isinstance(train, Pairs) and set(train.sources) == set(NAMES)
