"""Saddle-point regularizers and their strategies from a configuration file: chosen, checked, run,
resumed, compared.
"""

from __future__ import annotations

import json
import re

import pytest
from tests.cli.cases import assert_same_run, invoke, rows, save_png, write_config

from learnreg.cli.compare_config import load_comparison
from learnreg.cli.config import Config, example, load_config
from learnreg.cli.mistakes import one_of_words
from learnreg.cli.prepare import prepare
from learnreg.cli.progress import LearnProgress
from learnreg.cli.settings import (
    OF_SADDLES,
    REGULARIZERS,
    SADDLES,
    STRATEGIES,
    default_strategy,
    described,
)
from learnreg.core.errors import ConfigError
from learnreg.hypergradients import JointPiggyback, Piggyback
from learnreg.hypergradients.choose import natural_map
from learnreg.models.trained import model_channels
from learnreg.problems import Energy, SaddleEnergy
from learnreg.regularizers import KNOWN, TGV, ExactTV, LearnedTV, SaddleRegularizer
from learnreg.reports import Comparison
from learnreg.solvers import PDHG


@pytest.fixture
def load(tmp_path):
    """Text to Config."""

    def read(text):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return read


# --- what a configuration means -------------------------------------------------------------------


def test_all_saddle_regularizers_are_known_as_such():
    assert set(SADDLES) == {
        name for name, kind in KNOWN.items() if issubclass(kind, SaddleRegularizer)
    }
    assert {"ExactTV", "TGV", "LearnedTV"} <= set(SADDLES) and "TV" not in SADDLES
    assert f"# {', '.join(SADDLES)} are saddle points" in example()


@pytest.mark.parametrize("name", [n for n in KNOWN if n != "BlackBox"])
def test_the_energy_and_the_strategy_are_those_of_the_regularizer(name):
    tiny = {"source": "phantoms", "size": 11, "train": 1, "test": 1}
    config = Config.model_validate({"data": tiny, "regularizer": {"type": name}})
    energy = prepare(config)[0].energy
    assert type(energy) is (SaddleEnergy if name in SADDLES else Energy)
    assert config.build_hypergradient() is None
    assert default_strategy(config.regularizer) == natural_map(energy)


def test_a_sum_is_differentiated_as_differentiable_regularizers_are(load):
    config = load("[[regularizer.terms]]\ntype = 'TV'\n[[regularizer.terms]]\ntype = 'Tikhonov'\n")
    assert default_strategy(config.regularizer) == STRATEGIES["implicit"]().build()


def test_values_arrive(load):
    weight = load(
        "[regularizer]\ntype = 'ExactTV'\nweight = 0.3\nisotropic = false"
    ).build_regularizer()
    assert isinstance(weight, ExactTV) and weight.log_weight.exp().item() == pytest.approx(0.3)
    assert not weight.isotropic
    second = load(
        "[regularizer]\ntype = 'TGV'\nweight = 0.2\nratio = 3.0\ncurvature = 0.1"
    ).build_regularizer()
    assert isinstance(second, TGV) and second.curvature == 0.1
    assert (second.log_second_weight - second.log_weight).exp().item() == pytest.approx(3.0)


def test_random_filters_take_the_seed_of_the_run(load):
    text = "[regularizer]\ntype = 'LearnedTV'\nfilters = 2\ninit = 'random'\n[run]\nseed = {}\n"
    one, two = (load(text.format(seed)).build_regularizer() for seed in (1, 2))
    assert isinstance(one, LearnedTV) and not one.coordinates.equal(two.coordinates)
    assert one.coordinates.equal(load(text.format(1)).build_regularizer().coordinates)


TEXTS = [
    "[hypergradient]\ntype = 'piggyback'\n",
    "[hypergradient]\ntype = 'joint_piggyback'\nsteps = 7\nbalance = 2.0\n",
    "[hypergradient]\ntype = 'piggyback'\nmax_steps = 50\n[hypergradient.solver]\nrule = "
    "'basic'\nbalance = 3.0\n",
]
EXPECTED = [
    Piggyback(),
    JointPiggyback(7, balance=2.0),
    Piggyback(PDHG("basic", 3.0), max_steps=50),
]


@pytest.mark.parametrize("name", SADDLES)
@pytest.mark.parametrize(("text", "expected"), list(zip(TEXTS, EXPECTED, strict=True)))
@pytest.mark.parametrize("comments", [False, True])
def test_every_strategy_can_be_chosen_and_survives_writing_and_reading(
    name, text, expected, comments, load
):
    config = load(f"[regularizer]\ntype = '{name}'\n{text}[run]\nsolver = 'pdhg'\n")
    assert config.build_hypergradient() == expected
    again = load(config.to_toml(comments))
    assert again == config and again.build_hypergradient() == expected


class Channelled:
    """A regularizer with feature maps beside the channels of images.

    Args:
        channels: feature maps.
        in_channels: of the images.
    """

    def __init__(self, channels: int = 4, in_channels: int = 1) -> None:
        self.channels, self.in_channels = channels, in_channels


def test_feature_maps_are_no_channels_of_images():
    section = described(Channelled, "Channelled")()
    built = section.build("regularizer", channels=3, seed=0)
    assert (built.channels, built.in_channels) == (4, 3)
    assert model_channels({"type": "Channelled", "channels": 4, "in_channels": 3}) == 3
    assert model_channels({"type": "FoE", "channels": 3}) == 3


# --- what is refused ------------------------------------------------------------------------------

SMOOTH_ONLY = one_of_words([name for name in REGULARIZERS if name not in SADDLES])
MISTAKES = [
    (
        "[regularizer]\ntype = 'ExactTV'\nscale = 2.0",
        "[regularizer] scale: given 2.0; expected no factor in front of ExactTV, which is a "
        "saddle point",
    ),
    ("[regularizer]\ntype = 'ExactTV'\nwieght = 2.0", "[regularizer] wieght: given an unknown key"),
    ("[regularizer]\ntype = 'TGV'\ncurvature = -1.0", "[regularizer] curvature: given -1.0"),
    (
        "[regularizer]\ntype = 'LearnedTV'\nsmoothing = 0.0",
        "[regularizer] curvature: given 5.0; expected 0 without",
    ),
    (
        "[[regularizer.terms]]\ntype = 'TV'\n[[regularizer.terms]]\ntype = 'ExactTV'",
        f'[regularizer.terms(2)] type: given "ExactTV"; expected {SMOOTH_ONLY}. '
        "ExactTV is a saddle point, which cannot be a term of a sum.",
    ),
    (
        "[regularizer]\ntype = 'ExactTV'\n[hypergradient]\ntype = 'implicit'",
        f'[hypergradient] type: given "implicit" for ExactTV; expected {one_of_words(OF_SADDLES)}',
    ),
    (
        "[regularizer]\ntype = 'ExactTV'\n[hypergradient]\nestimate = true",
        'given "implicit" for ExactTV',
    ),
    (
        "[hypergradient]\ntype = 'piggyback'",
        '[hypergradient] type: given "piggyback" for FoE; expected one of implicit, unrolled, '
        "jacobian_free",
    ),
    (
        "[[regularizer.terms]]\ntype = 'TV'\n[hypergradient]\ntype = 'joint_piggyback'",
        '"joint_piggyback" for Sum',
    ),
    (
        "[regularizer]\ntype = 'TGV'\n[run]\nsolver = 'agd'",
        '[run] solver: given "agd" for TGV; expected "pdhg"',
    ),
    (
        "[run]\nsolver = 'pdhg'",
        '[run] solver: given "pdhg" for FoE; expected a method for differentiable energies',
    ),
    (
        "[regularizer]\ntype = 'ExactTV'\n[hypergradient]\ntype = 'joint_piggyback'\nfixed = false",
        "fixed: given an unknown",
    ),
    (
        "[regularizer]\ntype = 'ExactTV'\n[hypergradient]\ntype = 'joint_piggyback'\nsteps = 0",
        "steps: given 0; expected",
    ),
    (
        "[regularizer]\ntype = 'ExactTV'\n[hypergradient]\ntype = "
        "'piggyback'\n[hypergradient.solver]\ntau = 1.0",
        "[hypergradient.solver] tau, sigma: given 1.0, None; expected both or none",
    ),
    (
        "[regularizer]\ntype = 'ExactTV'\n[hypergradient]\ntype = "
        "'piggyback'\n[hypergradient.solver]\nname = 'x'",
        "[hypergradient.solver] name: given an unknown key",
    ),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES)
def test_a_mistake_is_named_with_its_place(text, words, load, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value).startswith(f"{tmp_path / 'config.toml'}: [") and words in str(
        caught.value
    )


COMPARISON = """\
[data]
source = "phantoms"
size = 16
train = 2
test = 1
[regularizer]
type = "{kind}"
[budget]
steps = 2
[run]
output = {output}
eps_evaluate = 0.1
{run}
[comparison]
seeds = [0]
processes = 1
points = 2
relative = 1e-2
"""
LEARNERS = """
[[learners]]
type = "maid"
[[learners]]
type = "stochastic"
batch = 1
[learners.hypergradient]
type = "joint_piggyback"
steps = 20
"""


def comparison(folder, learners=LEARNERS, kind="ExactTV", run=""):
    path = folder / "compare.toml"
    path.write_text(
        COMPARISON.format(kind=kind, output=json.dumps(str(folder / "out")), run=run) + learners,
        encoding="utf-8",
    )
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "TV"}, '[learners(2).hypergradient] type: given "joint_piggyback" for TV'),
        (
            {
                "learners": "[[learners]]\ntype = 'maid'\n[learners.hypergradient]\ntype = "
                "'joint_piggyback'"
            },
            "[learners(1)]",
        ),  # MAID wants a lower level with an accuracy
        (
            {
                "learners": "[[learners]]\ntype = 'maid'\n[learners.hypergradient]\ntype = "
                "'implicit'"
            },
            '[learners(1).hypergradient] type: given "implicit" for ExactTV',
        ),
        (
            {"learners": "[[learners]]\ntype = 'maid'\nsolver = 'agd'"},
            '[learners(1)] solver: given "agd" for ExactTV',
        ),
        ({"run": "solver = 'agd'"}, '[run] solver: given "agd" for ExactTV'),
        (
            {
                "kind": "TV",
                "learners": "[[learners]]\ntype = 'maid'\n[learners.hypergradient]\ntype = "
                "'implicit'\n"
                "[[starts]]\nname = 'plain'\n[[starts]]\ntype = 'ExactTV'\n",
            },
            '"implicit" for ExactTV',
        ),
        (
            {"learners": "[[learners]]\ntype = 'maid'\n[[starts]]\nscale = 2.0"},
            "[starts(1)] scale: given 2.0; expected no factor in front of ExactTV",
        ),
    ],
)
def test_comparisons_refuse_what_does_not_go_together(arguments, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_comparison(comparison(tmp_path, **arguments))
    assert words in str(caught.value)


# --- whole runs -----------------------------------------------------------------------------------

SMALL = {"size": 16, "regularizer": 'type = "ExactTV"'}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder of a finished run of two steps, not to be written to."""
    folder = tmp_path_factory.mktemp("learned")
    result = invoke("learn", write_config(folder, **SMALL))
    assert "ExactTV with Denoising, 1 parameter, 2 images" in result.stdout
    return folder / "out"


def test_learning_lowers_the_loss_and_the_copy_repeats_it(learned, tmp_path):
    found, _ = rows(learned)
    assert len(found) == 3 and found[2]["upper"] < found[0]["loss"]
    invoke("learn", learned / "config.toml", "--output", tmp_path / "again")
    assert_same_run(learned, tmp_path / "again")


def test_the_page_says_how_distances_are_certified(learned, tmp_path):
    page = " ".join((learned / "index.html").read_text(encoding="utf-8").split())
    assert "it follows from strong convexity and the primal-dual gap, so no reconstruction" in page
    assert re.search(r"which is itself within \de-0\d of the exact one", page)
    for name in ("run.json", "run.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes((learned / name).read_bytes())
    assert "ExactTV" in invoke("report", tmp_path).stdout
    assert (tmp_path / "index.html").read_bytes() == (learned / "index.html").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ("ExactTV", ""),
        ("LearnedTV", "filters = 1\ninit = 'identity'"),
        ("TGV", "rounding = 0.01\ncurvature = 0.1"),
    ],
    ids=lambda o: o[0],
)
def test_resuming_gives_the_numbers_of_an_uninterrupted_run(options, tmp_path, unreported):
    settings = {"size": 16, "regularizer": f'type = "{options[0]}"\n{options[1]}'}
    invoke("learn", write_config(tmp_path, steps=2, **settings), "--output", tmp_path / "whole")
    invoke("learn", write_config(tmp_path, steps=1, **settings))
    assert (
        "Resuming"
        in invoke("learn", write_config(tmp_path, steps=2, **settings), "--resume").stdout
    )
    assert_same_run(tmp_path / "whole", tmp_path / "out")


@pytest.fixture
def unreported(monkeypatch) -> None:
    """Without evaluation and page, which take longer than all the rest here."""
    monkeypatch.setattr("learnreg.cli.learn.evaluate", lambda *_: None)
    monkeypatch.setattr("learnreg.cli.learn.Report", lambda *_, **__: Unwritten())


class Unwritten:
    """In the place of a Report."""

    def save(self, folder):
        return folder


def test_ctrl_c_keeps_the_last_step(learned, tmp_path, monkeypatch):
    show = LearnProgress.__call__

    def interrupt(self, row):
        show(self, row)
        if row["step"] == 1:
            raise KeyboardInterrupt

    path = write_config(tmp_path, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(LearnProgress, "__call__", interrupt)
        assert "after step 1" in invoke("learn", path, code=130).stderr
    invoke("learn", path, "--resume")
    assert_same_run(learned, tmp_path / "out")


def test_stochastic_steps_with_joint_piggyback_resume_to_the_same_numbers(tmp_path, unreported):
    text = (
        "\n[learner]\ntype = 'stochastic'\nbatch = 1\n"
        "[hypergradient]\ntype = 'joint_piggyback'\nsteps = 20\n"
    )

    def configured(steps):
        path = write_config(tmp_path, steps=steps, **SMALL)
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
        return path

    invoke("learn", configured(3), "--output", tmp_path / "whole")
    invoke("learn", configured(1))
    invoke("learn", configured(3), "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "out")


def test_a_model_reconstructs_pictures_of_any_size_and_channels(learned, tmp_path):
    grey, colour = (
        save_png(tmp_path / "grey.png", 21, 35),
        save_png(tmp_path / "colour.png", 20, 17, 3),
    )
    result = invoke(
        "reconstruct",
        "-m",
        learned / "model.safetensors",
        grey,
        colour,
        "-o",
        tmp_path / "clean",
        "--eps",
        "0.05",
    )
    found = re.findall(
        r"exact minimizer <= ([\d.e+-]+) over the image.*?by strong convexity and the primal-dual "
        r"gap",
        result.stdout.replace("\n", " "),
    )
    assert len(found) == 2 and all(float(distance) <= 0.05 for distance in found)
    assert {path.name for path in (tmp_path / "clean").iterdir()} == {"grey.png", "colour.png"}
    error = invoke(
        "reconstruct", "-m", learned / "config.toml", grey, "-o", tmp_path / "x.png", code=2
    ).stderr
    assert "not intact safetensors" in error


def test_maid_against_joint_piggyback(tmp_path, monkeypatch):
    monkeypatch.setattr(Comparison, "_render", lambda self: ("page", {}))
    path = comparison(tmp_path)
    result = invoke("compare", path)
    assert (
        "2/2" in result.stdout
        and "maid" in result.stdout
        and "joint_piggyback steps=20" in result.stdout
    )
    curves = [
        json.loads(p.read_text(encoding="utf-8"))
        for p in (tmp_path / "out" / "runs").glob("*/curve.json")
    ]
    strategies = {
        curve["method"].partition("(")[0]: curve["strategy"].partition("(")[0] for curve in curves
    }
    assert strategies == {"MAID": "Piggyback", "Stochastic": "JointPiggyback"}
    assert {curve["strategy"].partition("(")[0] for curve in curves if not curve["adaptive"]} == {
        "JointPiggyback"
    }
    for curve in curves:
        last = curve["points"][-1]
        assert last["upper"] - last["lower"] <= 0.01 * last["loss"] and last["kind"] == "certified"
    notes = " ".join(Comparison.load(tmp_path / "out").notes())
    assert "learned for a reconstruction of a fixed number of steps" in notes
    assert "stands beside" not in notes  # the state that it goes on from is not kept
    assert "2 are finished" in invoke("compare", path, "--resume").stdout
