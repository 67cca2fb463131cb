"""Recipes of operators: what is described comes back as the same operator, what is not is said."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from deepinv import physics as D
from torch import nn

from learnreg import physics as P
from learnreg.core.errors import ModelFileError
from learnreg.core.measured import tensors_of
from learnreg.core.params import named_trainable
from learnreg.operators.private import widened
from learnreg.testing.liars import Identity

GENERATOR = torch.Generator().manual_seed(0)
KERNEL = torch.rand(1, 1, 5, 5, generator=GENERATOR)
MASK = (torch.rand(2, 16, 16, generator=GENERATOR) > 0.5).float()
MAPS = torch.randn(3, 16, 16, generator=GENERATOR, dtype=torch.complex64)
ANY = (1, 16, 16)


def combined(make):
    """deepinv warns of what a combination cannot do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


OBJECTS = {
    "denoising": (lambda: D.Denoising(D.GaussianNoise(0.2)), ANY),
    "blur": (lambda: D.Blur(filter=KERNEL, padding="circular"), ANY),
    "blur of colours": (lambda: D.Blur(filter=KERNEL.repeat(1, 3, 1, 1)), (3, 16, 16)),
    "blur by fft": (lambda: D.Blur(filter=KERNEL, padding="valid", use_fft=True), ANY),
    "blur in float64": (lambda: D.Blur(filter=KERNEL.double(), padding="reflect"), ANY),
    "BlurFFT": (lambda: D.BlurFFT(ANY, filter=KERNEL), ANY),
    "space varying": (
        lambda: D.SpaceVaryingBlur(
            filters=KERNEL[:, :, None].repeat(1, 1, 2, 1, 1),
            multipliers=torch.rand(1, 1, 2, 16, 16),
            padding="valid",
        ),
        ANY,
    ),
    "inpainting": (lambda: D.Inpainting((3, 16, 16), mask=0.3), (3, 16, 16)),
    "inpainting by a mask": (lambda: D.Inpainting((2, 16, 16), mask=MASK), (2, 16, 16)),
    "demosaicing": (lambda: D.Demosaicing((16, 16)), (3, 16, 16)),
    "downsampling": (lambda: D.Downsampling(ANY, filter="bicubic", factor=2), ANY),
    "downsampling, any size": (lambda: D.Downsampling(filter=None, factor=4), ANY),
    "MRI": (lambda: D.MRI(mask=MASK, img_size=(2, 16, 16)), (2, 16, 16)),
    "coils": (
        lambda: D.MultiCoilMRI(mask=MASK, coil_maps=MAPS, img_size=(2, 16, 16)),
        (2, 16, 16),
    ),
    "tomography": (lambda: D.Tomography(angles=7, img_width=16, normalize=True), ANY),
    "tomography, other angles": (
        lambda: D.Tomography(angles=[0.0, 20, 90], img_width=16, normalize=False, circle=True),
        ANY,
    ),
    "tomography, own adjoint": (
        lambda: D.Tomography(7, 16, normalize=True, adjoint_via_backprop=False),
        ANY,
    ),
    "fan": (lambda: P.CT(7, "fan").build((16, 16)), ANY),
    "counts": (lambda: P.PET(7).build((16, 16)), ANY),
    "emission": (lambda: P.PET(7, attenuation=1.0, resolution=2.0).build((16, 16)), ANY),
    "real images": (lambda: P.MRI().build((16, 16)), ANY),
    "real images, coils": (lambda: P.MRI(coils=3).build((16, 16)), ANY),
    "superresolution": (lambda: P.SuperResolution(2, "sinc").build((16, 16)), ANY),
    "composed": (
        lambda: combined(lambda: D.Inpainting(ANY, mask=0.5) * D.Blur(filter=KERNEL)),
        ANY,
    ),
    "stacked": (lambda: D.stack(D.Blur(filter=KERNEL), D.Inpainting(ANY, mask=0.5)), ANY),
}


def through_json(physics: nn.Module) -> tuple[dict, dict]:
    header, tensors = P.describe(physics)
    return json.loads(json.dumps(header)), tensors


@pytest.mark.parametrize("name", OBJECTS)
def test_a_recipe_gives_the_same_operator(name):
    make, shape = OBJECTS[name]
    physics = make()
    if name == "composed" and physics.physics_list[0].padding == "valid":
        physics.physics_list[0].padding = "circular"
    header, tensors = through_json(physics)
    assert "note" not in header, header
    again = P.rebuild(header, tensors)
    assert type(again) is type(physics)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    x = x.double() if name == "blur in float64" else x
    y = physics.A(x)
    for one, other in zip(tensors_of(y), tensors_of(again.A(x)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(physics.A_adjoint(y), again.A_adjoint(y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTS)
def test_the_size_that_an_operator_is_bound_to_is_said(name):
    make, shape = OBJECTS[name]
    header, _ = P.describe(make())
    assert header.get("image") in (None, list(shape))
    bound = name.split(",")[0] not in ("denoising", "blur", "superresolution", "blur of colours")
    free = name in ("blur by fft", "blur in float64", "downsampling, any size", "composed")
    if bound and not free:
        assert tuple(header["image"]) == P.image_shape(make()) == shape


NOISES = [
    D.ZeroNoise(),
    D.GaussianNoise(0.25),
    D.PoissonNoise(0.125, normalize=False, clip_positive=True),
    D.PoissonGaussianNoise(0.5, 0.25),
    D.UniformNoise(0.125),
    D.UniformGaussianNoise(0.125, 0.5),
    D.SaltPepperNoise(0.25, 0.125),
    D.LaplaceNoise(0.5),
    D.RicianNoise(0.5),
    D.GammaNoise(2.0),
    D.LogPoissonNoise(512.0, 0.25),
    P.Poisson(0.25, 2.0, normalized=False).build(),
]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: type(n).__name__)
def test_the_noise_comes_back(noise):
    header, tensors = through_json(D.Denoising(noise))
    again = P.rebuild(header, tensors).noise_model
    assert type(again) is type(noise)
    one, other = dict(noise.named_buffers()), dict(again.named_buffers())
    assert one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


def test_noise_of_ones_own_is_named_and_left_out():
    class Mine(D.NoiseModel):
        pass

    header, tensors = through_json(D.Denoising(Mine()))
    assert header["noise"] == {"type": "Mine"}
    assert type(P.rebuild(header, tensors).noise_model) is D.ZeroNoise


def test_what_was_learned_can_be_learned_again():
    physics = D.Blur(filter=nn.Parameter(KERNEL.clone()), padding="circular")
    again = P.rebuild(*through_json(physics))
    assert [name for name, _ in named_trainable(again)] == ["filter"]
    assert again.filter.equal(physics.filter)


def test_describing_lends_and_takes_nothing():
    physics = P.CT(7).build((16, 16))
    before = copy.deepcopy(dict(physics.named_buffers()))
    header, tensors = P.describe(physics)
    P.rebuild(header, tensors).angles.zero_()
    after = dict(physics.named_buffers())
    assert all(after[k].equal(t) for k, t in before.items())


# --- what is not described, and why ---------------------------------------------------------------


class Louder(D.Blur):
    def A(self, x, **kwargs):
        return 2 * super().A(x)


def own_method():
    physics = D.Blur(filter=KERNEL, padding="circular")
    physics.A = lambda x, **_: 2 * x
    return physics


def other_attribute():
    physics = D.Demosaicing((16, 16))
    physics.mask = physics.mask.flip(1)
    return physics


@pytest.mark.parametrize(
    "make",
    [
        lambda: D.Inpainting(ANY),
        lambda: D.stack(D.Blur(filter=KERNEL, padding="circular"), D.Inpainting(ANY)),
    ],
    ids=["alone", "in a stack"],
)
def test_an_operator_that_waits_for_the_masks_of_images_comes_back_waiting(make):
    header, tensors = through_json(make())
    assert "note" not in header
    again = P.rebuild(header, tensors)
    mask = torch.ones(1, *ANY)
    x = torch.rand(1, *ANY)
    for one, other in zip(
        tensors_of(make().A(x, mask=mask)), tensors_of(again.A(x, mask=mask)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Identity, "no class that a file can name"),
        (lambda: Louder(filter=KERNEL), "no class that a file can name"),
        (own_method, "an A or A_adjoint of its own"),
        (other_attribute, "another A"),
        (lambda: D.MRI(mask=MASK.repeat(4, 1, 1, 1), img_size=(2, 16, 16)), "belong to the scans"),
        (lambda: D.Blur(filter=KERNEL.repeat(2, 1, 1, 1)), "one slice for each of 2 images"),
        (lambda: D.stack(D.Blur(filter=KERNEL), Identity()), "Identity is no class"),
        (lambda: D.LinearPhysics(A=lambda x: x, A_adjoint=lambda y: y), "LinearPhysics is no"),
    ],
    ids=["own", "subclass", "method", "mask", "scans", "filters", "part", "functions"],
)
def test_what_cannot_be_described_is_named_with_the_reason(make, words):
    header, tensors = through_json(make())
    assert tensors == {} and set(header) == {"type", "note"}
    assert words in header["note"]
    with pytest.raises(ModelFileError, match=r"load_model\(path, physics=\.\.\.\)"):
        P.rebuild(header, tensors)


# --- old, damaged and hostile files ---------------------------------------------------------------


def test_files_of_earlier_releases():
    physics = P.rebuild({"type": "Denoising", "sigma": 0.25}, {})
    assert type(physics) is D.Denoising and physics.noise_model.sigma == 0.25
    assert P.rebuild({"type": "Denoising"}, {}).noise_model.sigma == pytest.approx(0.1)
    with pytest.raises(ModelFileError, match="before files held more than its name"):
        P.rebuild({"type": "Blur"}, {})


HUGE = 2**40
CHANGES = {
    "no table": lambda h, t: ("Tomography", t),
    "no type": lambda h, t: (h | {"type": None}, t),
    "unhashable type": lambda h, t: (h | {"type": ["Blur"]}, t),
    "a module of python": lambda h, t: (h | {"type": "os.system"}, t),
    "settings of text": lambda h, t: (h | {"settings": "x"}, t),
    "no settings": lambda h, t: (h | {"settings": {}}, t),
    "parts of text": lambda h, t: (h | {"parts": "x"}, t),
    "parts of numbers": lambda h, t: (h | {"parts": [3]}, t),
    "nothing to hold": lambda h, t: (h, {}),
    "noise of text": lambda h, t: (h | {"noise": "loud"}, t),
    "noise below zero": lambda h, t: (h | {"noise": {"type": "GaussianNoise", "sigma": -1}}, t),
    "noise of words": lambda h, t: (h | {"noise": {"type": "GaussianNoise", "sigma": "a"}}, t),
    "endless noise": lambda h, t: (
        h | {"noise": {"type": "GaussianNoise", "sigma": float("inf")}},
        t,
    ),
    "learned of nothing": lambda h, t: (h | {"learned": ["taps"]}, t),
    "learned of text": lambda h, t: (h | {"learned": "angles"}, t),
    "flat angles": lambda h, t: (h, t | {"angles": t["angles"][None]}),
    "no angles": lambda h, t: (h, t | {"angles": t["angles"][:0]}),
    "norm of zero": lambda h, t: (h, t | {"operator_norm": torch.zeros(())}),
    "many norms": lambda h, t: (h, t | {"operator_norm": torch.ones(5)}),
} | {
    f"{key} = {value!r}": lambda h, t, key=key, value=value: (
        h | {"settings": h["settings"] | {key: value}},
        t,
    )
    for key, value in {
        "img_width": HUGE,
        "circle": "yes",
        "dtype": "float16",
        "fan_beam": 1,
        "normalize": None,
    }.items()
}
CHANGES |= {
    f"width {value!r}": lambda h, t, value=value: (
        h | {"settings": h["settings"] | {"img_width": value}},
        t,
    )
    for value in (0, -16, 16.0, True, "16", float("nan"), None, 60_000)
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_recipe_is_refused_in_words(change):
    header, tensors = through_json(P.CT(7).build((16, 16)))
    header, tensors = CHANGES[change](header, tensors)
    with pytest.raises(ModelFileError) as error:
        P.rebuild(header, tensors)
    assert ": given " in str(error.value) and "; expected " in str(error.value)


@pytest.mark.parametrize(
    ("kind", "key"), [("Demosaicing", "img_size"), ("BlurFFT", "img_size"), ("Blur", "padding")]
)
@pytest.mark.parametrize(
    "value", [[HUGE, HUGE, 3], [0, 4, 4], [3, -4, 4], "x", [], None, [1.5] * 3]
)
def test_sizes_that_no_machine_has(kind, key, value):
    settings = {"use_fft": False, key: value}
    with pytest.raises(ModelFileError):
        P.rebuild({"type": kind, "settings": settings, "noise": {}}, {"filter": KERNEL})


@pytest.mark.filterwarnings("ignore:After updating parameters")
@pytest.mark.parametrize("kind", ["blur", "real images, coils", "superresolution", "inpainting"])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to(torch.complex64) if not t.is_complex() else t.real,
        lambda t: t.to(torch.int64) if not t.is_complex() else t.abs(),
        lambda t: t[None],
        lambda t: t.flatten()[:7],
    ],
)
def test_tensors_that_fit_no_image_are_refused(kind, change):
    """When the file is read, not when the model is used."""
    physics = P.Inpainting().build((16, 16)) if kind == "inpainting" else OBJECTS[kind][0]()
    header, tensors = through_json(physics)
    for name, t in tensors.items():
        try:
            again = P.rebuild(header, tensors | {name: change(t)})
        except ModelFileError:
            continue
        wide = any(t.dtype == torch.float64 for t in again.buffers())
        shape = P.image_shape(physics) or ANY
        again.A(torch.zeros(1, *shape, dtype=torch.float64 if wide else torch.float32))


def test_noise_of_several_levels_is_none_afterwards():
    """They belong to the images; one that nobody has said would steer later solves."""
    for noise in (D.GaussianNoise(torch.tensor([0.3, 0.2])), D.PoissonNoise(torch.ones(2))):
        header, tensors = through_json(D.Denoising(noise))
        assert type(P.rebuild(header, tensors).noise_model) is D.ZeroNoise


def test_a_fan_of_nonsense():
    header, tensors = through_json(P.CT(7, "fan").build((16, 16)))
    for value in (0, -1.0, "x", float("nan"), HUGE, None):
        told = copy.deepcopy(header)
        told["settings"]["fan_parameters"]["n_detector_pixels"] = value
        with pytest.raises(ModelFileError):
            P.rebuild(told, tensors)


def test_the_copy_for_comparison_keeps_random_generators():
    physics = D.Denoising(D.GaussianNoise(0.1, rng=torch.Generator().manual_seed(3)))
    torch.manual_seed(0)
    wide = widened(physics)
    x = torch.zeros(1, 1, 4, 4)
    assert wide.noise_model.rng is not physics.noise_model.rng
    torch.testing.assert_close(wide(x).float(), physics(x))
