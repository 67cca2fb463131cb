"""Physics, noise and data terms in configuration files: every example runs, what does not go
together is refused when the file is read.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tests.cli.cases import invoke, write_config

import learnreg as lr
from learnreg import physics as P
from learnreg.cli.compare_config import load_comparison
from learnreg.cli.config import EXAMPLES, Config, example, load_config
from learnreg.cli.physics_section import FEW_COUNTS, FIDELITIES, NOISES, PHYSICS, TIKHONOV
from learnreg.cli.prepare import prepare
from learnreg.core.errors import ConfigError
from learnreg.models import load_model, save_model
from learnreg.problems import KL, L1, L2, Energy, Huber, PoissonGaussian, SaddleEnergy
from learnreg.regularizers import Sum, Tikhonov


@pytest.fixture
def load(tmp_path):
    """Text to Config."""

    def read(text, **options):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, **options)

    return read


def small(name: str) -> Config:
    """An example at a size for tests."""
    told = dict(EXAMPLES[name])
    told["data"] = dict(told.get("data", {})) | {
        "source": "phantoms",
        "size": 16,
        "train": 2,
        "test": 1,
    }
    told["regularizer"] = {"type": "TV", "weight": 0.1, "smoothing": 0.1}
    if name == "PET":
        told["regularizer"]["weight"] = 1.0
    return Config.model_validate(told)


# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_says_all_its_keys_and_loads(name, load):
    text = example(name.lower())
    config = load(text)
    assert config == Config.model_validate(EXAMPLES[name])
    for section in (config.physics, config.noise, config.fidelity):
        for key in type(section).model_fields:
            assert f"\n{key} = " in text or f"\n# {key} =" in text
    assert load(config.to_toml()) == config


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_learns_and_its_model_needs_nothing_else(name, tmp_path):
    problem, test = prepare(small(name))
    run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=1))
    model = load_model(save_model(tmp_path / "model.safetensors", run.trained))
    y = test.y
    found, again = lr.solve(run.trained, y, 0.1), lr.solve(model, y, 0.1)
    assert again.ok and again.value.shape == test.x.shape
    assert (found.value - again.value).norm() <= 0.2
    kinds = type(model.physics), type(model.fidelity)
    assert kinds == (type(problem.energy.physics), type(problem.energy.fidelity))


@pytest.mark.parametrize("text", [example(), example("PET")], ids=["denoising", "PET"])
def test_an_example_may_be_changed_to_another_physics(text, load):
    ours = text.replace('type = "denoising"', 'type = "blur"')
    assert load(ours).fidelity.tikhonov == (0.5 if "PET" in ours.split("[data]")[1] else TIKHONOV)


def test_the_command_prints_them(tmp_path):
    assert invoke("learn", "--example").output == example()
    assert invoke("learn", "--example", "ct").output == example("CT")
    with pytest.raises(ConfigError, match=r"MRI.*Did you mean 'MRI'"):
        example("MIR")


@pytest.mark.slow
def test_a_run_of_a_file_leaves_a_model_that_loads_alone(tmp_path):
    path = write_config(tmp_path, steps=1, size=16, regularizer='type = "TV"\nweight = 0.05')
    path.write_text(f"{path.read_text()}[physics]\ntype = 'inpainting'\nkeep = 0.5\n")
    invoke("learn", path)
    model = load_model(tmp_path / "out" / "model.safetensors")
    assert P.image_shape(model.physics) == (1, 16, 16)
    assert load_config(tmp_path / "out" / "config.toml").physics == load_config(path).physics


# --- what is left out follows ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", PHYSICS)
def test_the_noise_follows_the_physics(kind, load):
    channels = 3 if kind == "demosaicing" else 1
    config = load(f"[data]\nchannels = {channels}\n[physics]\ntype = '{kind}'")
    assert config.build_noise() == P.SETUPS[kind]().default_noise()
    assert config.build_setup() == P.SETUPS[kind]()


def test_the_counts_of_a_scanner_are_those_of_its_section(load):
    config = load("[physics]\ntype = 'PET'\ncounts = 100.0\nbackground = 2.0")
    assert config.build_noise() == P.Poisson(0.01, 2.0, normalized=False)
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    assert energy.fidelity == KL(2.0, 0.01) and config.fidelity.tikhonov == 100 * TIKHONOV


@pytest.mark.parametrize("keys", ["tikhonov = 1.0", "type = 'KL'", "type = 'Poisson'"])
def test_keys_of_a_data_term_that_are_left_out_follow_too(keys, load):
    config = load(f"[physics]\ntype = 'PET'\n[fidelity]\n{keys}")
    assert config.build_energy(P.Denoising().build((16, 16)), 1).fidelity == KL(5.0, 0.02)
    assert load(config.to_toml()) == config


def test_a_file_of_another_size_is_named_with_its_key(load, tmp_path):
    np.save(tmp_path / "mask.npy", np.ones((16, 16)))
    path = json.dumps(str(tmp_path / "mask.npy"))
    config = load(f"[data]\nsize = 24\n[physics]\ntype = 'inpainting'\nfile = {path}")
    with pytest.raises(ConfigError, match=r"\[physics\] file: .*24 x 24"):
        prepare(config)


@pytest.mark.parametrize(
    ("noise", "term"),
    [
        ("gaussian", L2()),
        ("uniform", L2()),
        ("none", L2()),
        ("poisson_gaussian", PoissonGaussian(0.0, 0.02, 0.05)),
        ("poisson", KL(FEW_COUNTS, 0.02, scaled=True)),
        ("salt_pepper", Huber()),
    ],
)
def test_the_data_term_follows_the_noise(noise, term, load):
    config = load(f"[noise]\ntype = '{noise}'\n[regularizer]\ntype = 'TV'")
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    assert energy.fidelity == term
    assert (config.fidelity.tikhonov > 0) == (term != L2())


def test_saddle_points_take_counts_with_their_gain(load):
    config = load("[noise]\ntype = 'poisson'\n[regularizer]\ntype = 'ExactTV'")
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    assert isinstance(energy, SaddleEnergy)
    assert energy.fidelity == KL(FEW_COUNTS, 0.02, scaled=True)


@pytest.mark.parametrize("kind", ["KL", "PoissonGaussian"])
def test_a_background_may_be_a_file(kind, load, tmp_path):
    np.save(tmp_path / "background.npy", np.full((1, 16, 16), 3.0, dtype=np.float32))
    noise = {"KL": "poisson", "PoissonGaussian": "poisson_gaussian"}[kind]
    path = json.dumps(str(tmp_path / "background.npy"))
    config = load(f"[noise]\ntype = '{noise}'\n[fidelity]\ntype = '{kind}'\nbackground = {path}")
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    assert torch.equal(energy.fidelity.background, torch.full((1, 1, 16, 16), 3.0))
    assert load(config.to_toml()) == config


def test_saddle_points_meet_outliers_by_their_distance(load):
    config = load("[noise]\ntype = 'salt_pepper'\n[regularizer]\ntype = 'ExactTV'")
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    assert isinstance(energy, SaddleEnergy) and energy.fidelity == L1()
    assert energy.tikhonov == TIKHONOV


@pytest.mark.parametrize(
    ("text", "tikhonov"),
    [
        ("", 0.0),
        ("[physics]\ntype = 'blur'", TIKHONOV),
        ("[physics]\ntype = 'blur'\n[fidelity]\ntikhonov = 0.5", 0.5),
        ("[physics]\ntype = 'blur'\n[fidelity]\nsigma = 0.1", 100 * TIKHONOV),
        ("[fidelity]\ntype = 'Huber'\nweight = 2", 2 * TIKHONOV),
        (
            "[physics]\ntype = 'blur'\n[[regularizer.terms]]\ntype = 'TV'\n"
            "[[regularizer.terms]]\ntype = 'Tikhonov'",
            0.0,
        ),
    ],
)
def test_an_energy_gets_the_convexity_that_certificates_need(text, tikhonov, load):
    config = load(text)
    assert config.fidelity.tikhonov == pytest.approx(tikhonov)
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    fixed = [m for m in energy.modules() if isinstance(m, Tikhonov)]
    weights = [m.log_weight.exp().item() for m in fixed if not m.log_weight.requires_grad]
    assert weights == pytest.approx([tikhonov] if tikhonov else [])


def test_the_fixed_term_is_not_learned(load):
    config = load("[physics]\ntype = 'blur'\n[regularizer]\ntype = 'TV'")
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    assert isinstance(energy.regularizer, Sum) and isinstance(energy, Energy)
    assert sum(p.numel() for p in energy.parameters() if p.requires_grad) == 2
    assert config.name == "TV"


# --- levels of noise ------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["physics", "noise"])
@pytest.mark.parametrize("written", ['"25/255"', '"25 / 255"', str(25 / 255)])
def test_a_level_is_a_number_or_a_fraction(section, written, load):
    config = load(f"[{section}]\nsigma = {written}")
    assert config.build_noise() == P.Gaussian(25 / 255)
    assert load(config.to_toml()).build_noise() == P.Gaussian(25 / 255)


@pytest.mark.parametrize("section", ["physics", "noise"])
@pytest.mark.parametrize("written", ["25", "25.0", '"25"', "0.7"])
def test_a_level_of_grey_values_up_to_255_is_an_error_that_teaches(section, written, load):
    with pytest.raises(ConfigError, match=rf"\[{section}\] sigma: .*\"25/255\""):
        load(f"[{section}]\nsigma = {written}")


def test_measurements_of_another_range_may_have_any_level(load):
    text = "[physics]\ntype = 'CT'\nnormalized = false\n[noise]\nsigma = 2.0"
    assert load(text).build_noise() == P.Gaussian(2.0)


@pytest.mark.parametrize("written", ['"a"', '"1/0"', '""', "true", "[1]"])
def test_a_level_that_is_none(written, load):
    with pytest.raises(ConfigError, match=r"\[noise\] sigma: given"):
        load(f"[noise]\nsigma = {written}")


def test_one_place_says_the_noise(load):
    text = "[physics]\nsigma = 0.2\n[noise]\ntype = '{}'\n"
    for other in (text.format("poisson"), text.format("gaussian") + "sigma = 0.1\n"):
        with pytest.raises(ConfigError, match=r"\[physics\] sigma: .*one place for the noise"):
            load(other)
    same = load(text.format("gaussian") + "sigma = 0.2\n")
    assert same.build_noise() == P.Gaussian(0.2) == load("[physics]\nsigma = 0.2").build_noise()


# --- what does not go together --------------------------------------------------------------------

BLUR = "[physics]\ntype = 'blur'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fidelity]\ntype = 'L1'\n[regularizer]\ntype = 'TV'", r"\[fidelity\].*SaddleEnergy"),
        ("[fidelity]\ntype = 'L3'", r"\[fidelity\] type: given \"L3\".*L2, WeightedL2"),
        ("[fidelity]\nsigma = -1", r"\[fidelity\] sigma"),
        ("[fidelity]\ntikhonov = -1", r"\[fidelity\] tikhonov: given -1"),
        (BLUR + "[fidelity]\ntikhonov = 0", r"\[fidelity\] tikhonov: given 0 with blur"),
        ("[fidelity]\ntype = 'Huber'\ntikhonov = 0", r"\[fidelity\] tikhonov: given 0"),
        ("[fidelity]\ntype = 'Huber'\nthreshold = 0", r"\[fidelity\] threshold"),
        ("[fidelity]\ntype = 'WeightedL2'", r"\[fidelity\] file"),
        ("[fidelity]\ntype = 'WeightedL2'\nfile = 'none.npy'", r"\[fidelity\] file.*no such file"),
        ("[fidelity]\ntype = 'KL'", r"\[fidelity\] type: .*gaussian noise"),
        (
            "[noise]\ntype = 'poisson'\n[fidelity]\ntype = 'KL'\ngain = 1.0",
            r"\[fidelity\] gain: given 1.0; expected 0.02",
        ),
        (
            "[noise]\ntype = 'poisson'\n[fidelity]\ntype = 'Poisson'\nscaled = false",
            r"\[fidelity\] scaled: given false; expected true",
        ),
        ("[noise]\ntype = 'gauss'", r"\[noise\] type: given \"gauss\".*'gaussian'"),
        ("[noise]\ntype = 'poisson'\nsigma = 0.1", r"\[noise\] sigma: given an unknown key"),
        ("[noise]\ntype = 'poisson'\ngain = 0", r"\[noise\] gain"),
        ("[noise]\ntype = 'salt_pepper'\nsalt = 1.0", r"\[noise\] salt"),
        ("[physics]\ntype = 'ct'", r"\[physics\] type: given \"ct\".*Did you mean 'CT'"),
        (BLUR + "kernel = 'gauss'", r"\[physics\] kernel: .*'gaussian', 'disk'"),
        (BLUR + "sigma = 0.1", r"\[physics\] sigma: given an unknown key"),
        (BLUR + "width = -1", r"\[physics\] width"),
        ("[physics]\ntype = 'demosaicing'", r"\[data\] channels: .*channels = 3"),
        ("[physics]\ntype = 'MRI'\n[data]\nchannels = 3", r"\[data\] channels"),
        ("[physics]\ntype = 'superresolution'\n[data]\nsize = 25", r"\[data\] size: .*size = 24"),
        ("[physics]\ntype = 'CT'\ndetectors = 30", r"\[physics\] detectors"),
        ("[run]\ndevice = 'gpu'", r"\[run\] device: given \"gpu\".*\"auto\""),
        ("[run]\ndevice = 'cuda:99'", r"\[run\] device: given \"cuda:99\""),
        ("[run]\ndevice = 'cuda:x'", r"\[run\] device"),
    ],
)
def test_what_cannot_work_is_refused_when_the_file_is_read(text, words, load):
    with pytest.raises(ConfigError, match=words):
        load(text)


def test_the_device_is_one_that_is_there(load):
    assert load("[run]\ndevice = 'cpu'").run.check_device() == torch.device("cpu")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert load("[run]\ndevice = 'auto'").run.check_device() == torch.device(there)


def test_weights_come_from_a_file(load, tmp_path):
    weights = np.random.default_rng(0).random((1, 16, 16)).astype(np.float32)
    np.save(tmp_path / "weights.npy", weights)
    path = json.dumps(str(tmp_path / "weights.npy"))
    config = load(f"[data]\nsize = 16\n[fidelity]\ntype = 'WeightedL2'\nfile = {path}")
    energy = config.build_energy(P.Denoising().build((16, 16)), 1)
    assert energy.fidelity.weights.equal(torch.from_numpy(weights)[None])
    assert config.fidelity.tikhonov == TIKHONOV


# --- comparisons ----------------------------------------------------------------------------------


def test_comparisons_take_the_same_sections(tmp_path):
    path = tmp_path / "compare.toml"
    path.write_text(
        "[data]\nsize = 16\n[physics]\ntype = 'CT'\nangles = 9\n[noise]\nsigma = 0.02\n"
        "[regularizer]\ntype = 'TV'\n[[learners]]\ntype = 'maid'\n"
    )
    plan = load_comparison(path)
    config = plan.learn_config(plan.variants[0], "", 0)
    assert config.build_setup() == P.CT(9) and config.build_noise() == P.Gaussian(0.02)
    assert config.fidelity.tikhonov == TIKHONOV
    assert Config.model_validate(config.model_dump(mode="json")) == config

    path.write_text(f"{path.read_text()}[fidelity]\ntype = 'L1'\n")
    with pytest.raises(ConfigError, match=r"\[fidelity\]"):
        load_comparison(path)


def test_sections_are_those_of_the_library():
    assert set(PHYSICS) == set(P.SETUPS) and set(NOISES) == set(P.NOISES)
    assert set(FIDELITIES) == {
        "L2",
        "WeightedL2",
        "SampledL2",
        "L1",
        "Huber",
        "KL",
        "Poisson",
        "PoissonGaussian",
    }
