"""Comparisons: paired by instance, modest in their words, complete on their page, readable
again.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace

import pytest

from learnreg.core import InputError, ModelFileError
from learnreg.reports import ComparedRun, Comparison
from learnreg.reports.comparison import gap_words, spread
from learnreg.reports.comparison_figures import (
    curves,
    grid_keys,
    heat_maps,
    median_curve,
    schedules,
    styles,
)
from learnreg.reports.pairing import Spread, arrival, best_losses, gap, lead, summaries

SETTINGS = {
    "budget": {"seconds": 60.0},
    "relative": 1e-4,
    "points": 6,
    "eps_test": 0.01,
    "solver": "auto",
    "processes": 2,
    "threads": 1,
    "cores": 4,
}


def make_run(learner="MAID", seed=0, start="", factor=1.0, **changes):
    """Loss 10 -> factor (times 1 + seed: another seed is another problem) over six evaluated
    steps.
    """
    level, points = 1.0 + seed, []
    for k in range(6):
        loss = level * (factor + 9.0 * math.exp(-2 * k))
        points.append(
            {
                "step": 3 * k,
                "work": 10.0 * 2**k,
                "seconds": 0.5 * 2**k,
                "cpu_seconds": 0.5 * 2**k,
                "loss": loss,
                "lower": loss * (1 - 4e-5),
                "upper": loss * (1 + 4e-5),
                "kind": "certified",
                "psnr_test": 20 + k - factor,
                "psnr_test_images": [20.0 + k, 20.0 + k - 2 * factor],
                "psnr_test_own": None,
                "note": None,
                "eps": 0.1 / 2**k,
            }
        )
    schedule = {
        "step": list(range(16)),
        "eps": [0.1 / (1 + k) for k in range(16)],
        "delta": [None] * 16,
        "step_size": [None] + [0.5] * 15,
    }
    given = {
        "learner": learner,
        "name": learner,
        "grid": {},
        "start": start,
        "seed": seed,
        "points": points,
        "schedule": schedule,
        "steps": 15,
        "stop": ["budget", "the budget of 60 seconds was used up"],
        "problem": "FoE with Denoising, 10 parameters, 2 images of 1x24x24",
        "method": f"{learner}()",
        "strategy": "Implicit()",
        "solver": "auto",
        "images": 2,
        "held_out": 2,
    }
    return ComparedRun(**{**given, **changes})


def failed(learner="MAID", seed=0, start="", why="the box names no parameter"):
    return ComparedRun(learner, learner, {}, start, seed, failure=why)


def silent(run, note="the lower level could not be solved here: NaN or Inf appeared"):
    """The same run without any loss or quality."""
    unknown = dict.fromkeys(("loss", "lower", "upper", "kind", "psnr_test", "psnr_test_images"))
    return replace(run, points=[{**p, **unknown, "note": note} for p in run.points])


def several(seeds=3, starts=("",), factors=None):
    factors = factors or {"MAID": 1.0, "fixed": 1.1, "Adam": 1.5}
    return [
        make_run(name, seed, start, factor)
        for seed in range(seeds)
        for start in starts
        for name, factor in factors.items()
    ]


def gridded(values=(0.1, 1.0, 10.0), others=(1e-3, 1e-1), seeds=2):
    """One learner on a grid, and one without."""
    runs = [
        make_run(
            "MAID",
            seed,
            factor=1 + 0.1 * i + 0.5 * j,
            name=f"MAID (eps0={a:g}, alpha0={b:g})",
            grid={"eps0": a, "alpha0": b},
        )
        for seed in range(seeds)
        for i, a in enumerate(values)
        for j, b in enumerate(others)
    ]
    return [*runs, *(make_run("Adam", seed, factor=1.7) for seed in range(seeds))]


def page_of(comparison, folder):
    return comparison.save(folder, formats=("png",)).read_text(encoding="utf-8")


def text_of(page):
    """The words of a page, without markup, styles and images, on one line."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


# --- pairing --------------------------------------------------------------------------------------


def test_gaps_are_those_to_the_best_of_the_same_instance():
    runs = several(2, ("weak", "strong"))
    best = best_losses(runs)
    assert set(best) == {(0, "weak"), (0, "strong"), (1, "weak"), (1, "strong")}
    assert best[1, "weak"] == pytest.approx(2 * best[0, "weak"])
    for run in runs:
        wanted = {"MAID": 0.0, "fixed": 0.1, "Adam": 0.5}[run.learner]
        assert gap(run, best) == pytest.approx(
            wanted, rel=1e-2, abs=1e-12
        )  # the same for every seed


def test_the_best_may_be_a_step_on_the_way():
    run = make_run()
    swung = replace(
        run, points=[*run.points, {**run.points[-1], "loss": 2 * run.points[-1]["loss"]}]
    )
    assert gap(swung, best_losses([swung])) == pytest.approx(1.0)


def test_arrival_is_interpolated_between_evaluated_steps():
    run = make_run()
    points = [
        {**p, "loss": loss}
        for p, loss in zip(run.points, [8.0, 4.0, 2.0, 1.0, 1.0, 1.0], strict=True)
    ]
    best = {
        run.instance: 2.0 / 1.01 * math.sqrt(2)
    }  # the target is 2 sqrt(2), halfway from 4 to 2 on a log scale
    run = replace(run, points=points)
    assert arrival(run, best, "work") == pytest.approx(20 * math.sqrt(2))
    assert arrival(run, best, "seconds") == pytest.approx(math.sqrt(2))
    assert arrival(run, {run.instance: 10.0}, "work") == 10.0
    assert arrival(run, {run.instance: 0.5}, "work") is None
    assert arrival(silent(run), best, "work") is None


def test_a_summary_counts_and_averages_over_the_runs_that_ended():
    runs = [make_run(seed=0), make_run(seed=1), failed(seed=2), silent(make_run(seed=3))]
    (row,) = summaries(runs, best_losses(runs), lambda run: run.learner)
    finals = [run.points[-1]["loss"] for run in runs[:2]]
    assert (row.runs, row.ended, row.arrived) == (4, 2, 2)
    assert row.loss.mean == pytest.approx(sum(finals) / 2)
    assert row.loss.deviation == pytest.approx((finals[1] - finals[0]) / math.sqrt(2))
    assert row.stops == {"budget": 3}
    assert [why for _, why in row.troubles] == [
        "the box names no parameter",
        runs[3].points[-1]["note"],
    ]


def test_the_lead_is_between_learners_not_between_points_of_one_grid():
    runs = gridded()
    found = lead(runs, best_losses(runs))
    assert (found.first, found.second) == ("MAID (eps0=0.1, alpha0=0.001)", "Adam")
    alone = [run for run in runs if run.learner == "MAID"]
    found = lead(alone, best_losses(alone))
    assert found.second == "MAID (eps0=1, alpha0=0.001)" and found.consistent


def test_a_learner_with_a_failed_run_leads_nothing():
    runs = [
        *several(2, factors={"fixed": 1.1, "Adam": 1.5}),
        make_run("MAID", 0),
        failed("MAID", 1),
    ]
    assert lead(runs, best_losses(runs)).first == "fixed"
    assert (
        lead(
            [make_run("MAID", 0), failed("MAID", 1), make_run("fixed", 1)],
            {(0, ""): 1.0, (1, ""): 1.0},
        )
        is None
    )


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([0.6, 0.7], "0.6500 ± 0.0707"),
        ([123.456], "123.5"),
        ([1.234e-7, 1e-7], "1.117e-07 ± 1.7e-08"),
        ([0.0], "0.000"),
        ([12345.0, 12346.0], "12,346 ± 1"),
        ([], "not known"),
        ([math.nan, 2.0, None], "2.000"),
    ],
)
def test_losses_are_printed_to_four_digits(numbers, words):
    assert spread(Spread.of(numbers), 4, significant=True) == words


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([0.0], "0 %"),
        ([0.0123, 0.5], "26 % (1.2 % to 50 %)"),
        ([-0.005], "−0.50 %"),
        ([1e-7], "0 %"),
        ([20.0], "2.0e+03 %"),
        ([0.00012], "0.012 %"),
        ([], "not known"),
    ],
)
def test_gaps_are_printed_in_per_cent(numbers, words):
    assert gap_words(Spread.of(numbers)) == words


# --- words ----------------------------------------------------------------------------------------


def test_a_lead_with_every_seed_is_said_with_its_size():
    words = Comparison(several(3), SETTINGS).headline()
    assert words.startswith(
        "MAID reaches the lowest exact training loss at the end of the budget with every seed"
    )
    assert (
        "Next is fixed, which ends above it by 10 % in the median" in words and "start" not in words
    )
    assert (
        "from every start (3 seeds × 2 starts)"
        in Comparison(several(3, ("a", "b")), SETTINGS).headline()
    )


def test_the_best_point_of_a_grid_is_said_to_be_chosen():
    comparison = Comparison(gridded(), SETTINGS)
    assert "MAID (eps0=0.1, alpha0=0.001), the best of 6 settings, reaches" in comparison.headline()
    assert "chosen afterwards" in " ".join(comparison.notes())
    assert "chosen afterwards" not in " ".join(Comparison(several(2), SETTINGS).notes())


def test_one_seed_claims_nothing():
    words = Comparison(several(1), SETTINGS).headline()
    assert "no spread known" in words and "no learner is called better" in words
    assert not any(name in words for name in ("MAID", "fixed", "Adam"))


def test_an_order_that_changes_with_the_seed_is_no_lead():
    runs = [
        make_run("MAID", 0),
        make_run("MAID", 1, factor=1.02),
        make_run("MAID", 2),
        *(make_run("fixed", seed, factor=1.01) for seed in range(3)),
    ]
    words = Comparison(runs, SETTINGS).headline()
    assert "No learner is ahead by more than the spread over seeds" in words
    assert "MAID has the lowest loss in the median" in words and "2 of 3 problem instances" in words
    assert "The order changes with the seed." in words and "−0.98 % to" in words


def test_losses_closer_than_their_brackets_are_no_lead():
    words = Comparison(several(3, factors={"MAID": 1.0, "fixed": 1.00002}), SETTINGS).headline()
    assert "No learner is ahead" in words and "On 3 the certified brackets overlap" in words
    unknown = [
        replace(run, points=[{**p, "lower": None, "upper": None} for p in run.points])
        for run in several(3)
    ]
    assert "No learner is ahead" in Comparison(unknown, SETTINGS).headline()


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([failed(), failed("fixed")], "every one failed"),
        ([make_run(seed=0), make_run(seed=1)], "Only MAID was run, so there is nothing to compare"),
        (
            [make_run(seed=0), failed("fixed"), make_run("fixed", 1), failed("MAID", 1)],
            "so none is called better",
        ),
    ],
)
def test_too_few_results_are_not_ranked(runs, words):
    assert words in Comparison(runs, SETTINGS).headline()


def test_speed_says_who_came_near_and_how_often():
    runs = several(2, factors={"MAID": 1.0, "fixed": 1.5})
    runs[3] = replace(runs[3], points=[{**p, "loss": p["loss"] / 1.5} for p in runs[3].points])
    words = Comparison(runs, SETTINGS).speed()
    assert "MAID needed" in words and "fixed needed" in words and "(in 1 of 2 runs)" in words
    assert "fixed did not come so near" in Comparison(several(2), SETTINGS).speed()


def test_notes_say_what_was_alike_and_what_was_not():
    notes = " ".join(Comparison(several(3), SETTINGS).notes())
    for words in (
        "the same lower-level solver (auto)",
        "60 seconds per run",
        "0.0001 of it (certified)",
        "once in 4 times",
        "2 runs at a time, 1 thread each, on 4 cores.",
    ):
        assert re.search(words.replace("(", r"\(").replace(")", r"\)"), notes), words
    assert "fixed number of steps" not in notes and "too many" not in notes
    runs = [*several(2), make_run("unrolled", solver="agd", adaptive=False)]
    notes = " ".join(Comparison(runs, {**SETTINGS, "processes": 8}).notes())
    assert "unrolled learned for a reconstruction of a fixed number of steps" in notes
    assert "solvers differ (auto, agd)" in notes and "their seconds are too many" in notes


def test_brackets_that_are_too_wide_or_not_proven_are_counted():
    run = make_run()
    wide = replace(
        run, points=[*run.points[:-1], {**run.points[-1], "upper": 2 * run.points[-1]["loss"]}]
    )
    assert "but for 1 of 6 where that could not be had" in " ".join(
        Comparison([wide], SETTINGS).notes()
    )
    guess = replace(run, points=[{**p, "kind": "estimated"} for p in run.points])
    assert "not certified everywhere" in " ".join(Comparison([guess], SETTINGS).notes())


def test_print_shows_the_table():
    lines = str(Comparison([*several(2), failed("hoag", 0)], SETTINGS)).splitlines()
    assert lines[2].split()[:2] == ["learner", "runs"]
    counts = [["MAID", "2/2"], ["fixed", "2/2"], ["Adam", "2/2"], ["hoag", "0/1"]]
    assert [line.split()[:2] for line in lines[4:]] == counts
    assert "not reached" in lines[6] and "not known" in lines[7]


# --- figures --------------------------------------------------------------------------------------


def test_the_median_of_curves_holds_the_end_of_those_that_stopped():
    short, long = [(1.0, 8.0), (2.0, 4.0)], [(1.0, 2.0), (4.0, 1.0)]
    middle = median_curve([short, long], logarithmic=True)
    assert middle[0] == (1.0, 5.0) and middle[-1] == (4.0, 2.5)
    assert [x for x, _ in middle] == sorted(x for x, _ in middle)
    assert median_curve([[(1.0, 8.0), (2.0, 4.0)]], True) == short and median_curve([], True) == []


def test_every_run_is_a_line_and_every_learner_a_bold_one():
    runs = several(3)
    axis = curves(runs, "loss", "loss", logarithmic=True).axes[0]
    thin = [line for line in axis.lines if line.get_linewidth() < 1]
    bold = [line for line in axis.lines if line.get_linewidth() > 2]
    assert len(thin) == len(runs) and len(bold) == 3
    assert {line.get_color() for line in bold} == {color for color, _ in styles(runs).values()}


def test_many_learners_are_told_apart():
    look = styles([make_run(f"learner {i}") for i in range(25)])
    assert len(set(look.values())) == 25


def test_a_heat_map_has_the_mean_final_loss_of_every_cell():
    runs = gridded()
    ((name, figure),) = heat_maps(runs).items()
    axis, texts = figure.axes[0], [text.get_text().split("\n") for text in figure.axes[0].texts]
    assert (
        name == "MAID"
        and len(texts) == 6
        and all(len(lines) == 2 and lines[1].startswith("± ") for lines in texts)
    )
    finals = [run.final["loss"] for run in runs if run.grid == {"eps0": 1.0, "alpha0": 0.1}]
    assert [f"{sum(finals) / 2:.4g}"] == [lines[0] for lines in texts][3:4]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0.1", "1", "10"]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("eps0", "alpha0")


def on_grid(learner="MAID", factors=(1.0, 2.0), **values):
    ((key, some),) = values.items()
    return [
        make_run(
            learner, factor=factor, name=f"{learner} {key} {value}", grid={key: value, "memory": 5}
        )
        for value, factor in zip(some, factors, strict=True)
    ]


def test_maps_share_one_scale_of_colours():
    def colors(figure):
        return [tuple(patch.get_facecolor()[0][:3]) for patch in figure.axes[0].collections]

    maps = heat_maps(
        [*on_grid("A", (1.0, 1.001), rho=[0.1, 0.2]), *on_grid("B", (1.0, 4.0), rho=[0.1, 0.2])]
    )
    (dark, also), (same, pale) = colors(maps["A"]), colors(maps["B"])
    assert dark == same and sum(pale) > sum(dark) + 1 and sum(also) < sum(dark) + 0.01
    close = colors(
        heat_maps(on_grid("A", (1.0, 1.001), rho=[0.1, 0.2]))["A"]
    )  # no contrast out of nothing
    assert abs(sum(close[0]) - sum(close[1])) < 0.05


def test_grids_of_one_key_of_words_of_three_keys_and_with_failures():
    words = heat_maps(on_grid(test=["estimated", "certified"]))["MAID"].axes[0]
    assert (words.get_xlabel(), words.get_ylabel(), len(words.get_yticks())) == ("test", "", 0)
    boxes = heat_maps(on_grid(box=[[0.0, 1.0], [0.0, 2.0]]))["MAID"].axes[0]
    assert [label.get_text() for label in boxes.get_xticklabels()] == ["[0.0, 1.0]", "[0.0, 2.0]"]
    assert grid_keys(
        [
            make_run(grid={"rho": r, "alpha0": a, "eps0": e})
            for r in (1, 2)
            for a in (3, 4)
            for e in (5, 6)
        ]
    ) == ("eps0", "alpha0")
    assert grid_keys(on_grid(factors=(1.0,), rho=[0.5])) is None and heat_maps([make_run()]) == {}
    runs = [run for run in gridded(seeds=1) if run.learner == "MAID"]
    runs[0] = replace(failed(), name=runs[0].name, grid=runs[0].grid)
    texts = [text.get_text() for text in heat_maps(runs)["MAID"].axes[0].texts]
    assert texts[0] == "failed" and sum("±" in text for text in texts) == 0
    assert heat_maps([replace(run, points=(), failure="no") for run in runs]) == {}


def test_no_learner_stands_in_a_legend_without_a_line():
    runs = [*several(2), failed("hoag", 0), silent(make_run("dfo"))]
    figure = curves(runs, "loss", "loss", logarithmic=True)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["MAID", "fixed", "Adam"]
    assert curves([failed()], "loss", "loss", logarithmic=True).legends == []


def test_schedules_show_one_run_per_setting():
    axes = schedules(several(3)).axes
    assert [len(axis.lines) for axis in axes] == [3, 0, 3]
    assert "not recorded" in axes[1].texts[0].get_text()


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    runs = [
        *gridded(),
        *(make_run("fixed", seed, factor=1.2) for seed in range(2)),
        failed("hoag", 0),
        silent(make_run("hoag", 1)),
    ]
    return Comparison(runs, SETTINGS).save(tmp_path_factory.mktemp("comparison") / "new" / "folder")


def test_page_stands_alone_and_all_files_are_written(saved):
    page = saved.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//cdn|<script|<link|@import|url\(", page)
    sources = re.findall(r'\bsrc="([^"]*)"', page)
    assert sources and all(s.startswith("data:image/") for s in sources)
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page))
    found = {str(p.relative_to(saved.parent)) for p in saved.parent.rglob("*") if p.is_file()}
    figures = ("loss", "above", "psnr", "gaps", "schedules", "grid_0_maid")
    kinds = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}
    assert found == {
        *("index.html", "comparison.json", "tables/table.csv", "tables/runs.csv"),
        *(f"figures/{n}.{kind}" for n in figures for kind in kinds),
    }
    for path in (saved.parent / "figures").iterdir():
        assert path.read_bytes().startswith(kinds[path.suffix[1:]])
    rows = (saved.parent / "tables" / "table.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 5 and rows[4].startswith("hoag,2,0,")


def test_page_has_the_numbers_the_failures_and_the_reasons(saved):
    words = text_of(saved.read_text(encoding="utf-8"))
    runs = [run for run in gridded() if run.learner == "Adam"]
    finals = Spread.of(run.final["loss"] for run in runs)
    for expected in (
        f"{finals.mean:.3f} ± {finals.deviation:.3f}",
        "2 runs without a final loss",
        "MAID 6 settings",
        "the box names no parameter",
        "hoag, seed 0",
        "NaN or Inf appeared",
        "the budget of 60 seconds",
        "2 seeds",
        "MAID (eps0=10, alpha0=0.1)",
        "Is it fair?",
        "12 ended by budget",
    ):
        assert expected in words, expected
    assert not re.search(r"\b(nan|inf|None)\b", words)


@pytest.mark.parametrize(
    "runs",
    [
        [make_run()],
        several(1),
        [failed(), failed("fixed", 1)],
        [silent(make_run()), silent(make_run("fixed"))],
        [silent(make_run()), make_run("fixed"), make_run("fixed", 1)],
        [make_run(points=[make_run().points[0]], schedule={}, steps=0)],
        [
            replace(
                make_run(),
                points=[{**p, "loss": 0.0, "lower": 0.0, "upper": 0.0} for p in make_run().points],
            )
        ],
    ],
    ids=["one", "one seed", "all failed", "all None", "some None", "start only", "zero loss"],
)
@pytest.mark.slow
def test_poor_comparisons_have_a_page_too(runs, tmp_path):
    words = text_of(page_of(Comparison(runs), tmp_path))
    assert not re.search(r"\b(nan|inf|None)\b", words)
    assert str(Comparison.load(tmp_path)) == str(Comparison(runs))


def test_one_seed_has_no_spread_on_the_page(tmp_path):
    words = text_of(page_of(Comparison(several(1), SETTINGS), tmp_path))
    assert "±" not in words and "there is no spread" in words and "no spread known" in words
    assert not (tmp_path / "figures" / "above.png").exists()


def test_the_quality_of_an_unrolled_learner_stands_beside_the_exact_one(tmp_path):
    run = make_run(adaptive=False)
    own = replace(run, points=[{**p, "psnr_test_own": 17.25} for p in run.points])
    words = text_of(page_of(Comparison([own], SETTINGS), tmp_path))
    assert "its own 17.25" in words and "another function" in words


def test_load_and_save_again_gives_the_same_files(saved, tmp_path):
    again = Comparison.load(saved.parent).save(tmp_path)
    for name in ("comparison.json", "index.html"):
        assert (again.parent / name).read_bytes() == (saved.parent / name).read_bytes(), name
    data = json.loads(
        (tmp_path / "comparison.json").read_text(encoding="utf-8"), parse_constant=pytest.fail
    )
    assert (data["format"], data["version"]) == ("learnreg-comparison", 1)


def test_the_page_can_be_repeated_from_its_configuration(tmp_path):
    text = '[data]\nsource = "a <b> & c"\n'
    settings = {**SETTINGS, "data": {"source": "natural", "size": 96}, "physics": {"sigma": 0.1}}
    made = Comparison(several(2), settings, config=text, command="learnreg compare config.toml")
    page = page_of(made, tmp_path)
    shown = re.search(r'<pre class="config"><code>(.*?)</code>', page, re.S)[1]
    assert html.unescape(shown).strip() == text.strip()
    words = text_of(page)
    assert "learnreg compare config.toml" in words and "sigma 0.1" in words and "size 96" in words
    again = Comparison.load(tmp_path)
    assert (again.config, again.command) == (made.config, made.command)
    bare = text_of(page_of(Comparison(several(2)), tmp_path / "bare"))
    assert "was given no configuration" in bare


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["certified", "estimated", "unknown"])
def test_certified_is_said_of_proven_brackets_only(kind, tmp_path):
    runs = [replace(r, points=[{**p, "kind": kind} for p in r.points]) for r in several(2)]
    words = text_of(page_of(Comparison(runs, SETTINGS), tmp_path))
    proven = re.sub("not certified", "", words)
    assert ("certified" in proven) is (kind == "certified")


def test_hostile_names_are_escaped(tmp_path):
    evil = '_<script>alert("1")</script>$\\frac{$'
    run = make_run(
        evil,
        start=evil,
        problem=evil,
        method=evil,
        strategy=evil,
        grid={evil: evil},
        stop=(evil, evil),
        schedule=make_run().schedule,
    )
    page = page_of(Comparison([run, failed(evil, 1, evil, evil)], {evil: {"k": evil}}), tmp_path)
    assert "<script" not in page and 'alert("1")' in text_of(page)
    assert {p.parent.name for p in tmp_path.rglob("*.png")} == {"figures"}


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda b: b[:-40], ModelFileError, "no valid JSON"),
        (lambda b: b"[1, 2]", ModelFileError, "another kind"),
        (lambda b: b.replace(b'"version": 1', b'"version": 2'), ModelFileError, "version 2"),
        (lambda b: b.replace(b'"runs"', b'"nurs"'), ModelFileError, "incomplete content"),
        (lambda b: b.replace(b'"seed"', b'"dees"'), ModelFileError, "incomplete content"),
        (lambda b: None, InputError, "No such file"),
    ],
)
def test_damaged_files_are_refused(saved, tmp_path, damage, error, says):
    left = damage((saved.parent / "comparison.json").read_bytes())
    if left is not None:
        (tmp_path / "comparison.json").write_bytes(left)
    with pytest.raises(error, match=says) as caught:
        Comparison.load(tmp_path)
    assert "comparison.json" in str(caught.value) and caught.value.remedy


def test_no_runs_and_runs_that_come_twice_are_refused():
    with pytest.raises(InputError, match="at least one"):
        Comparison([])
    with pytest.raises(InputError, match="for a second time"):
        Comparison([make_run(), make_run()])


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(InputError, match="folder"):
        Comparison([make_run()]).save(tmp_path / "taken")
