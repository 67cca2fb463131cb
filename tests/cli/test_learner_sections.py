"""Every learner and every hypergradient from a configuration file: chosen, checked, written back,
and run.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from tests.cli.cases import assert_same_run, invoke, rows, write_config

from learnreg.cli.config import load_config
from learnreg.cli.settings import LEARNERS, STRATEGIES
from learnreg.core.errors import ConfigError
from learnreg.core.files import load_tensors
from learnreg.hypergradients import Implicit, JacobianFree, JointPiggyback, Piggyback, Unrolled
from learnreg.learners import (
    HOAG,
    LBFGSB,
    MAID,
    Deferred,
    FixedAccuracy,
    GridSearch,
    OptunaSearch,
    RandomSearch,
    Stochastic,
)
from learnreg.linear import CG

KINDS = {
    "maid": MAID,
    "fixed": FixedAccuracy,
    "hoag": HOAG,
    "lbfgsb": LBFGSB,
    "stochastic": Stochastic,
    "grid": GridSearch,
    "random": RandomSearch,
    "optuna": OptunaSearch,
}
BOXED = ("grid", "random", "optuna")


@pytest.fixture
def load(tmp_path):
    """Text to Config."""

    def read(text):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return read


def section(kind: str, *lines: str) -> str:
    """[learner] of a kind, with the box that some of them need."""
    box = (
        []
        if kind not in BOXED or any(line.startswith("box") for line in lines)
        else ["box = [-7.0, 7.0]"]
    )
    return "\n".join(["[learner]", f"type = '{kind}'", *box, *lines, ""])


# --- the learner ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_learner_can_be_chosen_and_has_the_defaults_of_its_class(kind, load):
    required = {"box": [-7.0, 7.0]} if kind in BOXED else {}
    assert load(section(kind)).build_learner() == KINDS[kind](**required)


@pytest.mark.parametrize("kind", KINDS)
def test_a_section_has_the_keys_of_its_class_each_with_a_comment(kind):
    model = LEARNERS[kind]
    assert set(model.model_fields) - {"type"} == {f.name for f in fields(KINDS[kind])}
    assert all(field.description for key, field in model.model_fields.items() if key != "type")
    needed = {
        f.name for f in fields(KINDS[kind]) if f.default is MISSING and f.default_factory is MISSING
    }
    assert {key for key, field in model.model_fields.items() if field.is_required()} == needed


def test_no_learner_is_left_out():
    assert KINDS.items() <= {tag: model.target for tag, model in LEARNERS.items()}.items()


VALUES = [
    (
        "hoag",
        ("schedule = 'geometric'", "ratio = 0.5", "eps0 = 1e-2", "alpha0 = 3"),
        HOAG("geometric", eps0=1e-2, ratio=0.5, alpha0=3),
    ),
    (
        "lbfgsb",
        ("eps = 1e-5", "memory = 3", "loss_tolerance = 0.0"),
        LBFGSB(eps=1e-5, memory=3, loss_tolerance=0.0),
    ),
    (
        "stochastic",
        ("optimizer = 'adam'", "batch = 2", "record = 5", "store = 'folder'", "step_exponent = 0"),
        Stochastic("adam", batch=2, record=5, store="folder", step_exponent=0),
    ),
    (
        "stochastic",
        ("momentum = 0.9", "accuracy_exponent = 0.5"),
        Stochastic(momentum=0.9, accuracy_exponent=0.5),
    ),
    ("grid", ("points = 3", "eps = 0.5", "box = [-1, 2.5]"), GridSearch([-1, 2.5], 3, 0.5)),
    ("random", ("box = [-3.5, 1]",), RandomSearch([-3.5, 1])),
    ("optuna", ("eps = 1",), OptunaSearch([-7.0, 7.0], 1)),
]


@pytest.mark.parametrize(("kind", "lines", "expected"), VALUES)
@pytest.mark.parametrize("comments", [False, True])
def test_values_arrive_and_survive_writing_and_reading(kind, lines, expected, comments, load):
    config = load(section(kind, *lines))
    assert config.build_learner() == expected
    again = load(config.to_toml(comments))
    assert again == config and again.build_learner() == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("comments", [False, True])
def test_every_section_survives_writing_and_reading(kind, comments, load):
    config = load(section(kind))
    assert load(config.to_toml(comments)) == config


# --- the box --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOXED)
def test_a_box_that_is_missing_is_asked_for(kind, load):
    with pytest.raises(
        ConfigError, match=r"\[learner\] box: given nothing; expected \[lower, upper\].*needed for"
    ):
        load(f"[learner]\ntype = '{kind}'")


@pytest.mark.parametrize("kind", ["hoag", "lbfgsb", "stochastic", "grid", "random", "optuna"])
@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("box = [-5, 1.5]", [-5, 1.5]),
        ("box = {log_weight = [-5.0, 1.0]}", {"log_weight": [-5.0, 1.0]}),
        (
            'box = {log_weight = [-5, 1], "filters[3]" = [0.0, 1.0]}',
            {"log_weight": [-5, 1], "filters[3]": [0.0, 1.0]},
        ),
        ("box = [-inf, 3.0]", [-math.inf, 3.0]),
    ],
)
def test_a_box_is_a_list_or_a_table_by_name(kind, text, box, load):
    config = load(section(kind, text))
    assert config.build_learner().box == box
    assert load(config.to_toml(comments=True)) == config


def test_a_box_can_be_a_table_of_its_own(load):
    config = load(section("hoag") + "[learner.box]\nlog_weight = [-5.0, 1.0]\n")
    assert config.build_learner().box == {"log_weight": [-5.0, 1.0]}


@pytest.mark.parametrize("kind", ["hoag", "grid"])
@pytest.mark.parametrize(
    ("text", "where", "given"),
    [
        ("box = [3, 1]", r"box", r"\[3, 1\]"),
        ("box = 'wide'", r"box", "wide"),
        ("box = [1.0]", r"box", r"\[1.0\]"),
        ("box = [true, 2]", r"box", "True"),
        ("box = {log_weight = 3}", "box log_weight", "3"),
        ("box = [nan, 1]", "box", "nan"),
        ("box = {log_weight = [2, 1]}", "box log_weight", r"\[2, 1\]"),
        ("box = [['a'], 1]", "box", "a"),
    ],
)
def test_a_box_that_is_none_is_named(kind, text, where, given, load):
    with pytest.raises(
        ConfigError, match=rf"\[learner\] {where}: given .*{given}.*; expected \[lower, upper\]"
    ):
        load(section(kind, text))


def test_a_name_that_no_parameter_has_is_found_before_the_run_starts(tmp_path):
    path = configured(tmp_path, section("hoag", "box = {weight = [-5, 5]}"))
    assert "one of log_smoothing, log_weight" in invoke("learn", path, code=2).stderr
    assert not (tmp_path / "out" / "index.html").exists()


# --- the hypergradient and the solver -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("[hypergradient]\n", Implicit()),
        ("[hypergradient]\ntype = 'implicit'\npolish_steps = 2", Implicit(polish_steps=2)),
        (
            "[hypergradient]\n[hypergradient.linear]\nmax_steps = 7",
            Implicit(linear=CG(max_steps=7)),
        ),
        ("[hypergradient]\ntype = 'unrolled'", Unrolled()),
        (
            "[hypergradient]\ntype = 'unrolled'\nsteps = 3\nstart = 'solution'\nmethod = 'gd'",
            Unrolled(3, "solution", "gd"),
        ),
        ("[hypergradient]\ntype = 'jacobian_free'\nterms = 4", JacobianFree(4)),
    ],
)
def test_every_strategy_can_be_chosen(text, expected, load):
    config = load(text)
    assert config.build_hypergradient() == expected
    assert load(config.to_toml()) == config and load(config.to_toml(comments=True)) == config


def test_every_strategy_has_its_section():
    assert {tag: model.target for tag, model in STRATEGIES.items()} == {
        "implicit": Implicit,
        "unrolled": Unrolled,
        "jacobian_free": JacobianFree,
        "piggyback": Piggyback,
        "joint_piggyback": JointPiggyback,
    }
    for model in STRATEGIES.values():
        assert set(model.model_fields) - {"type"} == {f.name for f in fields(model.target)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[hypergradient]\ntype = 'jacobian-free'",
            r"\[hypergradient\] type: given \"jacobian-free\".*'jacobian_free'",
        ),
        (
            "[hypergradient]\ntype = 'implicit'\nterms = 3",
            r"\[hypergradient\] terms: given an unknown key",
        ),
        (
            "[hypergradient]\ntype = 'unrolled'\nsteps = 0",
            r"\[hypergradient\] steps: given 0; expected an integer >= 1",
        ),
        (
            "[hypergradient.linear]\nmax_step = 3",
            r"\[hypergradient.linear\] max_step: given an unknown key.*'max_steps'",
        ),
        (
            "[run]\nsolver = 'fista'",
            r"\[run\] solver: given 'fista'; expected 'auto' or one of 'agd'",
        ),
        ("[run]\nsolver = 3", r"\[run\] solver: given 3"),
        ("[learner]\ntype = 'gird'", r"\[learner\] type: given \"gird\".*Did you mean 'grid'"),
        (
            "[learner]\ntype = 'hoag'\nschedule = 'linear'",
            r"\[learner\] schedule: given \"linear\"; expected 'quadratic'",
        ),
        ("[learner]\ntype = 'hoag'\neta = 0.3", r"\[learner\] eta: given an unknown key"),
        (
            "[learner]\ntype = 'stochastic'\noptimizer = 'adam'\nmomentum = 0.5",
            r"\[learner\] momentum: .* with Adam",
        ),
        (
            "[learner]\ntype = 'stochastic'\nbatch = 0",
            r"\[learner\] batch: given 0; expected an integer >= 1",
        ),
        (
            "[learner]\ntype = 'grid'\nbox = [0, 1]\npoints = 1",
            r"\[learner\] points: given 1; expected an integer >= 2",
        ),
        (
            "[learner]\ntype = 'lbfgsb'\neps = 0.0",
            r"\[learner\] eps: given 0.0; expected a positive",
        ),
    ],
)
def test_mistakes_are_named(text, expected, load):
    with pytest.raises(ConfigError, match=expected):
        load(text)


# --- whole runs -----------------------------------------------------------------------------------


def configured(folder: Path, text: str, name: str = "config.toml", **arguments) -> Path:
    """A configuration on tiny phantoms with more sections; ``text`` begins inside [run]."""
    path = write_config(folder, name, size=16, **arguments)
    path.write_text(path.read_text(encoding="utf-8") + "\n" + text, encoding="utf-8")
    return path


RUNS = {
    "hoag": section("hoag", "alpha0 = 1.0"),
    "lbfgsb": section("lbfgsb"),
    "sgd": section("stochastic", "batch = 1"),
    "random": section("random", "box = [-6.0, 1.0]"),
    "grid": section("grid", "points = 3", "box = [-6.0, 0.0]"),
    "unrolled": section("stochastic", "batch = 1")
    + "[hypergradient]\ntype = 'unrolled'\nsteps = 5\n",
    "jacobian_free": section("maid") + "[hypergradient]\ntype = 'jacobian_free'\n",
    "solver": "solver = 'newton'\n" + section("fixed", "eps = 1e-3"),
}


class Unwritten:
    """In the place of Report, which takes longer than all the rest here."""

    def __init__(self, *arguments, **extras) -> None: ...

    def save(self, folder: Path) -> Path:
        return folder


@pytest.fixture
def unreported(monkeypatch) -> None:
    monkeypatch.setattr("learnreg.cli.learn.Report", Unwritten)


@pytest.mark.parametrize("name", RUNS)
def test_every_learner_and_every_strategy_learns_from_a_file(name, tmp_path, unreported):
    invoke("learn", configured(tmp_path, RUNS[name]))
    found, thetas = rows(tmp_path / "out")
    assert len(found) == len(thetas) == 3
    assert found[2]["work"] > found[0]["work"] > 0 and found[2]["loss"] <= 1.2 * found[0]["loss"]
    record = load_tensors(tmp_path / "out" / "history.safetensors", "learnreg-history")[1]["record"]
    config = load_config(tmp_path / "out" / "config.toml")
    assert record["learner"] == repr(config.build_learner())
    assert record["settings"]["solver"] == ("newton" if name == "solver" else "auto")


@pytest.mark.parametrize("name", ["sgd"])
def test_a_report_can_be_written_and_written_again(name, tmp_path):
    """The rows of a stochastic run have no bracket."""
    assert "stopped after 2 steps" in invoke("learn", configured(tmp_path, RUNS[name])).stdout
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert ">None<" not in page and ">nan<" not in page.lower()
    assert KINDS[{"sgd": "stochastic"}.get(name, name)].__name__ in page
    invoke("report", tmp_path / "out")


@pytest.mark.parametrize("store", [False, True], ids=["memory", "disk"])
def test_resuming_a_stochastic_run_gives_the_numbers_of_an_uninterrupted_one(
    store, tmp_path, unreported
):
    place = [f"store = {json.dumps(str(tmp_path / 'store'))}"] if store else []
    text = section("stochastic", "batch = 1", "optimizer = 'adam'", *place)
    invoke("learn", configured(tmp_path, text, steps=3), "--output", tmp_path / "whole")
    invoke("learn", configured(tmp_path, text, steps=1))
    assert "Resuming" in invoke("learn", configured(tmp_path, text, steps=3), "--resume").stdout
    assert_same_run(tmp_path / "whole", tmp_path / "out")
    assert [row["batches"] for row in rows(tmp_path / "out")[0]] == [0, 2, 4, 6]


def test_a_learner_that_refuses_the_strategy_says_so(tmp_path):
    path = configured(tmp_path, section("maid") + "[hypergradient]\ntype = 'unrolled'\n")
    error = invoke("learn", path, code=2).stderr
    assert "MAID" in error and "start='solution'" in error.replace("\n", " ")


def test_a_method_inside_a_learner_keeps_the_defaults_it_has_there(load):
    config = load('[learner]\ntype = "deferred"\n[learner.explore]\nbatch = 3\n')
    built = config.build_learner()
    assert built == Deferred(Stochastic.preset("iadam", batch=3))
    assert load('[learner]\ntype = "deferred"\n').build_learner() == Deferred()
