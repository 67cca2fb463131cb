"""What a page must not pass over: statistics of a few images, dead filters, floors, failures."""

from __future__ import annotations

import csv
import io
import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon
from tests.reports.test_report import make_bank, make_evaluation, make_run, text_of

from learnreg.core import InputError
from learnreg.reports import Report
from learnreg.reports.display import Cut, Window, drawn, flat, how_drawn
from learnreg.reports.findings import dead_filters, noise_words, remarks, title
from learnreg.reports.provenance import compact, data_words
from learnreg.reports.statistics import in_words, interval, paired
from learnreg.reports.tables import escaped, tables


def page_of(report, folder):
    """The page alone; figures beside it are drawn elsewhere."""
    return report.save(folder, formats=()).read_text(encoding="utf-8")


# --- statistics -----------------------------------------------------------------------------------


def test_pairs_are_those_of_scipy_and_of_the_same_images():
    g = np.random.default_rng(0)
    ours, theirs = g.normal(30, 2, 9), g.normal(29, 2, 9)
    found = paired("a", ours.tolist(), "b", theirs.tolist())
    d = ours - theirs
    assert found.mean == pytest.approx(d.mean()) and found.deviation == pytest.approx(d.std(ddof=1))
    assert found.p == pytest.approx(wilcoxon(ours, theirs).pvalue)
    assert found.low < found.mean < found.high and d.min() < found.low and found.high < d.max()
    assert (found.wins, found.losses) == ((d > 0).sum(), (d < 0).sum())
    again = paired("a", ours.tolist(), "b", theirs.tolist())
    assert again == found  # the bootstrap draws the same


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        ([30.0], "on one image: that says nothing about others"),
        ([30.0, 31.0], "(from +1.00 to +2.00 dB), better on 2 of 2 images; 2 images are too few"),
        ([30.0] * 8, "signed-rank test p ="),
        ([29.0] * 8, "are equal on average"),
        ([28.0] * 8, "is 1.00 dB below b on average"),
    ],
)
def test_few_images_say_little(ours, words):
    pair = paired("a", ours, "b", [29.0] * len(ours))
    assert words in in_words(pair)
    assert (pair.p is None) is (len(ours) < 6)


def test_crops_of_one_photograph_are_no_independent_images():
    pair = paired("a", [30.0] * 8, "b", [29.0] * 8)
    assert "come from 2 photographs" in in_words(pair, sources=2)
    assert "photograph" not in in_words(pair, sources=8)


def test_unknown_numbers_are_passed_over():
    pair = paired("a", [30.0, math.nan, 31.0], "b", [29.0, 29.0, 29.0])
    assert pair.images == 2 and paired("a", [math.nan], "b", [1.0]) is None


@pytest.mark.parametrize("peak", [1.0, 255.0])
def test_the_psnr_of_the_exact_minimizer_lies_in_its_interval(peak):
    g = torch.Generator().manual_seed(0)
    truth = peak * torch.rand(1, 400, generator=g, dtype=torch.float64)
    exact = truth + 0.05 * peak * torch.randn(1, 400, generator=g, dtype=torch.float64)

    def psnr(x):
        return float(20 * math.log10(peak) - 10 * torch.log10((x - truth).square().mean()))

    for way in ((exact - truth), -(exact - truth), torch.randn(1, 400, dtype=torch.float64)):
        off = way / way.norm() * 0.3 * peak
        low, high = interval(psnr(exact + off), peak, float(off.norm()), 400)
        assert low - 1e-9 <= psnr(exact) <= high + 1e-9
    assert interval(30.0, 1.0, 100.0, 4)[1] == math.inf
    assert all(map(math.isnan, interval(30.0, 1.0, math.inf, 4)))


# --- filters and floors ---------------------------------------------------------------------------


def bank(**changes):
    return {**make_bank(), **changes}


def test_dead_filters_are_light_or_empty():
    assert dead_filters(bank()) == []
    weights = torch.tensor([1.0, 1e-7, 0.5, 2.0, 0.0, 1e-5])
    assert dead_filters(bank(weights=weights)) == [1, 4]
    empty = bank()["kernels"].clone()
    empty[2] = 0
    assert dead_filters(bank(kernels=empty)) == [2]
    assert len(dead_filters(bank(weights=torch.full((6,), 1e-8)))) == 6  # all of them, for [0, 1]
    assert dead_filters(bank(weights=torch.full((6,), 1e-8)), peak=1e-3) == []  # other units


def test_dead_filters_and_floors_are_named_on_the_page(tmp_path):
    floor = 1 / 255
    weights = torch.tensor([1.0, 1e-7, 0.5, 2.0, 0.0, 0.3])
    smoothings = torch.full((6,), 0.05)
    smoothings[0] = floor * 1.001
    run = make_run("FoE", bank(weights=weights, smoothings=smoothings))
    spec = {"type": "Sum", "terms": [{"type": "FoE", "least_smoothing": floor}]}
    run.record.setup["regularizer"] = spec
    page = page_of(Report(run, make_evaluation()), tmp_path)
    words = text_of(page)
    assert "2 of 6 filters are dead" in words and "numbers 2 and 5" in words
    assert "smoothing of 1 of 6 filters is at its floor 0.003922: number 1." in words
    marks = re.findall(r'<figure( class="dead")?><img class="pixels"', page)
    assert marks[-2:] == [' class="dead"'] * 2 and marks.count(' class="dead"') == 2


def test_parameters_at_the_ends_of_their_box_are_named():
    names, theta = ("log_weight", "taps[0]", "taps[1]"), torch.tensor([-7.0, 0.5, 2.0])
    (low,) = remarks(None, {"box": [-7.0, 7.0]}, theta, names)
    assert "1 of 3 parameters ended at the lower end -7 of their box: log_weight" in low
    (high,) = remarks(None, {"box": {"taps": [-2.0, 2.0]}}, theta, names)
    assert "upper end 2" in high and "taps[1]" in high
    assert remarks(None, {"box": None}, theta, names) == []
    assert remarks(None, {}, theta, names) == []


# --- failures and baselines -----------------------------------------------------------------------


def test_images_that_got_worse_are_shown_and_named(tmp_path):
    psnr = (28.0, 19.0, 18.5, 28.0, 28.0)
    page = page_of(Report(make_run(), make_evaluation(psnr=psnr)), tmp_path)
    words = text_of(page)
    section = words[words.index("Where it failed") : words.index("The numbers")]
    assert "2 of 5 images are worse after TV than before (noisy)" in section
    assert section.index("photo 2 (by 1.52 dB)") < section.index("photo 1 (by 1.01 dB)")
    assert "1.52 dB below noisy" in page  # the alternative text of the picture
    good = text_of(page_of(Report(make_run(), make_evaluation()), tmp_path / "good"))
    assert "no held-out image has a lower PSNR than before" in good


@pytest.mark.parametrize(
    "name", [pytest.param("filtered back-projection", marks=pytest.mark.slow), "adjoint A^T y"]
)
def test_the_input_is_named_and_pictured(name, tmp_path):
    seen = torch.rand(5, 1, 24, 30)
    evaluation = make_evaluation(y=torch.rand(5, 1, 40, 7), seen=seen, seen_as=name)
    report = Report(make_run(), evaluation)
    page = page_of(report, tmp_path)
    assert report.table()[0]["name"] == name and f"({name})" in report.headline()
    assert page.count(f'<b title="{name}">') == 5 and "--columns: 3" in page
    assert ("times the factor that fits the data best" in re.sub(r"\s+", " ", page)) is (
        name == "adjoint A^T y"
    )
    loaded = next(iter(Report.load(tmp_path).evaluations.values()))
    assert torch.equal(loaded.seen, seen) and loaded.seen_as == name


def test_baselines_are_rows_and_columns(tmp_path):
    evaluation = make_evaluation()
    own = 0.9 * evaluation.x + 0.1 * evaluation.y
    report = Report(make_run(), evaluation, baselines={"mine": own, "again": evaluation})
    assert [row["name"] for row in report.table()] == ["noisy", "mine", "again", "TV"]
    mse = (own.clamp(0, 1) - evaluation.x).square().flatten(1).mean(1)
    assert report.table()[1]["psnr"] == pytest.approx(float((-10 * mse.log10()).mean()), abs=1e-3)
    page = page_of(report, tmp_path)
    assert "--columns: 5" in page and "TV is" in text_of(page)
    assert Report.load(tmp_path).table() == report.table()


@pytest.mark.parametrize(
    ("baselines", "says"),
    [
        ({"TV": torch.rand(5, 1, 24, 30)}, "which another row has"),
        ({"noisy": torch.rand(5, 1, 24, 30)}, "which another row has"),
        ({"own": torch.rand(4, 1, 24, 30)}, "shape"),
        ({"own": torch.zeros(5, 1, 24, 30, dtype=torch.uint8)}, "uint8"),
        ({"own": "bm3d"}, "str"),
    ],
)
def test_baselines_that_cannot_be_compared_are_refused(baselines, says):
    with pytest.raises(InputError, match=says):
        Report(make_run(), make_evaluation(), baselines=baselines)


def test_tables_for_papers_hold_the_numbers_of_the_page(tmp_path):
    report = Report.compare({"A_1 & B": (make_run(), make_evaluation())})
    found = tables(report)
    rows = list(csv.DictReader(io.StringIO(found["images.csv"])))
    assert len(rows) == 10 and float(rows[5]["psnr"]) == 28.0 and rows[5]["known"] == "certified"
    assert float(rows[5]["psnr_low"]) < 28.0 < float(rows[5]["psnr_high"])
    assert rows[0]["distance"] == "" and rows[5]["image"] == "photo 0"
    assert r"A\_1 \& B & $29.00 \pm 0.79$" in found["table.tex"]
    (pair,) = csv.DictReader(io.StringIO(found["pairs.csv"]))
    assert float(pair["mean_difference_db"]) == pytest.approx(29.0 - 20.02)
    assert "salehi2025maid" in found["references.bib"]
    assert escaped("a\\b\n{}") == r"a\textbackslash{}b \{\}"
    text = found["references.bib"]
    assert text.count("{") == text.count("}")


# --- words ----------------------------------------------------------------------------------------


def test_titles_say_what_was_learned_for_what():
    tv = {"regularizer": {"type": "TV"}, "physics": {"type": "Tomography"}}
    foe = {"regularizer": {"type": "FoE"}, "physics": {"type": "Tomography"}}
    assert title({"a": tv}) == "Total variation for tomography"
    assert title({"a": tv, "b": foe}) == "Total variation and Fields of Experts for tomography"
    own = {**tv, "physics": {"type": "MyScanner"}, "learned": ["physics"]}
    assert title({"a": own}) == "Total variation with a learned operator for MyScanner"
    assert title({"a": {}, "b": tv}) == "Learned regularisers: a, b"


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        ({}, "not known"),
        ({"physics": {}, "noise": None}, "no noise model"),
        ({"noise": {"type": "PoissonNoise", "gain": 0.5, "normalize": True}}, "Poisson noise, "),
        ({"noise": {"type": "Mine", "level": 3}}, "Mine, level 3"),
    ],
)
def test_noise_is_said_with_its_numbers(setup, words):
    assert words in noise_words(setup)


def test_long_facts_are_shortened():
    assert compact({"type": "A", "angles": list(range(99))}).endswith("2 ... 98 (99 values))")
    data = {"images": 3, "shape": [1, 8, 8], "measurements": [[1, 8, 8]], "sources": ["a"] * 40}
    assert "3 images of 1 x 8 x 8, from 40 sources" in data_words(data)
    assert "28 more" in data_words(data) and "measurements" not in data_words(data)


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "pixels", "words"),
    [
        ((1, 12, 9), (12, 9), ""),
        ((3, 12, 9), (12, 9, 3), ""),
        ((2, 12, 9), (12, 9), "modulus"),
        ((5, 12, 9), (12, 9), "5 channels"),
        ((1, 7, 12, 9), (12, 9), "middle slice"),
        ((1, 40), (120, 240), "curves"),
    ],
)
def test_everything_has_a_picture(shape, pixels, words):
    x = torch.rand(2, *shape)
    one = drawn(flat(x[0]), Window.of(x))
    assert one.shape == pixels and one.min() >= 0 and one.max() <= 1
    part = Cut.liveliest(flat(x[0])).of(flat(x[0]))
    assert part.shape[-1] == shape[-1] // 3
    assert words in how_drawn(x)


def test_pictures_are_moduli_slices_and_in_their_own_units():
    z = torch.complex(torch.tensor([[[3.0]]]), torch.tensor([[[4.0]]]))
    assert flat(z).item() == 5 and flat(torch.tensor([[[3.0]], [[4.0]]])).item() == 5
    volume = torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.equal(flat(volume), torch.ones(1, 2, 2))
    assert Window.of(torch.rand(2, 1, 4, 4)) == Window(0, 1)
    scan = 1000 * torch.rand(2, 1, 4, 4) - 500
    assert Window.of(scan) == Window(float(scan.min()), float(scan.max()))
    assert Window.of(torch.zeros(1, 1, 4, 4)) == Window(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 32), (1, 5, 12, 12), (4, 12, 12)])
def test_signals_volumes_and_many_channels_have_a_page(shape, tmp_path):
    x = torch.rand(2, *shape)
    evaluation = make_evaluation(images=2, x=x, y=x + 0.1, seen=x + 0.1, reconstruction=x)
    page = page_of(Report(make_run(), evaluation), tmp_path)
    assert page.count('class="row"') == 2 and "--columns: 3" in page


def test_no_name_stands_in_a_legend_without_a_line():
    from learnreg.reports.figures import schedules

    rows = tuple({**row, "eps": None} for row in make_run().record.rows)
    records = {"MAID": make_run().record, "fixed": make_run(rows=rows).record}
    axes = schedules(records).axes
    told = [[t.get_text() for t in axis.get_legend().get_texts()] for axis in axes[:2]]
    assert told == [["MAID"], ["fixed"]]
    key = [t.get_text() for t in axes[3].get_legend().get_texts()]
    assert key == ["norm", "omega, estimated"]  # nothing certified was recorded
