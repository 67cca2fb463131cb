"""Reports: computed from records, self-contained, honest in their words, readable again without
solving.
"""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from learnreg.core import (
    Cost,
    Evaluation,
    InputError,
    Kind,
    ModelFileError,
    RunRecord,
    Status,
    StopReason,
)
from learnreg.reports import Report


def make_record(images=4, steps=6, speed=1.0, **changes):
    """A run like a real one: loss falls, accuracies tighten, bracket narrows; row 0 has no step
    size.
    """
    rows = []
    for k in range(steps + 1):
        loss, eps = 5.0 + 40.0 * math.exp(-speed * k), 0.5 * 0.8**k
        rows.append(
            {
                "step": k,
                "loss": loss,
                "lower": loss - 3 * eps,
                "upper": loss + 3 * eps,
                "psnr": 20 + k,
                "eps": eps,
                "delta": 2 * eps,
                "step_size": None if k == 0 else 0.01 * 1.1**k,
                "trials": 2,
                "refinements": 0,
                "gradient_norm": 10 * 0.7**k,
                "omega_estimated": 0.6**k,
                "omega_certified": None,
                "gradients": 100 * (k + 1),
                "work": 400 * (k + 1),
                "seconds": 0.5 * (k + 1),
                "cpu_seconds": 0.5 * (k + 1),
            }
        )
    given = {
        "problem": "smoothed TV for denoising, learned from 4 photographs",
        "learner": "MAID(eta=0.0001)",
        "images": images,
        "rows": tuple(rows),
        "settings": {"seed": 0, "budget": {"seconds": 60.0, "work": None}},
        "parameter_names": ("log weight", "log smoothing"),
    }
    return RunRecord(**{**given, **changes})


def make_run(name="TV", filters=None, parameters=2, **record):
    return SimpleNamespace(
        name=name,
        record=make_record(**record),
        theta=torch.linspace(-1, 1, parameters),
        stop=StopReason("budget", "The budget of 60 s was used up"),
        filters=filters,
    )


def make_bank(count=6):
    g = torch.Generator().manual_seed(1)
    return {
        "kernels": torch.randn(count, 1, 5, 5, generator=g),
        "weights": torch.linspace(0.1, 2.0, count),
        "smoothings": torch.full((count,), 0.03),
    }


def make_evaluation(shift=0.0, images=5, kind=Kind.BOUND, honest=True, **changes):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(images, 1, 24, 30, generator=g)
    y = x + 0.1 * torch.randn(x.shape, generator=g)
    psnr = tuple(28.0 + shift + 0.5 * i for i in range(images))
    rows = tuple({"eps": e, "certified": 0.9 * e, "true": 0.3 * e} for e in (1.0, 0.1, 0.01))
    given = {
        "reconstruction": 0.5 * (x + y),
        "x": x,
        "y": y,
        "psnr": psnr,
        "ssim": tuple(p / 35 for p in psnr),
        "psnr_input": tuple(20.0 + 0.01 * i for i in range(images)),
        "ssim_input": (0.4,) * images,
        "error": torch.full((images,), 0.009, dtype=torch.float64),
        "kind": kind,
        "status": (Status.CONVERGED,) * images,
        "eps": 0.01,
        "names": tuple(f"photo {i}" for i in range(images)),
        "cost": Cost(gradients=50),
        "honesty": rows if honest else (),
        "peak": (1.0,) * images,
        "seen": y,
        "seen_as": "noisy",
    }
    return Evaluation(**{**given, **changes})


def two_methods(**changes):
    foe = make_run("FoE", make_bank(), 300, speed=0.5)
    return Report.compare(
        {
            "TV": (make_run(), make_evaluation(**changes)),
            "FoE": (foe, make_evaluation(0.4, **changes)),
        }
    )


def page_of(report, folder):
    return report.save(folder, formats=("png",)).read_text(encoding="utf-8")


def text_of(page):
    """The words of a page, without markup, styles and images, on one line."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", page)))


STARTS = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}
"""How files of the formats begin."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    return two_methods().save(folder)


def test_page_stands_alone(saved):
    page = saved.read_text(encoding="utf-8")
    assert saved.name == "index.html"
    assert not re.search(r"https?://|//cdn|<script|<link|@import|url\(", page)
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    assert sources and all(s.startswith("data:image/") for s in sources)
    assert not re.search(r'\bhref="(?!#)', page)
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page))


def test_all_files_are_written_and_no_temporary_ones(saved):
    found = {str(p.relative_to(saved.parent)) for p in saved.parent.rglob("*") if p.is_file()}
    figures = ("reconstructions", "loss", "schedules", "filters_foe", "certificate", "psnr")
    assert found == {
        "index.html",
        "run.json",
        "run.safetensors",
        *(f"figures/{n}.{kind}" for n in figures for kind in STARTS),
        *(f"tables/{n}.csv" for n in ("table", "images", "pairs")),
        "tables/table.tex",
        "tables/references.bib",
    }
    for path in (saved.parent / "figures").iterdir():
        assert path.read_bytes().startswith(STARTS[path.suffix[1:]]), path.name


def test_same_input_gives_the_same_page(saved, tmp_path):
    assert page_of(two_methods(), tmp_path) == saved.read_text(encoding="utf-8")


def test_table_is_computed_from_the_input(saved, tmp_path):
    words = text_of(saved.read_text(encoding="utf-8"))
    # TV: 28, 28.5, ..., 30; sample deviation of five values 0.5 apart
    spread = 0.5 * math.sqrt(2.5)
    for expected in (
        f"29.00 ± {spread:.2f}",
        f"29.40 ± {spread:.2f}",
        f"20.02 ± {0.01 * math.sqrt(2.5):.2f}",
        "0.829 ±",
        "0.400 ± 0.000",
        "700",
        "3.5",
        "300",
    ):
        assert expected in words, expected
    words = text_of(page_of(Report(make_run(steps=8), make_evaluation(1.25)), tmp_path))
    assert "30.25 ± 0.79" in words and "900" in words and "4.5" in words and "29.00" not in words


def test_summary_says_who_won_by_how_much():
    words = two_methods().summary()
    assert (
        "FoE lifts the PSNR from 20.02 dB (noisy) to 29.40 dB on average, 0.40 dB above TV" in words
    )
    assert "ahead of it on 5 of 5 images" in words and "The budget of 60 s was used up." in words
    assert "smoothed TV for denoising, learned from 4 photographs." in words
    assert "does not lift" in Report(make_run(), make_evaluation(-15.0)).summary()


def test_print_shows_the_table():
    lines = str(two_methods()).splitlines()
    columns = ["method", "PSNR (dB)", "SSIM", "parameters", "work per image", "seconds"]
    assert re.split(r"  +", lines[0].strip()) == columns
    assert [line.split()[0] for line in lines[2:]] == ["noisy", "TV", "FoE"]
    assert lines[3].split()[-3:] == ["2", "700", "3.5"]
    assert repr(two_methods()) == str(two_methods())


@pytest.mark.parametrize("images", [1, 2, 5])
def test_one_method(tmp_path, images):
    words = text_of(
        page_of(Report(make_run(), make_evaluation(images=images, honest=False)), tmp_path)
    )
    assert "Learned regulariser: TV" in words and "not compared with the true error" in words
    assert "log smoothing" in words
    assert ("±" in words) is (images > 1)
    assert not (tmp_path / "figures" / "certificate.png").exists()


@pytest.mark.parametrize("kind", list(Kind))
def test_certified_only_when_proven(tmp_path, kind):
    words = text_of(page_of(Report(make_run(), make_evaluation(kind=kind)), tmp_path))
    section = words[words.index("Can the error be trusted?") : words.index("Why it stopped")]
    assert ("The error is certified" in section) is kind.certifies
    assert ("The error is estimated, not certified" in section) is (kind is Kind.ESTIMATE)
    assert ("The error is unknown" in section) is (kind is Kind.UNKNOWN)
    assert "3 to 3 times the true error" in section


def test_broken_certificate_is_not_hidden(tmp_path):
    rows = (
        {"eps": 0.1, "certified": 0.05, "true": 0.08},
        {"eps": 0.01, "certified": 0.01, "true": 0.001},
    )
    page = page_of(Report(make_run(), make_evaluation(honesty=rows)), tmp_path)
    assert (
        "In 1 of 2 checks the true error is larger than the certified one: the certificate does"
        in page
    )


def test_a_reference_that_is_not_exact_is_allowed_for_and_named(tmp_path):
    rows = (
        {"eps": 0.1, "certified": 0.05, "true": 0.0503, "reference": 4e-4},
        {"eps": 0.01, "certified": 0.01, "true": 0.0105, "reference": 4e-4},
    )
    page = text_of(page_of(Report(make_run(), make_evaluation(honesty=rows)), tmp_path))
    assert "In 1 of 2 checks the true error is larger" in page
    assert "which is itself within 0.0004 of the exact one" in page


@pytest.mark.parametrize(
    ("theorem", "words"),
    [
        ((), "the final gradient and a proven lower bound of the curvature"),
        (("gap",) * 5, "strong convexity and the primal-dual gap,"),
        (
            ("gap", "kkt", "gap", "residual", "gap"),
            "the primal-dual gap (3 images) or the optimality condition at the picture, with the "
            "dual variable that belongs "
            "to it (1 image) or the residuals of the optimality system (1 image)",
        ),
    ],
)
def test_the_page_says_what_certified_distances_follow_from(theorem, words, tmp_path):
    report = Report(make_run(), make_evaluation(theorem=theorem))
    assert words in text_of(page_of(report, tmp_path))
    assert next(iter(Report.load(tmp_path).evaluations.values())).theorem == theorem


def test_load_and_save_again_gives_the_same_files(saved, tmp_path):
    loaded = Report.load(saved.parent)
    again = loaded.save(tmp_path, formats=())
    for name in ("run.json", "run.safetensors", "index.html"):
        assert (again.parent / name).read_bytes() == (saved.parent / name).read_bytes(), name
    assert str(loaded) == str(two_methods())


def test_json_is_versioned_and_free_of_nan(tmp_path):
    evaluation = make_evaluation(
        psnr=(28.0, math.nan, math.inf, 28.0, 28.0),
        error=torch.tensor([math.inf, 1.0, 1.0, 1.0, math.nan], dtype=torch.float64),
    )
    words = text_of(page_of(Report(make_run(), evaluation), tmp_path))
    data = json.loads(
        (tmp_path / "run.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )
    assert (data["format"], data["version"]) == ("learnreg-run", 2)
    assert data["methods"][0]["evaluation"]["psnr"][1:3] == [None, None]
    assert "not known" in words and not re.search(r"\b(nan|inf)\b", words)
    assert "not known" in str(Report.load(tmp_path))


def test_hostile_names_are_escaped(tmp_path):
    evil = '_<script>alert("1")</script>$\\frac{$'
    run = make_run(
        evil,
        make_bank(),
        problem=f"<b>{evil}",
        parameter_names=(evil,),
        settings={evil: {"k": "</dl>"}},
    )
    evaluation = make_evaluation(
        names=(f'" onerror="{evil}', "$x$", "../../a", "\x00\n\udcff", "b" * 300)
    )
    path = Report.compare({evil: (run, evaluation)}).save(tmp_path, formats=("png",))
    page = path.read_text(encoding="utf-8")
    assert (
        "<script" not in page
        and "<b>_" not in page
        and not re.search(r'<img[^>]*"\s*onerror="', page)
    )
    assert 'alert("1")' in text_of(page)
    assert {p.parent.name for p in tmp_path.rglob("*.png")} == {"figures"}
    assert (
        Report.load(tmp_path).save(tmp_path / "again", formats=()).read_bytes() == path.read_bytes()
    )


def test_names_that_share_a_file_name_keep_their_figures(tmp_path):
    methods = {n: (make_run(n, make_bank()), make_evaluation()) for n in ("FoE", "foe", "?")}
    Report.compare(methods).save(tmp_path, formats=("png",))
    assert len(list((tmp_path / "figures").glob("filters_*.png"))) == 3


def test_empty_record_and_missing_columns(tmp_path):
    words = text_of(page_of(Report(make_run(rows=()), make_evaluation()), tmp_path))
    assert "not known accepted steps" in words
    Report(make_run(rows=({"step": 0, "loss": 1.0},)), make_evaluation()).save(tmp_path, formats=())


@pytest.mark.parametrize("channels", [2, 3])
def test_colour_and_complex_images_and_foreign_measurements(tmp_path, channels):
    x = torch.rand(2, channels, 16, 16)
    bank = {"kernels": torch.randn(3, channels, 3, 3), "weights": torch.ones(3)}
    evaluation = make_evaluation(images=2, x=x, y=torch.rand(2, 1, 7), reconstruction=x.double())
    page = page_of(Report(make_run(filters=bank), evaluation), tmp_path)
    assert page.count('class="row"') == 2 and "--columns: 2" in page


@pytest.mark.parametrize(
    ("file", "damage", "error", "says"),
    [
        ("run.json", lambda b: b[:-40], ModelFileError, "no valid JSON"),
        ("run.json", lambda b: b"\xff\xfe\x00", ModelFileError, "no valid JSON"),
        ("run.json", lambda b: b"[1, 2]", ModelFileError, "another kind"),
        (
            "run.json",
            lambda b: b.replace(b'"version": 2', b'"version": 3'),
            ModelFileError,
            "version 3",
        ),
        (
            "run.json",
            lambda b: b.replace(b'"stop"', b'"pots"'),
            ModelFileError,
            "incomplete content",
        ),
        (
            "run.json",
            lambda b: b.replace(b'"certified",', b'"sure",'),
            ModelFileError,
            "incomplete content",
        ),
        (
            "run.json",
            lambda b: b.replace(b'"psnr": [', b'"psnr": [1, '),
            ModelFileError,
            "number of images",
        ),
        ("run.json", lambda b: None, InputError, "No such file"),
        ("run.safetensors", lambda b: b[:100], ModelFileError, "sha256"),
        ("run.safetensors", lambda b: None, InputError, "No such file"),
    ],
)
def test_damaged_files_are_refused(saved, tmp_path, file, damage, error, says):
    for name in ("run.json", "run.safetensors"):
        shutil.copy(saved.parent / name, tmp_path)
    left = damage((tmp_path / file).read_bytes())
    (tmp_path / file).unlink()
    if left is not None:
        (tmp_path / file).write_bytes(left)
    with pytest.raises(error, match=says) as caught:
        Report.load(tmp_path)
    assert file in str(caught.value) or "run.json" in str(caught.value)
    assert caught.value.remedy


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(InputError, match="folder"):
        Report(make_run(), make_evaluation()).save(tmp_path / "taken")


def test_methods_must_share_their_images():
    other = make_evaluation()
    with pytest.raises(InputError, match="same held-out pairs"):
        Report.compare(
            {"a": (make_run(), other), "b": (make_run(), replace(other, x=other.x + 0.1))}
        )
    with pytest.raises(InputError, match="no images"):
        Report(make_run(), make_evaluation(images=0))
    with pytest.raises(InputError, match="at least one"):
        Report.compare({})


def test_saving_leaves_no_trace_in_global_state_or_input(tmp_path):
    import matplotlib

    before, run, evaluation = (
        dict(matplotlib.rcParams),
        make_run(filters=make_bank()),
        make_evaluation(),
    )
    x, kernels = evaluation.x.clone(), run.filters["kernels"].clone()
    Report(run, evaluation).save(tmp_path, formats=("png",))
    assert dict(matplotlib.rcParams) == before
    assert torch.equal(x, evaluation.x) and torch.equal(kernels, run.filters["kernels"])
