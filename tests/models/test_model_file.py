"""model.safetensors: what goes in comes out, and nothing damaged, foreign or dangerous is ever
opened.
"""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import deepinv
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tests.regularizers.cases import CASES, Case, perturbed
from torch import Tensor, nn

from learnreg import physics
from learnreg.core.errors import DataWarning, InputError, ModelFileError
from learnreg.core.params import named_trainable
from learnreg.models import load_model, model_notes, save_model
from learnreg.problems import L2, Energy, at_noise_level
from learnreg.regularizers import TV, FoE, Regularizer, SaddleRegularizer, Tikhonov
from learnreg.solvers import solve


def denoising(sigma: float = 0.1) -> nn.Module:
    return deepinv.physics.Denoising(deepinv.physics.GaussianNoise(sigma))


def energy(regularizer: nn.Module | None = None, sigma: float = 1.0) -> Energy:
    return Energy(denoising(), regularizer or perturbed(TV()), L2(sigma))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


def saved(path: Path, regularizer: nn.Module | None = None) -> Path:
    return save_model(path, energy(regularizer))


def rewritten(path: Path, change=lambda header: None, tensors=lambda tensors: tensors) -> None:
    """The same file with another header or other tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["learnreg"])
    held = load_file(path)
    change(header)
    path.write_bytes(save(tensors(held), {"learnreg": json.dumps(header)}))


# --- round trips ----------------------------------------------------------------------------------


DESCRIBED = [c for c in CASES if c.name != "black_box"]  # whose module is not in the file


@pytest.mark.parametrize("case", DESCRIBED, ids=lambda c: c.name)
def test_every_regularizer_comes_back_as_it_was(case: Case, path):
    regularizer, x = case.make(), case.images()
    save_model(path, energy(regularizer, sigma=0.7))
    loaded = load_model(path)
    held, found = regularizer.state_dict(), loaded.regularizer.state_dict()
    assert list(held) == list(found) and all(
        held[k].equal(found[k]) and held[k].dtype == found[k].dtype for k in held
    )
    assert [p.requires_grad for p in regularizer.parameters()] == [
        p.requires_grad for p in loaded.regularizer.parameters()
    ]
    assert repr(loaded.regularizer) == repr(regularizer)
    assert loaded.regularizer.value(x).equal(regularizer.value(x))
    assert loaded.regularizer.grad(x).equal(regularizer.grad(x))
    assert loaded.fidelity == L2(0.7) and type(loaded.physics) is deepinv.physics.Denoising


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_precision_comes_back(dtype, path):
    save_model(path, energy(TV().to(dtype)))
    loaded = load_model(path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    y = torch.rand(2, 1, 8, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert solve(loaded, y, 1e-3).value.equal(solve(energy(TV().to(dtype)), y, 1e-3).value)


@pytest.mark.parametrize("noise", [0.1, 0.37])
def test_the_noise_level_comes_back(noise, path):
    save_model(path, Energy(denoising(noise), TV()))
    assert float(load_model(path).physics.noise_model.sigma) == pytest.approx(noise)


def test_notes_come_back(path):
    notes = {"images": ["a", "b"], "psnr": 28.5, "nested": {"none": None}}
    save_model(path, energy(), notes)
    assert model_notes(path) == notes
    save_model(path, energy())
    assert model_notes(path) == {}


def test_it_is_plain_safetensors(path):
    regularizer = perturbed(FoE(2, 3))
    saved(path, regularizer)
    tensors = load_file(path)
    assert set(tensors) == set(regularizer.state_dict())
    assert all(tensors[k].equal(v) for k, v in regularizer.state_dict().items())


def test_saving_makes_folders_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "er" / "model.safetensors"
    assert saved(path) == path
    assert os.listdir(path.parent) == ["model.safetensors"]
    assert save_model(str(path), energy()) == path
    assert isinstance(load_model(str(path)), Energy)


def test_saving_lends_and_takes_nothing(path):
    regularizer = perturbed(TV())
    before = [p.clone() for p in regularizer.parameters()]
    saved(path, regularizer)
    loaded = load_model(path)
    with torch.no_grad():
        for p in loaded.parameters():
            p.zero_()
    assert all(
        p.equal(b) and p.requires_grad
        for p, b in zip(regularizer.parameters(), before, strict=True)
    )
    assert load_model(path).regularizer.log_weight.equal(regularizer.log_weight)


def test_a_failing_write_leaves_the_old_file(path, monkeypatch):
    before = saved(path).read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("os.replace", full)
        saved(path, perturbed(FoE(2, 3)))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


# --- own classes, other physics -------------------------------------------------------------------


class Ridge(nn.Module):
    """exp(t) / 2 ||x||^2 with nothing but what an Energy needs."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.zeros(()))
        self.inner = Tikhonov()

    def _at_t(self) -> Tikhonov:
        other = Tikhonov()
        other.log_weight = self.t
        return other

    def value(self, x: Tensor) -> Tensor:
        return self._at_t().value(x)

    def grad(self, x: Tensor) -> Tensor:
        return self._at_t().grad(x)

    def linearize(self, x: Tensor):
        return self._at_t().linearize(x)

    def directional(self, x: Tensor, v: Tensor) -> Tensor:
        return self._at_t().directional(x, v)

    def bounds(self):
        return self._at_t().bounds()


class Mine(TV):
    """A class that the library does not know, with a spec of its own."""

    def spec(self):
        return {"type": "Mine", "isotropic": self.isotropic}


@pytest.mark.parametrize("make", [Ridge, Mine], ids=["no_spec", "own_spec"])
def test_an_own_class_is_filled(make, path):
    mine = perturbed(make())
    saved(path, mine)
    with pytest.raises(
        ModelFileError, match=rf"given '{make.__name__}'.*load_model\(path, regularizer=\.\.\.\)"
    ):
        load_model(path)
    other = make()
    loaded = load_model(path, regularizer=other)
    assert loaded.regularizer is other
    x = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert loaded.regularizer.value(x).equal(mine.value(x))


def test_an_own_class_of_another_shape_is_refused(path):
    saved(path, Ridge())
    with pytest.raises(
        ModelFileError, match="weights that do not fit the regularizer; expected the tensors of TV"
    ):
        load_model(path, regularizer=TV())


def test_what_is_refused_leaves_the_lent_module_as_it_was(path):
    saved(path)
    rewritten(
        path, tensors=lambda held: {k: torch.full_like(v, torch.nan) for k, v in held.items()}
    )
    mine = TV(weight=0.3)
    before = [p.clone() for p in mine.parameters()]
    with pytest.raises(ModelFileError):
        load_model(path, regularizer=mine)
    assert all(p.equal(b) for p, b in zip(mine.parameters(), before, strict=True))


def blur() -> nn.Module:
    return deepinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular")


class Mirror(deepinv.physics.LinearPhysics):
    """A class of one's own, which no file can name."""

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return x.flip(-1)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return y.flip(-1)


def test_a_physics_that_the_file_cannot_describe_must_be_given(path):
    mirror = Mirror()
    with pytest.warns(DataWarning, match=r"names the physics Mirror.*load_model\(path, physics"):
        save_model(path, Energy(mirror, TV() + Tikhonov(0.1)))
    with pytest.raises(
        ModelFileError,
        match=r"given a model for Mirror, .*no class that a file can name"
        r"; expected physics=.*load_model\(path, physics",
    ):
        load_model(path)
    loaded = load_model(path, physics=mirror)
    assert loaded.physics is mirror
    y = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert solve(loaded, y, 1e-2).ok


@pytest.mark.parametrize(
    ("setup", "channels"),
    [
        (physics.Blur(width=1.0), 1),
        (physics.Inpainting(), 3),
        (physics.SuperResolution(), 1),
        (physics.Demosaicing(), 3),
        (physics.MRI(), 1),
        (physics.MRI(coils=2), 2),
        (physics.CT(10), 1),
        (physics.CT(10, "fan"), 1),
        (physics.PET(10), 1),
    ],
    ids=str,
)
def test_a_model_file_needs_nothing_else(setup, channels, path):
    built = setup.build((16, 16), channels)
    x = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    y = built(x)
    trained = Energy(built, TV() + Tikhonov(0.1, learned=False), L2(0.5))
    save_model(path, trained)
    loaded = load_model(path)
    found, again = solve(trained, y, 1e-2), solve(loaded, y, 1e-2)
    assert again.ok
    torch.testing.assert_close(found.value, again.value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 20), (12, 16)])
@pytest.mark.parametrize("setup", [physics.MRI(), physics.CT(10), physics.Inpainting()], ids=str)
def test_measurements_of_another_size_are_refused_in_words(setup, shape, path):
    save_model(path, Energy(setup.build((16, 16)), TV() + Tikhonov(0.1)))
    loaded = load_model(path)
    y = loaded.physics.A(torch.rand(1, 1, 16, 16))
    other = torch.rand(*y.shape[:2], *shape)
    with pytest.raises(InputError, match="given measurements of shape"):
        solve(loaded, other, 1e-2)


def test_files_of_the_first_version_still_load(path):
    saved(path)

    def old(header):
        header.update(version=1, physics={"type": "Denoising", "sigma": 0.25})

    rewritten(path, old)
    loaded = load_model(path)
    assert type(loaded.physics) is deepinv.physics.Denoising
    assert loaded.physics.noise_model.sigma == 0.25


def test_filters_that_were_learned_come_back_learned(path):
    kernel = torch.nn.Parameter(torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0)))
    blurred = deepinv.physics.Blur(filter=kernel, padding="circular")
    trained = Energy(blurred, TV() + Tikhonov(0.1))
    save_model(path, trained)
    loaded = load_model(path)
    names = [[name for name, _ in named_trainable(e.physics)] for e in (trained, loaded)]
    assert names == [["filter"], ["filter"]]
    assert loaded.physics.filter.equal(kernel)


def test_another_physics_takes_the_place_of_the_stored_one(path):
    saved(path)
    other = blur()
    assert load_model(path, physics=other).physics is other


# --- what is refused ------------------------------------------------------------------------------


def refused(path: Path, *words: str, **arguments: object) -> None:
    """ModelFileError that names the file, says given and expected, and holds the words."""
    with pytest.raises(ModelFileError) as error:
        load_model(path, **arguments)
    message = str(error.value)
    assert ": given " in message and "; expected " in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("key", ["channels", "filters", "size"])
@pytest.mark.parametrize("value", [2**17 + 1, 2**31, 2**70])
def test_a_regularizer_larger_than_its_weights_is_refused_before_memory_is_taken(
    key, value, path, monkeypatch
):
    saved(path, FoE(filters=2, size=3))
    rewritten(path, lambda header: header["regularizer"].update({key: value}))
    monkeypatch.setattr(torch, "randn", None)
    monkeypatch.setattr(torch, "zeros", None)
    refused(path, "sizes")


@pytest.mark.parametrize("length", [0, 1, 8, 50, 300, -1])
def test_a_truncated_file(length, path):
    content = saved(path, perturbed(FoE(2, 3))).read_bytes()
    path.write_bytes(content[:length])
    refused(path, str(path), "not intact", "written by this library")


@pytest.mark.parametrize(
    "content",
    [
        b"hello, world\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"PK\x03\x04" + b"\x00" * 99,
        b'{"a": 1}',
        b'\x08\x00\x00\x00\x00\x00\x00\x00{"a": 1}',
    ],
    ids=["text", "zeros", "ones", "zip", "json", "header"],
)
def test_a_file_that_is_something_else(content, path):
    path.write_bytes(content)
    refused(path, str(path), "not intact")


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_no_file_at_all(kind, path):
    if kind == "folder":
        path.mkdir()
    refused(path, str(path), "no such file")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"learnreg": "not json"},
        {"learnreg": "[1, 2]"},
        {"learnreg": '"text"'},
        {"learnreg": "{}"},
        {"learnreg": '{"format": "somebody-else"}'},
        {"learnreg": '{"format": "learnreg-checkpoint"}'},
    ],
    ids=str,
)
def test_foreign_safetensors(metadata, path):
    save_file({"log_weight": torch.zeros(()), "log_smoothing": torch.zeros(())}, path, metadata)
    refused(path, str(path), "a learnreg-model file")


@pytest.mark.parametrize("version", [4, 99, 0, None, "1", True])
def test_another_version(version, path):
    saved(path)
    rewritten(path, lambda header: header.update(version=version))
    refused(path, str(path), f"version {version}", "expected version 3", "Update learnreg")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value, path):
    saved(path, perturbed(FoE(2, 3)))

    def spoil(held):
        held["kernels"].view(-1)[3] = value
        return held

    rewritten(path, tensors=spoil)
    refused(path, str(path), "NaN or Inf in kernels", "finite weights")


CHANGES = {
    "shape": lambda held: {**held, "kernels": held["kernels"][:1]},
    "size": lambda held: {**held, "kernels": torch.zeros(2, 1, 5, 5)},
    "missing": lambda held: {k: v for k, v in held.items() if k != "log_scale"},
    "extra": lambda held: {**held, "surplus": torch.zeros(3)},
    "other name": lambda held: {
        ("weights" if k == "log_weights" else k): v for k, v in held.items()
    },
    "nothing": lambda held: {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_that_do_not_fit(change, path):
    saved(path, perturbed(FoE(2, 3)))
    rewritten(path, tensors=CHANGES[change])
    refused(path, str(path), "weights that do not fit the regularizer", "the tensors of FoE")


def test_weights_that_are_integers(path):
    saved(path)
    rewritten(path, tensors=lambda held: {k: v.round().long() for k, v in held.items()})
    refused(path, str(path))


HEADERS = {
    "no regularizer": lambda h: h.pop("regularizer"),
    "no physics": lambda h: h.pop("physics"),
    "no sigma": lambda h: h.pop("sigma"),
    "unknown regularizer": lambda h: h.update(regularizer={"type": "os.system", "command": "true"}),
    "nameless regularizer": lambda h: h.update(regularizer={}),
    "regularizer of text": lambda h: h.update(regularizer="TV"),
    "unhashable type": lambda h: h.update(regularizer={"type": ["TV"]}),
    "foreign argument": lambda h: h["regularizer"].update(weights=3),
    "argument out of range": lambda h: h.update(
        regularizer={"type": "FoE", "filters": -3, "size": 3}
    ),
    "argument of another type": lambda h: h.update(
        regularizer={"type": "FoE", "filters": "2", "size": 3}
    ),
    "empty sum": lambda h: h.update(regularizer={"type": "Sum", "terms": []}),
    "sum without terms": lambda h: h.update(regularizer={"type": "Sum"}),
    "sum of text": lambda h: h.update(regularizer={"type": "Sum", "terms": "TV"}),
    "negative factor": lambda h: h.update(
        regularizer={"type": "Scaled", "factor": -1, "regularizer": {"type": "TV"}}
    ),
    "negative sigma": lambda h: h.update(sigma=-1.0),
    "sigma of text": lambda h: h.update(sigma="1"),
    "physics of text": lambda h: h.update(physics="Denoising"),
    "negative noise": lambda h: h.update(physics={"type": "Denoising", "sigma": "a"}),
    "unknown physics": lambda h: h.update(physics={"type": "os.system", "settings": {}}),
    "physics without tensors": lambda h: h.update(
        physics={"type": "MRI", "settings": {"three_d": False}}
    ),
}


@pytest.mark.parametrize("change", HEADERS)
def test_a_header_that_was_tampered_with(change, path):
    saved(path)
    rewritten(path, HEADERS[change])
    refused(path)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch_legacy", "in_the_header"])
def test_a_pickle_is_refused_and_never_executed(kind, path, tmp_path):
    target = tmp_path / "exploded"
    bomb = Bomb(target)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif kind == "in_the_header":
        save_file(
            {"log_weight": torch.zeros(())}, path, {"learnreg": pickle.dumps(bomb, 0).decode()}
        )
    else:
        torch.save({"weight": bomb}, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ModelFileError):
        load_model(path)
    with pytest.raises(ModelFileError):
        load_model(path, regularizer=TV(), physics=denoising())
    with pytest.raises(ModelFileError):
        model_notes(path)
    assert not target.exists()


def test_the_bomb_is_one(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").is_dir()


def test_every_regularizer_of_the_library_can_be_named_by_a_file():
    from learnreg import regularizers

    classes = {
        name
        for name in regularizers.__all__
        if isinstance(getattr(regularizers, name), type)
        and issubclass(getattr(regularizers, name), Regularizer | SaddleRegularizer)
    }
    assert classes - {"Regularizer", "Sum", "Scaled", "SaddleRegularizer"} == set(
        regularizers.KNOWN
    )


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_a_physics_with_another_noise_level_is_followed(tmp_path, sigma):
    learned = Energy(denoising(), TV(0.1))
    path = save_model(tmp_path / "model.safetensors", learned)
    other = load_model(path, physics=denoising(sigma))
    wanted = at_noise_level(learned, sigma)
    y = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found, expected = (solve(energy, y, 1e-5).value for energy in (other, wanted))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    same = load_model(path, physics=denoising())
    assert same.fidelity == learned.fidelity
    # saved again it is a model for the other level
    again = load_model(save_model(tmp_path / "again.safetensors", other))
    torch.testing.assert_close(solve(again, y, 1e-5).value, expected, atol=2e-5, rtol=0)
