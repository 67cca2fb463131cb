"""[fidelity] type = "SampledL2" in configuration files."""

from __future__ import annotations

import pytest
import torch
from tests.cli.cases import invoke

from learnreg.cli.config import load_config
from learnreg.cli.prepare import prepare
from learnreg.core.errors import ConfigError
from learnreg.models import load_model
from learnreg.problems import SampledL2, SparsityPenalty

MRI = "[physics]\ntype = 'MRI'\nacceleration = 1\n"
SMALL = "[data]\nsource = 'phantoms'\nsize = 16\ntrain = 2\ntest = 1\n"
TV = "[regularizer]\ntype = 'TV'\nweight = 0.02\nsmoothing = 0.1\n"
LEARNER = "[learner]\ntype = {}\n"


@pytest.fixture
def load(tmp_path):
    """Text to Config."""

    def read(text):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return read


def sampled(keys: str = "") -> str:
    return f"[fidelity]\ntype = 'SampledL2'\n{keys}\n"


@pytest.mark.parametrize(
    "physics, keys, count, shape",
    [
        (MRI, "", 256, (16, 16)),
        (MRI + "coils = 3\n", "kind = 'lines'", 16, (16, 16)),
        ("[physics]\ntype = 'CT'\nangles = 6\n", "kind = 'lines'", 6, None),
        ("", "kind = 'radial'\nspokes = 5", 5, (16, 16)),
    ],
)
def test_a_pattern_fits_the_measurements(load, physics, keys, count, shape):
    config = load(SMALL + physics + sampled(keys) + TV)
    problem, _ = prepare(config)
    term = problem.energy.fidelity
    assert isinstance(term, SampledL2) and term.weights.numbers.numel() == count
    assert shape is None or term.weights.shape == shape
    assert problem.penalty == SparsityPenalty.of(problem.energy, 1.0, 0.5)
    assert load(config.to_toml()) == config
    energy = problem.energy
    assert bool(
        torch.isfinite(energy.value(torch.zeros_like(problem.pairs.x), problem.pairs.y)).all()
    )


@pytest.mark.parametrize("parametrization, name", [("omega", "omega"), ("S", "root")])
def test_learners_get_the_range_of_the_weights_unless_they_have_one(load, parametrization, name):
    text = SMALL + MRI + sampled(f"parametrization = '{parametrization}'") + TV
    for kind in ("'maid'", "'lbfgsb'", "'hoag'", "'stochastic'", "'fixed'"):
        learner = load(text + LEARNER.format(kind)).build_learner()
        assert learner.box == {name: [0.0, 1.0]}
    own = load(text + LEARNER.format("'maid'") + f"box = {{{name} = [0.0, 0.5]}}").build_learner()
    assert own.box == {name: [0.0, 0.5]}
    other = load(SMALL + MRI + TV + LEARNER.format("'maid'")).build_learner()
    assert other.box is None


@pytest.mark.parametrize(
    "text, words",
    [
        (MRI.replace("1", "4") + sampled(), r"acceleration: given 4.*Set acceleration = 1"),
        (MRI + sampled("kind = 'rows'"), r"\[fidelity\] kind"),
        (MRI + sampled("axis = 0"), r"\[fidelity\] axis"),
        (MRI + sampled("start = 0.0"), r"\[fidelity\] start"),
        (MRI + sampled("start = 2.0"), r"\[fidelity\] start"),
        (MRI + sampled("beta0 = -1.0"), r"\[fidelity\] beta0"),
        (MRI + sampled() + LEARNER.format("'deferred'"), r"keeps a box.*maid"),
        (MRI + sampled() + "[regularizer]\ntype = 'ExactTV'\n", "differentiable Energy"),
    ],
)
def test_what_does_not_go_together_is_refused_when_the_file_is_read(load, text, words):
    regularizer = "" if "[regularizer]" in text else TV
    with pytest.raises(ConfigError, match=words):
        load(SMALL + text + regularizer)


@pytest.mark.slow
def test_a_pattern_is_learned_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = "kind = 'lines'\nbeta0 = 2.0"
    rest = "[budget]\nsteps = 2\n[run]\nbaselines = []\n"
    (tmp_path / "config.toml").write_text(SMALL + MRI + sampled(keys) + TV + rest)
    done = invoke("learn", "config.toml")
    assert done.exit_code == 0, done.output
    model = load_model(tmp_path / "report" / "model.safetensors")
    assert model.fidelity.weights.kind == "lines" and model.fidelity.weights.shape == (16, 16)
    omega = model.fidelity.weights().detach()
    assert bool(((omega >= 0) & (omega <= 1)).all()) and bool((omega < 1).any())
