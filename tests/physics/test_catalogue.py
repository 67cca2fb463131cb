"""Physics and noise by name: what is built is an operator that solves, or is refused in words."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

import learnreg as lr
from learnreg import physics as P
from learnreg.core.errors import InputError

SIZE = 24
CASES = {
    "denoising": (P.Denoising(), 1),
    "blur": (P.Blur(width=1.0), 1),
    "blur, turned": (P.Blur(width=1.0, across=0.5, angle=30, padding="circular"), 3),
    "out of focus": (P.Blur("disk", width=2.0, padding="replicate"), 1),
    "box": (P.Blur("box", width=1.0, padding="valid"), 1),
    "motion": (P.Blur("motion", width=3.0, angle=45, padding="constant"), 1),
    "inpainting": (P.Inpainting(0.4), 3),
    "superresolution": (P.SuperResolution(), 1),
    "superresolution by 3": (P.SuperResolution(3, "gaussian", "circular"), 3),
    "demosaicing": (P.Demosaicing(), 3),
    "MRI": (P.MRI(), 1),
    "MRI, complex": (P.MRI(mask="uniform"), 2),
    "MRI, spokes": (P.MRI(mask="radial"), 1),
    "MRI, coils": (P.MRI(mask="equispaced", coils=3), 1),
    "MRI, coils, complex": (P.MRI(coils=2), 2),
    "CT": (P.CT(12), 1),
    "CT, fan": (P.CT(12, "fan"), 1),
    "CT, plain": (P.CT(9, arc=90, normalized=False), 1),
    "PET": (P.PET(12), 1),
    "PET, attenuated": (P.PET(12, attenuation=1.5), 1),
    "PET, blurred": (P.PET(12, attenuation=1.0, resolution=2.0), 1),
}


def images(channels: int) -> torch.Tensor:
    return lr.data.phantoms(2, SIZE, 0, channels)


def built(name: str, **options: object) -> torch.nn.Module:
    setup, channels = CASES[name]
    return setup.build((SIZE, SIZE), channels, **options)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"CT, plain"}))
def test_what_is_built_passes_the_probes_and_solves(name):
    channels = CASES[name][1]
    physics, x = built(name), images(channels)
    torch.manual_seed(0)
    y = physics(x)
    energy = lr.Energy(physics, lr.regularizers.TV(0.01) + lr.regularizers.Tikhonov(1e-2))
    solution = lr.solve(energy, y, 0.1)
    assert solution.ok and solution.value.shape == x.shape
    lr.testing.check_operator(physics, x)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"CT, plain"}))
def test_it_has_the_norm_that_weights_are_made_for(name):
    physics = built(name)
    norm = lr.operators.LinearMap(physics).spectrum(images(CASES[name][1])).L.value ** 0.5
    assert 0.3 < norm < 1.1


@pytest.mark.parametrize("name", CASES)
def test_the_same_settings_give_the_same_operator(name):
    """Whatever random numbers were drawn before, and without drawing any of them."""
    torch.manual_seed(1)
    one = built(name, seed=2)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    other = built(name, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    x = images(CASES[name][1])
    assert torch.equal(one.A(x), other.A(x))


@pytest.mark.parametrize("name", ["inpainting", "MRI", "MRI, complex", "MRI, coils"])
def test_masks_are_those_of_the_seed(name):
    one, same, other = (built(name, seed=s).A(images(CASES[name][1])) for s in (3, 3, 4))
    assert one.equal(same) and not one.equal(other)


@pytest.mark.parametrize("name", sorted(P.SETUPS))
def test_what_is_built_does_not_depend_on_the_global_generator_and_leaves_it(name):
    """Two runs of one file have the same operator to the last digit, or none could be resumed."""
    channels = (P.SETUPS[name].colours or (1,))[0]
    x = torch.rand(1, channels, 24, 24, generator=torch.Generator().manual_seed(3))
    seen = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        physics = P.SETUPS[name]().build((24, 24), channels, seed=0)
        assert torch.get_rng_state().equal(before)
        seen.append(physics.A(x))
    assert seen[0].equal(seen[1])


def test_settings_are_fields_of_frozen_dataclasses_with_a_description():
    from learnreg.cli.sections import comments_of

    for kind in (*P.SETUPS.values(), *P.NOISES.values()):
        assert isinstance(hash(kind()), int)
        assert set(comments_of(kind)) == {f.name for f in fields(kind)}


@pytest.mark.parametrize("acceleration", [2, 4])
@pytest.mark.parametrize("mask", ["gaussian", "uniform", "equispaced", "radial"])
def test_masks_measure_the_share_that_is_asked_for(mask, acceleration):
    physics = P.MRI(acceleration, mask).build((64, 64), 2)
    assert float(physics.mask.mean()) == pytest.approx(1 / acceleration, rel=0.25)
    middle = physics.mask[0, 0, 30:34, 32]
    assert middle.all()


@pytest.mark.parametrize("kernel", ["gaussian", "disk", "box", "motion"])
def test_kernels_are_centred_means(kernel):
    filter = P.Blur(kernel, width=2.0, angle=20).filter()[0, 0]
    assert filter.sum() == pytest.approx(1.0) and filter.min() >= 0
    assert filter.flip(0, 1).allclose(filter, atol=1e-6)
    assert filter.shape[0] % 2 == 1


def test_a_gaussian_has_its_widths_along_its_directions():
    k = P.Blur("gaussian", width=2.0, across=1.0, angle=90).filter()[0, 0].double()
    axis = torch.arange(k.shape[0], dtype=torch.float64) - k.shape[0] // 2
    down, right = (k.sum(d) @ axis**2 for d in (1, 0))
    assert down.sqrt() == pytest.approx(2.0, rel=0.05)
    assert right.sqrt() == pytest.approx(1.0, rel=0.05)


def test_coils_see_the_whole_image_together():
    maps = P.MRI(coils=5).build((16, 16), 2).coil_maps[0]
    assert maps.shape == (5, 16, 16) and maps.is_complex()
    torch.testing.assert_close(maps.abs().square().sum(0), torch.ones(16, 16))


def test_a_fan_sees_the_corners():
    x = torch.zeros(1, 1, SIZE, SIZE)
    x[..., 0, 0] = x[..., -1, -1] = 1.0
    y = P.CT(24, "fan", normalized=False).build((SIZE, SIZE)).A(x)
    assert (y.sum(dim=2) > 0.5).all()


def test_pet_counts_are_counts_above_the_background():
    physics = P.PET(8, counts=100.0, background=3.0).build((SIZE, SIZE))
    torch.manual_seed(1)
    y = physics(torch.ones(4, 1, SIZE, SIZE))
    assert (y == y.round()).all() and (y >= 0).all()
    assert y[:, :, SIZE // 2 + 5, 0].mean() == pytest.approx(103, rel=0.15)
    assert physics(torch.zeros(4, 1, SIZE, SIZE)).mean() == pytest.approx(3, rel=0.2)


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "spread"),
    [
        (P.NoNoise(), 0.0),
        (P.Gaussian(0.1), 0.1),
        (P.Gaussian("25/255"), 25 / 255),
        (P.Poisson(0.02), 0.1),
        (P.PoissonGaussian(0.02, 0.1), 0.1414),
        (P.Uniform(0.3), 0.1732),
        (P.SaltPepper(0.1, 0.1), 0.2236),
    ],
    ids=str,
)
def test_noise_has_the_size_that_it_says(noise, spread):
    x = torch.full((1, 1, 200, 200), 0.5)
    torch.manual_seed(0)
    found = noise.build()(x) - x
    assert found.square().mean().sqrt() == pytest.approx(spread, rel=0.03, abs=1e-9)


def test_counts_with_a_background_are_poisson():
    x = torch.full((1, 1, 200, 200), 0.5)
    y = P.Poisson(0.1, background=2.0, normalized=False).build()(x)
    assert y.mean() == pytest.approx(7.0, rel=0.02) and y.var() == pytest.approx(7.0, rel=0.05)


@pytest.mark.parametrize("text", ["abc", "", "1/0", "25/255/2"])
def test_a_level_that_is_no_fraction(text):
    with pytest.raises(InputError, match='"25/255"'):
        P.Gaussian(text)


# --- files ----------------------------------------------------------------------------------------


def test_kernels_masks_maps_and_angles_from_files(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "kernel.npy", 7 * rng.random((3, 5)))
    np.save(tmp_path / "mask.npy", rng.random((SIZE, SIZE)) > 0.5)
    np.save(tmp_path / "maps.npy", rng.random((2, SIZE, SIZE)) + 1j)
    np.save(tmp_path / "angles.npy", np.array([0, 10, 55], dtype=np.int16))
    Image.fromarray((255 * np.eye(5)).astype(np.uint8)).save(tmp_path / "kernel.png")

    blur = P.Blur(file=str(tmp_path / "kernel.npy")).build((SIZE, SIZE))
    assert blur.filter.shape == (1, 1, 3, 5) and blur.filter.sum() == pytest.approx(1.0)
    assert P.Blur(file=str(tmp_path / "kernel.png")).filter()[0, 0].allclose(torch.eye(5) / 5)
    holes = P.Inpainting(file=str(tmp_path / "mask.npy")).build((SIZE, SIZE), 3)
    assert holes.mask[0, 1].equal(torch.from_numpy(np.load(tmp_path / "mask.npy")).float())
    mri = P.MRI(file=str(tmp_path / "mask.npy"), coil_file=str(tmp_path / "maps.npy"))
    assert mri.build((SIZE, SIZE), 2).coil_maps.shape == (1, 2, SIZE, SIZE)
    assert P.CT(file=str(tmp_path / "angles.npy")).build((SIZE, SIZE)).angles.tolist() == [
        0,
        10,
        55,
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"no array", "cannot be read"),
        (np.full((SIZE, SIZE), np.nan), "NaN or Inf"),
        (np.array(["a"]), "finite numbers"),
        (np.ones((SIZE, SIZE + 1)), r"size of the images, 24 x 24"),
        (np.zeros((SIZE, SIZE)), "without a measured entry"),
        (np.ones((SIZE, SIZE), dtype=complex), "a real mask"),
    ],
    ids=["missing", "text", "nan", "words", "size", "nothing", "complex"],
)
@pytest.mark.parametrize("kind", [P.Inpainting, P.MRI])
def test_a_mask_that_cannot_be_used(kind, content, words, tmp_path):
    path = tmp_path / "mask.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=words):
        kind(file=str(path)).build((SIZE, SIZE))


def test_a_pickle_is_never_opened(tmp_path):
    np.save(tmp_path / "mask.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        P.Inpainting(file=str(tmp_path / "mask.npy")).build((SIZE, SIZE))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: P.Blur("gauss"), "kernel"),
        (lambda: P.Blur(width=0), "width"),
        (lambda: P.Blur(width=float("nan")), "width"),
        (lambda: P.Blur("disk", across=2.0), "across"),
        (lambda: P.Blur(padding="wrap"), "padding"),
        (lambda: P.Inpainting(0), "keep"),
        (lambda: P.Inpainting(1.5), "keep"),
        (lambda: P.SuperResolution(1), "factor"),
        (lambda: P.SuperResolution(2.5), "factor"),
        (lambda: P.MRI(0), "acceleration"),
        (lambda: P.MRI(coils=0), "coils"),
        (lambda: P.MRI(center_fraction=1.5), "center_fraction"),
        (lambda: P.CT(0), "angles"),
        (lambda: P.CT(geometry="cone"), "geometry"),
        (lambda: P.CT(detectors=40), 'geometry = "fan"'),
        (lambda: P.CT(arc=0), "arc"),
        (lambda: P.CT(geometry="fan", source=0.5), "source"),
        (lambda: P.PET(counts=-1), "counts"),
        (lambda: P.PET(background=0), "background"),
        (lambda: P.PET(attenuation=-1), "attenuation"),
        (lambda: P.PET(resolution=float("nan")), "resolution"),
        (lambda: P.Gaussian(0), "sigma"),
        (lambda: P.Gaussian(-0.1), "sigma"),
        (lambda: P.Poisson(0), "gain"),
        (lambda: P.Poisson(0.1, 1.0), "normalized"),
        (lambda: P.SaltPepper(0.6, 0.6), "salt and pepper"),
        (lambda: P.SaltPepper(0, 0), "salt and pepper"),
        (lambda: P.Uniform("wide"), "sigma"),
        (lambda: P.Blur(width=20.0).build((SIZE, SIZE)), "a kernel of"),
        (lambda: P.SuperResolution().build((25, 24)), "multiples of 2"),
        (lambda: P.Demosaicing().build((SIZE, SIZE), 1), "channels = 3"),
        (lambda: P.MRI().build((SIZE, SIZE), 3), "1 or 2"),
        (lambda: P.MRI(4, center_fraction=0.5).build((SIZE, SIZE)), "center_fraction"),
        (lambda: P.CT().build((24, 32)), "square"),
        (lambda: P.PET().build((24, 32)), "square"),
        (lambda: P.Denoising().build((0, 3)), "size"),
    ],
)
def test_what_cannot_work_is_refused_in_words(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_superresolution_takes_any_size_that_it_can_divide():
    physics = P.SuperResolution(2).build((SIZE, SIZE))
    assert physics.A(torch.rand(1, 1, 30, 20)).shape == (1, 1, 15, 10)
    with pytest.raises(ValueError, match="multiples of the factor 2"):
        physics.A(torch.rand(1, 1, 31, 20))


def test_scans_may_bring_masks_of_their_own():
    physics = P.MRI(coils=2).build((SIZE, SIZE))
    x = images(1)
    masks = (torch.rand(2, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    y = physics.A(x, mask=masks)
    energy = lr.Energy(physics, lr.regularizers.TV(0.01) + lr.regularizers.Tikhonov(1e-2))
    data = lr.Measured(y, {"mask": masks})
    found = lr.solve(energy, data, 1e-2).value
    alone = lr.solve(energy, lr.Measured(y[1:], {"mask": masks[1:]}), 1e-2).value
    assert (found[1:] - alone).norm() < 2e-2
