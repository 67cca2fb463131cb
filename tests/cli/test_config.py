"""Configuration files: in step with the classes they describe, and every mistake named with its
place and remedy.
"""

from __future__ import annotations

import inspect
import pickle
from dataclasses import fields

import pytest

from learnreg.cli.config import Config, example, load_config
from learnreg.cli.settings import LEARNERS, REGULARIZERS, BudgetSection
from learnreg.core.errors import ConfigError
from learnreg.learners import MAID, Adaptive, FixedAccuracy
from learnreg.regularizers import KNOWN, TV, FoE, Scaled, Sum
from learnreg.runs import Budget


@pytest.fixture
def load(tmp_path):
    """Text to Config."""

    def read(text, **options):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, **options)

    return read


# --- in step with the library ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "target"),
    [(LEARNERS["maid"], MAID), (LEARNERS["fixed"], FixedAccuracy), (BudgetSection, Budget)],
)
def test_a_section_has_the_fields_of_its_dataclass(section, target):
    assert set(section.model_fields) - {"type"} == {f.name for f in fields(target)}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_known_regularizer_has_a_section_with_its_arguments(name):
    arguments = set(inspect.signature(KNOWN[name]).parameters)
    factor = set() if getattr(KNOWN[name], "saddle", False) else {"scale"}
    assert set(REGULARIZERS[name].model_fields) == arguments | factor | {"type"}
    assert isinstance(Config(regularizer=REGULARIZERS[name]()).build_regularizer(), KNOWN[name])


def test_defaults_are_those_of_the_classes(load):
    config = load("")
    assert config.build_learner() == MAID()
    assert config.build_budget() == Budget(seconds=120.0)
    assert load("[learner]\ntype = 'fixed'").build_learner() == FixedAccuracy()


def test_values_arrive(load):
    config = load(
        "[learner]\nrho = 0.25\n[learner.accuracy]\ntighten = 0.125\n[budget]\nsteps = 3\n"
        "[regularizer]\ntype = 'FoE'\nfilters = 2\nsize = 3\nscale = 2\n"
    )
    assert config.build_learner() == MAID(rho=0.25, accuracy=Adaptive(tighten=0.125))
    assert config.build_budget() == Budget(steps=3)
    regularizer = config.build_regularizer()
    assert isinstance(regularizer, Scaled) and regularizer.factor == 2
    assert regularizer.regularizer.kernels.shape == (2, 1, 3, 3)


def test_what_another_section_knows_need_not_be_repeated(load):
    text = (
        "[data]\nchannels = 3\n"
        "[regularizer]\ntype = 'FoE'\nfilters = 2\nsize = 3\ninit = 'random'\n"
    )
    assert load(text).build_regularizer().kernels.shape[1] == 3
    one, two = (load(f"{text}[run]\nseed = {seed}").build_regularizer().kernels for seed in (1, 2))
    assert not one.equal(two)
    assert load(f"{text}seed = 1").build_regularizer().kernels.equal(one)


def test_terms_are_summed(load):
    config = load(
        "[regularizer]\nscale = 0.5\n[[regularizer.terms]]\ntype = 'TV'\n"
        "[[regularizer.terms]]\ntype = 'FoE'\nfilters = 2\nsize = 3\nscale = 3.0\n"
    )
    regularizer = config.build_regularizer()
    assert isinstance(regularizer, Scaled) and isinstance(regularizer.regularizer, Sum)
    tv, foe = regularizer.regularizer.terms
    assert isinstance(tv, TV) and isinstance(foe, Scaled) and isinstance(foe.regularizer, FoE)
    assert config.name == "TV + FoE"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[data]\nsource = 'C:\\new \"x\" \u00e9\U0001f600'\nscale = 0.3\n[budget]\nwork = 1e5\n",
        "[learner]\ntype = 'fixed'\neps = 1e-7\n[regularizer]\ntype = 'TV'\nisotropic = false\n",
        "[[regularizer.terms]]\ntype = 'TV'\n[[regularizer.terms]]\ntype = 'Tikhonov'\nlearned = "
        "false\n",
    ],
)
@pytest.mark.parametrize("comments", [False, True])
def test_a_configuration_survives_writing_and_reading(load, text, comments):
    config = load(text)
    assert load(config.to_toml(comments)) == config


def test_the_example_is_the_default_run_and_explains_every_key(load):
    text = example()
    assert load(text) == Config()
    for section in (
        Config().data,
        Config().regularizer,
        Config().learner,
        Config().budget,
        Config().run,
    ):
        for key in type(section).model_fields:
            assert f"\n{key} = " in text or f"\n# {key} =" in text or f".{key}]" in text


def test_changes_from_the_command_line_win_and_are_checked(load):
    config = load(
        "[run]\noutput = 'a'", changes={("run", "output"): "b", ("budget", "seconds"): None}
    )
    assert config.run.output == "b"
    with pytest.raises(ConfigError, match=r"\[budget\] seconds: given -1"):
        load("", changes={("budget", "seconds"): -1.0})


# --- mistakes -------------------------------------------------------------------------------------

MISSPELT = [
    ("[learner]\nrhoo = 0.5", "[learner] rhoo", "'rho'"),
    ("[learner.accuracy]\ntightn = 0.5", "[learner.accuracy] tightn", "'tighten'"),
    ("[regularizer]\ntype = 'FoE'\nfilter = 3", "[regularizer] filter", "'filters'"),
    ("[regularizer]\ntype = 'TV'\nfilters = 3", "[regularizer] filters", "isotropic"),
    (
        "[[regularizer.terms]]\ntype = 'TV'\n[[regularizer.terms]]\ntype = 'Tikhonov'\nwieght = "
        "1.0",
        "[regularizer.terms(2)] wieght",
        "'weight'",
    ),
    ("[budget]\nsecond = 1.0", "[budget] second", "'seconds'"),
    ("[data]\nsizes = 3", "[data] sizes", "'size'"),
    ("[runs]\nseed = 0", "[runs]", "'run'"),
]


@pytest.mark.parametrize(("text", "where", "suggestion"), MISSPELT)
def test_an_unknown_key_is_named_with_its_section_and_the_nearest(
    load, tmp_path, text, where, suggestion
):
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.toml'}: {where}: given an unknown")
    assert "expected one of" in message and suggestion in message


# (section, key, value as written, what is expected)
BAD_VALUES = [
    ("data", "source", "3", "string"),
    ("data", "size", "10", ">= 11|greater than or equal to 11"),
    ("data", "size", "24.0", "integer"),
    ("data", "train", "0", "greater than or equal to 1"),
    ("data", "test", "-1", "greater than or equal to 1"),
    ("data", "scale", "0", "greater than 0"),
    ("data", "scale", "1.5", "less than or equal to 1"),
    ("data", "channels", "2", "1 or 3"),
    ("physics", "type", '"blurr"', "denoising, blur.*Did you mean 'blur'"),
    ("physics", "sigma", "0.0", "greater than 0"),
    ("physics", "sigma", "nan", "finite"),
    ("learner", "type", '"madi"', "maid, fixed.*Did you mean 'maid'"),
    ("learner", "eps0", "-1.0", "positive"),
    ("learner", "rho", "1.0", r"\(0, 1\)"),
    ("learner", "growth", "0.5", ">= 1"),
    ("learner", "eta", "0.0", r"\(0, 1\)"),
    ("learner", "sufficient", "0.5", r"\(0, eta"),
    ("learner", "trials", "0", ">= 1"),
    ("learner", "trials", "2.5", "integer"),
    ("learner", "memory", "true", "integer"),
    ("learner", "test", '"proven"', "'estimated' or 'certified'"),
    ("learner", "accuracy", "3", "table"),
    ("learner.accuracy", "tighten", "2.0", r"\(0, 1\)"),
    ("learner.accuracy", "loosen", "0.5", ">= 1"),
    ("budget", "seconds", "0", "positive"),
    ("budget", "work", "-2.0", "positive"),
    ("budget", "steps", "0", "an integer >= 1"),
    ("budget", "steps", "1.5", "integer"),
    ("run", "seed", "-1", "greater than or equal to 0"),
    ("run", "dtype", '"half"', "'float32' or 'float64'"),
    ("run", "threads", "0", "greater than or equal to 1"),
    ("run", "eps_evaluate", "inf", "finite"),
    ("run", "output", '""', "not empty"),
    ("regularizer", "type", '"foe"', "Did you mean 'FoE'"),
    ("regularizer", "terms", "[]", "at least one"),
]


@pytest.mark.parametrize(("section", "key", "value", "expected"), BAD_VALUES)
def test_a_value_out_of_range_is_named(load, section, key, value, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        load(f"[{section}]\n{key} = {value}")
    message = str(caught.value)
    assert f"[{section}] {key}: given " in message
    assert caught.value.given == value or float(caught.value.given) == float(value)


@pytest.mark.parametrize(
    ("kind", "line", "expected"),
    [
        ("TV", "weight = 0.0", "positive finite number"),
        ("TV", "isotropic = 1", "boolean"),
        ("FoE", "size = 4", "odd"),
        ("FoE", "filters = 0", "positive integer"),
        ("FoE", 'padding = "wrap"', "'reflect' or 'zero'"),
        ("FoE", "size = 3\nfilters = 9", "at most 8"),
        ("Tikhonov", "weight = -1.0", "positive finite number"),
        ("Tikhonov", "scale = 0.0", "greater than 0"),
    ],
)
def test_a_value_that_a_regularizer_refuses_is_named(load, kind, line, expected):
    key = line.splitlines()[-1].split(" = ")[0]
    with pytest.raises(ConfigError, match=expected) as caught:
        load(f"[regularizer]\ntype = '{kind}'\n{line}")
    assert f"[regularizer] {key}: given " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[regularizer]\nweight = 1.0",
            r"\[regularizer\] type: given nothing; expected one of TV, HuberTV, FoE",
        ),
        ("[regularizer]\ntype = 'Sum'", r"\[regularizer\] terms: given nothing"),
        ("[regularizer]\nterms = [3]", r"\[regularizer.terms\(1\)\] type: given 3"),
        ("[[regularizer.terms]]\nweight = 1.0", r"\[regularizer.terms\(1\)\] type: given nothing"),
        (
            "[[regularizer.terms]]\ntype = 'TV'\nweight = -3.0",
            r"\[regularizer.terms\(1\)\] weight: given -3.0",
        ),
        ("[budget]", r"\[budget\]: given no limit"),
        ("[run]\nkeep = 'best'", r"\[run\] keep: given \"best\" without images to validate on"),
        ("data = 3", r"\[data\]: given 3; expected a table"),
        ("learner = 'maid'", r"\[learner\] type: given \"maid\""),
        ("x =", "no valid TOML"),
    ],
)
def test_a_malformed_file_is_explained(load, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load(text)


def test_a_missing_file_says_how_to_write_one(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file.*learnreg learn --example"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="directory"):
        load_config(tmp_path)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf[run]\nseed = 3\n")
    assert load_config(path).run.seed == 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_characters_are_named(tmp_path, encoding):
    path = tmp_path / "wide.toml"
    path.write_text("[run]\nseed = 3\n", encoding=encoding)
    with pytest.raises(ConfigError, match=r"given a file in UTF-(16|32); expected .* UTF-8\. Save"):
        load_config(path)


def test_another_alphabet_is_named_with_its_line(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes("[run]\n# für später\n".encode("latin-1"))
    with pytest.raises(
        ConfigError, match=r"0xfc in line 2, which is no UTF-8 \(in Latin-1 it is 'ü'\)"
    ):
        load_config(path)


def test_a_name_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="the character NUL"):
        load_config(f"{tmp_path}/a\0b")


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 5000, "x = " + "[" * 30 + "]" * 30, "a." * 40 + "a = 1"]
)
def test_what_lies_too_deep_is_refused(load, text):
    with pytest.raises(ConfigError, match=r"within each other|no valid TOML"):
        load(text)


def test_a_character_that_no_file_can_have_is_refused(load):
    with pytest.raises(ConfigError, match="no file can be named by"):
        load('[run]\noutput = "a\\u0000b"')


# --- all of them at once --------------------------------------------------------------------------

MANY = """\
[learner]
rhoo = 0.5
eps0 = -1.0
growth = 0.5
trials = 2.5
[learner.accuracy]
tighten = 2.0
loosen = 0.5
[regularizer]
type = "FoE"
size = 4
padding = "wrap"
[physics]
sigma = -3
[budget]
steps = 0
work = -1
[run]
seed = -1
dtype = "half"
solver = "bfgs"
threads = 1000000
[runs]
"""


def test_one_message_names_every_mistake(load):
    with pytest.raises(ConfigError) as caught:
        load(MANY)
    message = str(caught.value)
    heads = [line.split(": given ")[0].strip() for line in message.splitlines()[1:]]
    wanted = """[learner] rhoo|[learner] eps0|[learner] growth|[learner] trials|
        [learner.accuracy] tighten|[learner.accuracy] loosen|[regularizer] size|
        [regularizer] padding|[physics] sigma|[budget] steps|[budget] work|[run] seed|[run] dtype|
        [run] solver|[run] threads|[runs]""".replace("\n", "").split("|")
    assert sorted(heads) == sorted(head.strip() for head in wanted)
    sections = [head.split("]")[0].split(".")[0] for head in heads]
    assert sections == sorted(sections, key=sections.index)  # section by section
    assert all("; expected " in line for line in message.splitlines()[1:])
    assert f"{len(heads)} mistakes" in message.splitlines()[0]
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


def test_consequences_of_a_mistake_are_none(load):
    """A budget without its only limit, keys of a misspelt regularizer, a strategy for it."""
    with pytest.raises(ConfigError) as caught:
        load(
            "[budget]\nseconds = -1\n[regularizer]\ntype = 'foe'\nfilters = 3\n"
            "[hypergradient]\ntype = 'piggyback'"
        )
    message = str(caught.value)
    assert message.count("given") == 2 and "2 mistakes" in message


def test_more_threads_than_a_machine_bears_are_refused(load):
    with pytest.raises(ConfigError, match=r"\[run\] threads: given 100000; expected at most \d+"):
        load("[run]\nthreads = 100000")
    assert load("[run]\nthreads = 4").run.threads == 4
