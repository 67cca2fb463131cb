"""``lr.load``: images of any kind in, the same kind out, with a certificate, wherever it runs."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import warnings

import deepinv as dinv
import numpy as np
import pytest
import torch
from PIL import Image

import learnreg as lr
from learnreg.core.errors import DataWarning, InputError, ModelFileError, SolveError
from learnreg.core.status import Status
from learnreg.models import Demands, TrainedModel
from learnreg.models import trained as module

R = lr.regularizers
DENOISING = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))

# images without a picture have any noise
pytestmark = pytest.mark.filterwarnings("ignore:noise.*:learnreg.core.errors.DataWarning")


def picture(height=20, width=26, channels=3, seed=0):
    return np.random.default_rng(seed).random((height, width, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    energy = lr.Energy(DENOISING, R.FoE(3, 3, smoothing=0.05, weight=0.05))
    lr.save_model(folder / "model.safetensors", energy, {"name": "small"})
    return folder


@pytest.fixture(scope="module")
def model(path):
    return lr.load(path)


IMAGES = {
    "uint8": (picture() * 255).round().astype(np.uint8),
    "grey uint8": (picture(channels=1)[:, :, 0] * 255).round().astype(np.uint8),
    "uint16": (picture() * 65535).round().astype(np.uint16),
    "float32": picture(),
    "float64, one channel": picture(channels=1).astype(np.float64),
    "float16": picture().astype(np.float16),
    "flipped": picture()[::-1, ::-1],
    "L": Image.fromarray((picture(channels=1)[:, :, 0] * 255).astype(np.uint8)),
    "RGB": Image.fromarray((picture() * 255).astype(np.uint8)),
    "I;16": Image.fromarray((picture(channels=1)[:, :, 0] * 65535).astype(np.uint16)),
    "F": Image.fromarray(picture(channels=1)[:, :, 0]),
    "tensor": torch.from_numpy(picture()).permute(2, 0, 1),
    "grey tensor": torch.from_numpy(picture())[:, :, 0],
    "batch": torch.from_numpy(np.stack([picture(), picture(seed=1)])).permute(0, 3, 1, 2),
    "bytes": (torch.from_numpy(picture()).permute(2, 0, 1) * 255).round().to(torch.uint8),
    "half": torch.from_numpy(picture()).permute(2, 0, 1).half(),
    "bfloat16": torch.from_numpy(picture()).permute(2, 0, 1).bfloat16(),
    "double": torch.from_numpy(picture()).permute(2, 0, 1).double(),
}


def numbers(image):
    """Pixels of any kind in [0, 1]."""
    if isinstance(image, torch.Tensor):
        scale = 255 if image.dtype == torch.uint8 else 1
        return image.double().numpy() / scale
    array = np.asarray(image)
    return array / (np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1.0)


@pytest.mark.parametrize("name", IMAGES)
def test_the_kind_type_and_range_come_back(model, name):
    image = IMAGES[name]
    before = numbers(image).copy()
    found = model(image)
    assert type(found) is type(image) or isinstance(image, Image.Image)
    if isinstance(image, Image.Image):
        assert (found.mode, found.size) == (image.mode, image.size)
    else:
        assert (found.shape, found.dtype) == (image.shape, image.dtype)
    assert 0.3 * before.std() < numbers(found).std() < 0.95 * before.std()
    assert (numbers(image) == before).all(), "the image given stays as it is"


def test_kinds_agree(model):
    array, tensor = IMAGES["uint8"], IMAGES["bytes"]
    as_pillow = np.asarray(model(Image.fromarray(array)))
    assert (model(array) == as_pillow).all()
    assert (model(tensor).permute(1, 2, 0).numpy() == as_pillow).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparency_stays(model, mode):
    alpha = Image.fromarray(np.arange(20 * 26, dtype=np.uint8).reshape(20, 26))
    image = IMAGES["RGB"].convert(mode)
    image.putalpha(alpha)
    found = model(image)
    assert found.mode == mode and (np.asarray(found.getchannel("A")) == np.asarray(alpha)).all()
    opaque = model(image.convert(mode[:-1]))
    assert (np.asarray(found.convert(mode[:-1])) == np.asarray(opaque)).all()


@pytest.mark.parametrize(
    "image",
    [
        None,
        "noisy.png",
        [[0.0, 1.0]],
        np.zeros((20, 20), dtype=np.int64),
        np.zeros((20, 20), dtype=bool),
        np.zeros((3, 20, 20), dtype=np.float32),
        np.zeros((2, 20, 20, 3), dtype=np.float32),
        np.zeros((0, 20), dtype=np.uint8),
        np.full((20, 20), np.nan, dtype=np.float32),
        torch.zeros(20),
        torch.zeros(3, 20, 20, dtype=torch.complex64),
        Image.new("CMYK", (20, 20)),
    ],
)
def test_what_is_no_image_is_refused_in_words(model, image):
    with pytest.raises(InputError):
        model(image)


def test_the_certificate_holds_for_the_whole_image(model):
    y = IMAGES["batch"]
    found = model.reconstruct(y)
    truth = lr.solve(model.energy.widened(), y.double().reshape(6, 1, 20, 26), 1e-9).value
    away = (found.value.double() - truth.reshape(y.shape)).flatten(1).norm(dim=1)
    assert found.ok and found.error.shape == (2,) and found.value.shape == y.shape
    assert (away <= found.error).all() and (found.error <= 1e-2 / 96 * 1560**0.5).all()


def test_draft_and_fine_are_distances_per_pixel(path):
    y = IMAGES["batch"][:1]
    found = {q: lr.load(path, quality=q).reconstruct(y) for q in ("draft", "fine")}
    root = y.numel() ** 0.5
    assert 1e-4 < float(found["draft"].error) / root <= 1 / 255
    assert float(found["fine"].error) / root <= 1e-2 / 96
    assert found["draft"].cost.work < found["fine"].cost.work
    assert float(lr.load(path, quality="draft", eps=1e-3).reconstruct(y).error) <= 1e-3


def test_large_images_are_solved_in_tiles_and_agree_with_the_whole(path, monkeypatch):
    y = torch.rand(1, 3, 60, 700, generator=torch.Generator().manual_seed(0))
    model, shares = lr.load(path, eps=1e-2), []
    whole = model.reconstruct(y)
    monkeypatch.setattr(module, "TILED_FROM", 1000)
    tiles = model.reconstruct(y, shares.append)
    assert "in tiles" in tiles.solver and "in tiles" not in whole.solver
    assert shares == sorted(shares) and len(shares) > 2 and shares[-1] == 1
    assert float((whole.value - tiles.value).norm()) <= float(whole.error + tiles.error)


def test_it_can_be_pickled_and_says_what_it_is(model):
    other = pickle.loads(pickle.dumps(model))
    assert (other(IMAGES["uint8"]) == model(IMAGES["uint8"])).all()
    assert "small" in repr(other) and "fine" in repr(other)


def test_threads_do_not_meet(path):
    model, found = lr.load(path), {}
    expected = lr.load(path)(IMAGES["uint8"])

    def work(i):
        found[i] = model(IMAGES["uint8"])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all((f == expected).all() for f in found.values())


def test_inference_mode_changes_nothing(path):
    with torch.inference_mode():
        inside = lr.load(path)
        first, batch = inside(IMAGES["tensor"].clone()), inside.reconstruct(IMAGES["batch"].clone())
    assert torch.equal(first, lr.load(path)(IMAGES["tensor"]))
    assert not batch.value.is_inference() and not inside(IMAGES["tensor"]).requires_grad


def _worker(model, image, queue):
    queue.put(model(image))


@pytest.mark.slow
def test_it_works_in_a_process_of_its_own(model):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_worker, args=(model, IMAGES["uint8"], queue))
    process.start()
    assert (queue.get(timeout=120) == model(IMAGES["uint8"])).all()
    process.join()


def test_running_out_of_time_gives_what_was_reached(path):
    model = lr.load(path, max_seconds=1e-9)
    with pytest.warns(DataWarning, match="max_seconds"):
        model(IMAGES["uint8"])
    found = model.reconstruct(IMAGES["batch"])
    assert set(found.status) == {Status.BUDGET} and bool(torch.isfinite(found.error).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "noise")
        lr.load(path, max_seconds=100)(IMAGES["uint8"])


def test_a_limit_of_time_is_that_of_an_image_not_of_a_channel(path, monkeypatch):
    clock, asked = [0.0], []
    solve = module.solve_potential

    def timed(f, eps, x0, *, should_stop):
        for clock[0] in (19.9, 20.1):
            asked.append(should_stop())
        return solve(f, eps, x0)

    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "solve_potential", timed)
    lr.load(path, max_seconds=10).reconstruct(IMAGES["batch"])  # two images of three channels
    assert asked == [False, True]


def test_what_cannot_be_reached_is_an_error(path):
    y = IMAGES["batch"]
    with pytest.raises(SolveError):
        lr.load(path, eps=1e-9).reconstruct(y)
    assert not lr.load(path, eps=1e-9).reconstruct(y, throw=False).ok
    assert lr.load(path, eps=1e-9, float64=True).reconstruct(y).ok


def test_memory_is_estimated_before_anything_is_computed(path, monkeypatch):
    y = torch.rand(1, 3, 100, 100)
    one_by_one = lr.load(path, memory=50 * 4 * 10_000 + 1).reconstruct(y)
    whole = lr.load(path).reconstruct(y)
    assert one_by_one.ok and torch.allclose(one_by_one.value, whole.value, atol=1e-3)
    with pytest.raises(InputError, match="takes about 2 MB of memory; expected at most 1 MB"):
        lr.load(path, memory=1_000_000).reconstruct(y)
    monkeypatch.setattr(module, "TILED_FROM", 1000)
    with pytest.raises(InputError, match="of memory"):
        lr.load(path, memory=1_000_000).reconstruct(y)


def test_an_allocator_that_fails_is_told_in_words(path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr(module, "solve_potential", fails)
    with pytest.raises(InputError, match="memory"):
        lr.load(path).reconstruct(torch.rand(1, 1, 20, 20))


def test_other_errors_pass_as_they_are(path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(module, "solve_potential", fails)
    with pytest.raises(RuntimeError, match="something else"):
        lr.load(path).reconstruct(torch.rand(1, 1, 20, 20))


@pytest.mark.parametrize(
    "options",
    [
        {"eps": 0},
        {"eps": float("nan")},
        {"quality": "best"},
        {"max_seconds": -1},
        {"memory": 0},
        {"sigma": -0.1},
        {"sigma": "loud"},
    ],
)
def test_options_out_of_range_are_refused(path, options):
    with pytest.raises(InputError):
        lr.load(path, **options)


def test_folders_without_a_model_are_refused(tmp_path, path):
    assert lr.load(path / "model.safetensors")(IMAGES["L"]).size == (26, 20)
    with pytest.raises(ModelFileError, match="a folder without"):
        lr.load(tmp_path)
    below = tmp_path / "runs" / "one"
    below.mkdir(parents=True)
    (below / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    with pytest.raises(ModelFileError, match="runs/one"):
        lr.load(tmp_path)
    with pytest.raises(ModelFileError, match="no such file"):
        lr.load(tmp_path / "none")


def test_channels_are_those_that_were_learned():
    colour = TrainedModel(lr.Energy(DENOISING, R.FoE(3, 3, channels=3, smoothing=0.05)))
    assert not colour.apart(3)
    with pytest.raises(InputError, match="expected 3 channels"):
        colour(IMAGES["grey uint8"])
    tv = TrainedModel(lr.Energy(DENOISING, R.TV(channels="joint")), Demands(), channel_wise=True)
    y = IMAGES["batch"]
    alone = torch.cat([tv.reconstruct(y[:, i : i + 1]).value for i in range(3)], dim=1)
    assert torch.allclose(tv.reconstruct(y).value, alone, atol=1e-3)


def test_saddle_points_are_applied_as_well():
    model = TrainedModel(lr.SaddleEnergy(DENOISING, R.TGV(), tikhonov=1e-2), Demands(eps=0.1))
    found = model.reconstruct(IMAGES["batch"])
    assert found.ok and found.value.shape == IMAGES["batch"].shape and len(found.theorem) == 2


@pytest.mark.parametrize("kind", ["array", "pillow"])
def test_integers_are_in_the_units_of_the_training_images(path, tmp_path, kind):
    """A model of 12 bits in 16, given what a microscope writes."""
    energy = lr.load(path).energy
    lr.save_model(tmp_path / "m.safetensors", energy, {"units": [0.0, 4095.0]})
    model = lr.load(tmp_path / "m.safetensors", eps=1e-3)
    y = np.random.default_rng(0).integers(0, 4096, (24, 20)).astype(np.uint16)
    given = Image.fromarray(y) if kind == "pillow" else y
    found = np.asarray(model(given)).astype(float)
    wanted = model((y / 4095).astype(np.float32)) * 4095
    assert np.abs(found - wanted).max() <= 0.51
    bytes_ = (y // 16).astype(np.uint8)  # a type that cannot be in these units
    found = model(bytes_).astype(float)
    assert np.abs(found - model((bytes_ / 255).astype(np.float32)) * 255).max() <= 0.51


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_no_levels_of_floating_point_images(path, dtype):
    """A model of floats in [0, 1] takes an 8-bit picture as one, not as 255 times the range."""
    most = np.iinfo(dtype).max
    image = (picture(channels=1)[:, :, 0] * most).round().astype(dtype)
    plain, floats = lr.load(path), lr.load(path).with_units((0.0, 1.0))
    assert np.array_equal(plain(image), floats(image))
    deep = lr.load(path).with_units((0.0, 4095.0))
    assert (dtype == np.uint8) == np.array_equal(deep(image), plain(image))
