"""Saddle-point models as files: data term and tikhonov come back, older files mean what they meant,
damage is named.
"""

from __future__ import annotations

import deepinv
import pytest
import torch
from safetensors.torch import load_file
from tests.models.test_model_file import denoising, refused, rewritten
from torch import nn

from learnreg.core.errors import InputError, ModelFileError
from learnreg.core.results import RunRecord, StopReason
from learnreg.models import load_model, save_model
from learnreg.problems import KL, L1, L2, Energy, SaddleEnergy, energy_for
from learnreg.regularizers import KNOWN, TV, ExactTV, SaddleRegularizer
from learnreg.runs import Run
from learnreg.solvers import solve

SADDLES = [name for name, kind in KNOWN.items() if issubclass(kind, SaddleRegularizer)]


def made(name: str) -> SaddleRegularizer:
    """A regularizer with parameters that are not its start values."""
    regularizer = KNOWN[name]()
    with torch.no_grad():
        for k, p in enumerate(regularizer.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    return regularizer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SADDLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_saddle_regularizer_comes_back_as_it_was(name, dtype, path):
    energy = SaddleEnergy(denoising(), made(name).to(dtype), L2(0.7), tikhonov=0.25)
    loaded = load_model(save_model(path, energy))
    assert type(loaded) is SaddleEnergy and type(loaded.regularizer) is KNOWN[name]
    assert (loaded.fidelity, loaded.tikhonov) == (L2(0.7), 0.25)
    assert repr(loaded.regularizer) == repr(energy.regularizer)
    held, found = energy.regularizer.state_dict(), loaded.regularizer.state_dict()
    assert list(held) == list(found) and all(
        held[k].equal(found[k]) and found[k].dtype == dtype for k in held
    )
    u = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        blocks = (u, *(torch.rand_like(v) for v in energy.regularizer.auxiliary(u)))
        assert all(
            a.equal(b)
            for a, b in zip(
                energy.regularizer.linear(*blocks), loaded.regularizer.linear(*blocks), strict=True
            )
        )


@pytest.mark.parametrize("fidelity", [L2(), L2(0.5), L1(), L1(0.3), KL(), KL(2.5)], ids=repr)
@pytest.mark.parametrize("tikhonov", [0.0, 0.5])
def test_the_data_term_comes_back(fidelity, tikhonov, path):
    loaded = load_model(save_model(path, SaddleEnergy(denoising(), ExactTV(), fidelity, tikhonov)))
    assert loaded.fidelity == fidelity and type(loaded.fidelity) is type(fidelity)
    assert loaded.tikhonov == tikhonov


def test_a_loaded_model_gives_the_same_reconstruction(path):
    energy = SaddleEnergy(denoising(), made("ExactTV"), L1(0.5), tikhonov=1.0)
    y = torch.rand(2, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    assert solve(load_model(save_model(path, energy)), y, 1e-2).value.equal(
        solve(energy, y, 1e-2).value
    )


def test_a_run_comes_back(tmp_path):
    energy = SaddleEnergy(denoising(), ExactTV(0.2), L1(0.5), tikhonov=1.0)
    theta = torch.tensor([-1.25])
    record = RunRecord(
        "problem", "learner", 1, ({"step": 0, "loss": 1.0, "work": 1, "seconds": 0.0},)
    )
    run = Run(record, StopReason("budget", "it ended"), theta, theta[None], energy, "mine")
    loaded = Run.load(run.save(tmp_path / "run"))
    assert loaded.energy.fidelity == L1(0.5) and loaded.energy.tikhonov == 1.0
    assert loaded.trained.regularizer.log_weight.item() == -1.25
    y = torch.rand(1, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    assert loaded.reconstruct(y, 1e-2).value.equal(run.reconstruct(y, 1e-2).value)
    assert Run.load(tmp_path / "run", energy=energy).energy.fidelity is energy.fidelity


class Mine(ExactTV):
    """A class that the library does not know."""

    def spec(self):
        return {"type": "Mine"}


def test_an_own_class_is_filled(path):
    save_model(path, SaddleEnergy(denoising(), Mine(0.3), L1(2.0), tikhonov=1.0))
    with pytest.raises(
        ModelFileError, match=r"given 'Mine'.*load_model\(path, regularizer=\.\.\.\)"
    ):
        load_model(path)
    other = Mine()
    loaded = load_model(path, regularizer=other)
    assert loaded.regularizer is other and loaded.fidelity == L1(2.0)
    assert other.log_weight.exp().item() == pytest.approx(0.3)


def test_another_physics_can_be_given(path):
    physics = deepinv.physics.Blur(filter=torch.ones(1, 1, 3, 3) / 9, padding="circular")
    save_model(path, SaddleEnergy(physics, ExactTV(), tikhonov=0.1))
    assert load_model(path).physics.filter.equal(physics.filter)
    assert load_model(path, physics=physics).physics is physics


# --- compatibility --------------------------------------------------------------------------------


def test_an_energy_is_written_as_it_always_was(path):
    save_model(path, Energy(denoising(), TV(), L2(0.3)))
    headers = []
    rewritten(path, lambda header: headers.append(dict(header)))
    assert set(headers[0]) == {"format", "version", "regularizer", "sigma", "physics", "notes"}
    assert headers[0]["version"] == 1 and headers[0]["sigma"] == 0.3
    assert set(load_file(path)) == {"log_weight", "log_smoothing"}


@pytest.mark.parametrize(("regularizer", "kind"), [(TV(), Energy), (ExactTV(), SaddleEnergy)])
def test_a_file_without_the_new_keys_has_l2(regularizer, kind, path):
    save_model(path, energy_for(denoising(), regularizer, L2(0.4)))

    def older(header):
        header.pop("fidelity", None)
        header.pop("tikhonov", None)
        header["sigma"] = 0.4

    rewritten(path, older)
    loaded = load_model(path)
    assert (
        type(loaded) is kind
        and loaded.fidelity == L2(0.4)
        and getattr(loaded, "tikhonov", 0.0) == 0.0
    )


# --- what is refused ------------------------------------------------------------------------------

HEADERS = {
    "unknown data term": lambda h: h.update(fidelity={"type": "os.system", "command": "true"}),
    "nameless data term": lambda h: h.update(fidelity={}),
    "data term of text": lambda h: h.update(fidelity="L2"),
    "data term none": lambda h: h.update(fidelity=None),
    "unhashable data term": lambda h: h.update(fidelity={"type": ["L2"]}),
    "foreign argument": lambda h: h["fidelity"].update(weight=3),
    "argument out of range": lambda h: h.update(fidelity={"type": "KL", "background": -1.0}),
    "argument of another type": lambda h: h.update(fidelity={"type": "L1", "weight": "1"}),
    "no tikhonov": lambda h: h.pop("tikhonov"),
    "negative tikhonov": lambda h: h.update(tikhonov=-1.0),
    "tikhonov of text": lambda h: h.update(tikhonov="1"),
    "neither data term nor sigma": lambda h: h.pop("fidelity"),
    "regularizer of another kind": lambda h: h.update(regularizer={"type": "TV"}),
}


@pytest.mark.parametrize("change", HEADERS)
def test_a_header_that_was_tampered_with(change, path):
    save_model(path, SaddleEnergy(denoising(), ExactTV(), L2(0.5), tikhonov=0.5))
    rewritten(path, HEADERS[change])
    refused(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, path):
    save_model(path, SaddleEnergy(denoising(), ExactTV()))
    rewritten(path, tensors=lambda held: {k: torch.full_like(v, value) for k, v in held.items()})
    refused(path, "NaN or Inf in log_weight")


def test_a_data_term_of_ones_own_keeps_its_weights_but_must_be_rebuilt(path):
    class Own(L1):
        """Not one that a file can name."""

    save_model(path, SaddleEnergy(denoising(), ExactTV(0.3), Own()))
    refused(path, "fidelity: given 'Own'; expected one of L2, L1, KL")
    assert load_file(path)["log_weight"].exp().item() == pytest.approx(0.3)


# --- the function that chooses --------------------------------------------------------------------


def test_the_regularizer_decides_which_energy_it_is():
    physics = denoising()
    saddle = energy_for(physics, ExactTV(), L1(0.5), 0.25)
    assert type(saddle) is SaddleEnergy and saddle.fidelity == L1(0.5) and saddle.tikhonov == 0.25
    smooth = energy_for(physics, TV(), L2(0.5))
    assert type(smooth) is Energy and smooth.fidelity == L2(0.5)


@pytest.mark.parametrize(
    ("regularizer", "arguments", "words"),
    [
        (TV(), (None, 0.5), "tikhonov: given 0.5; expected 0 with a differentiable regularizer"),
        (
            TV(),
            (L1(),),
            "fidelity: given L1, which has no gradient; expected a smooth data term",
        ),
        (ExactTV(), (None, -1.0), "tikhonov: given -1.0"),
        (nn.Linear(1, 1), (), "regularizer: given Linear"),
    ],
)
def test_what_does_not_go_together_is_refused(regularizer, arguments, words):
    with pytest.raises(InputError) as caught:
        energy_for(denoising(), regularizer, *arguments)
    assert words in str(caught.value)
