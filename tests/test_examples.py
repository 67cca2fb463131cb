"""The examples run offline, briefly, as a user would run them."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str, cwd: Path) -> str:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_ten_line_script_writes_a_report_and_a_model_that_reconstructs(tmp_path):
    out = run(str(ROOT / "examples" / "denoise.py"), "4", "out", cwd=tmp_path)
    assert "certified" in out
    assert (tmp_path / "out" / "index.html").stat().st_size > 10_000
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_training_loop_of_ones_own_lowers_the_loss(tmp_path):
    lines = run(str(ROOT / "examples" / "own_training_loop.py"), "2", cwd=tmp_path).splitlines()
    losses = [
        float(line.split("training loss ")[1].split(",")[0])
        for line in lines
        if "training loss" in line
    ]
    assert len(losses) == 2
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_exact_total_variation_is_learned_and_certified(tmp_path):
    lines = run(str(ROOT / "examples" / "exact_tv.py"), "3", cwd=tmp_path).splitlines()
    before, after = (
        float(v.strip(",")) for v in next(x for x in lines if "loss" in x).split()[1:4:2]
    )
    assert after < before
    errors = [
        float(line.split("within ")[1].split()[0])
        for line in lines
        if "certified by the gap" in line
    ]
    assert len(errors) == 2 and max(errors) <= 0.05


@pytest.mark.slow
def test_patterns_are_learned_and_drawn(tmp_path):
    out = run(str(ROOT / "examples" / "learned_sampling.py"), "1", "a.png", cwd=tmp_path)
    assert [line.split()[0] for line in out.splitlines()[:4]] == [
        "free",
        "lines",
        "radial",
        "drawn",
    ]
    assert {p.name for p in tmp_path.iterdir()} >= {"a.png", "a_path.png"}


def test_the_ten_lines_of_the_readme_are_those_of_the_example():
    """What the README shows is what runs."""
    script = (ROOT / "examples" / "denoise.py").read_text()
    block = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    wanted = [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]
    have = {
        line.split("  #")[0]
        .strip()
        .replace("seconds=seconds", "seconds=120")
        .replace("folder", '"report"')
        for line in script.splitlines()
    }
    missing = [line for line in wanted if line not in have and not line.startswith("import")]
    assert not missing


def fenced(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_blocks_of_what_you_can_bring_run_one_after_the_other(tmp_path):
    (tmp_path / "page.py").write_text("\n\n".join(fenced("docs/what_you_can_bring.md")))
    out = run("-W", "error", str(tmp_path / "page.py"), cwd=tmp_path)
    assert out.count("certified distance") >= 5
    assert "stationary, no distance is known" in out
    assert "physics.taps[1]" in out and "torch.complex64" in out


@pytest.mark.parametrize(
    "page, says",
    [
        (
            "docs/losses.md",
            ["estimated (not certified)", "exact value certified", "score matching"],
        ),
        ("docs/learners.md", ["gap to best"]),
        ("docs/noise_levels.md", ["as learned", "estimated tensor"]),
        ("docs/sampling.md", ["of the lines have a weight", "binary 28%", "views tensor"]),
    ],
)
def test_the_blocks_of_a_page_run_one_after_the_other(tmp_path, page, says):
    (tmp_path / "page.py").write_text("\n\n".join(fenced(page)))
    out = run("-W", "error", str(tmp_path / "page.py"), cwd=tmp_path)
    assert all(words in out for words in says), out


def test_the_blocks_of_pages_about_data_run_one_after_the_other(tmp_path):
    """In one process, since most of the time goes into imports."""
    pages = ["docs/physics.md", "docs/own_data.md", "docs/measured_data.md", "docs/counts.md"]
    pages.append("docs/learned_operators.md")
    blocks = [block for page in [*pages, "docs/saddle_points.md"] for block in fenced(page)]
    # why not the first: it is an example of its own
    (tmp_path / "pages.py").write_text("\n\n".join([*blocks, fenced("README.md")[1]]))
    out = run("-W", "error", str(tmp_path / "pages.py"), cwd=tmp_path)
    for words in (
        "True (1, 32, 32)",
        "filter: 9 x 9 pixels, sum 1.000",
        "of the validation pairs",
        "uint8 certified distance",
        "with Tomography, 3 parameters, 4 images",
        "certified distance <=",
        "certified distance to the minimizer",
        "OSEM of 4 subsets",
    ):
        assert words in out, out


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "experiments" / "README.md"]


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page end with."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for place, _, heading in (link.partition("#") for link in links if "://" not in link):
        target = page if not place else page.parent / place
        assert target.exists(), f"{place} is not there"
        assert not heading or heading in anchors(target.resolve()), f"{place} has no {heading}"


@pytest.mark.slow
def test_the_table_of_offers_is_what_the_objects_say(tmp_path):
    page = (ROOT / "docs" / "what_you_can_bring.md").read_text()
    shown = page.split("<!-- offers -->\n")[1].split("<!-- /offers -->")[0]
    assert run(str(ROOT / "docs" / "offers.py"), cwd=tmp_path) == shown


@pytest.mark.parametrize(
    "name, says",
    [
        ("own_data_term", "certified distance"),
        ("own_regularizer", "certified distance"),
        ("own_operator", "certified distance"),
        ("own_learner", "coordinates"),
    ],
)
def test_the_walks_of_contributing_are_examples_that_run(tmp_path, name, says):
    script = (ROOT / "examples" / f"{name}.py").read_text()
    shown = [block for block in fenced("CONTRIBUTING.md") if block.strip() in script]
    assert any("class " in block for block in shown), f"CONTRIBUTING.md does not show {name}.py"
    assert all(len(block.splitlines()) <= 40 for block in shown)
    check = "compare(" if name == "own_learner" else f"check_{name.removeprefix('own_')}("
    assert check in script
    assert says in run("-W", "error", str(ROOT / "examples" / f"{name}.py"), cwd=tmp_path)


@pytest.mark.parametrize(
    "model, arguments", [("tv", []), ("foe", ["--filters", "4", "--size", "3"])]
)
@pytest.mark.slow
def test_the_reference_benchmark_takes_any_file_of_its_layout(tmp_path, model, arguments):
    import json

    import numpy as np

    generator = np.random.default_rng(0)
    x = np.kron(generator.random((2, 1, 4, 4)), np.ones((1, 1, 6, 6))).astype(np.float32)
    d = 2 if model == "tv" else 1 + 2 * 4 + 4 * 9
    theta = (
        np.full(d, -3, np.float32)
        if model == "tv"
        else (0.3 * generator.standard_normal(d) - 1).astype(np.float32)
    )
    np.savez(
        tmp_path / "P.npz",
        y=x + 0.1 * generator.standard_normal(x.shape).astype(np.float32),
        x_true=x,
        theta0=theta,
    )
    run(
        str(ROOT / "benchmarks" / "reference.py"),
        "--problem",
        "P.npz",
        "--model",
        model,
        *arguments,
        "--seconds",
        "2",
        "--json",
        "out.json",
        cwd=tmp_path,
    )
    document = json.loads((tmp_path / "out.json").read_text())
    assert {"problem", "model", "learner", "threads", "seed", "rows", "theta"} <= set(document)
    wanted = {
        "step",
        "loss",
        "psnr",
        "cpu_seconds",
        "gradients",
        "hvps",
        "cg_steps",
        "eps",
        "delta",
        "step_size",
    }
    assert wanted <= set(document["rows"][0])
    losses = [row["loss"] for row in document["rows"]]
    # the exact loss never rises; a re-evaluation is accurate to a distance of 1e-6, which is about
    # 2e-6 in the loss
    assert all(b < a + 1e-5 for a, b in itertools.pairwise(losses)) and losses[-1] < losses[0]
    assert all(
        r["loss_lower"] - 1e-5 <= r["loss"] <= r["loss_upper"] + 1e-5 for r in document["rows"]
    )
