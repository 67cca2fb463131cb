"""The committed experiments can be started: every file is a valid comparison, and its boxes fit its
parameters.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from learnreg.cli.compare_config import load_comparison
from learnreg.cli.prepare import prepare
from learnreg.learners.box import box_of
from learnreg.objectives.bilevel import Bilevel

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = sorted(FOLDER.glob("*.toml"))


def test_there_are_experiments():
    assert len(FILES) >= 5


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_experiment_is_a_valid_comparison_with_a_result(path):
    plan = load_comparison(path)
    assert len(plan.config.comparison.seeds) >= 3, "one seed has no spread"
    assert plan.config.data.source == "natural", "what is shipped runs without other files"
    assert plan.config.run.output == f"comparison/{path.stem}"
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"`{path.name}`" in text, "its result belongs into the README of the experiments"
    small = plan.learn_config(plan.variants[0], next(iter(plan.starts)), seed=0)
    data = small.data.model_copy(update={"train": 1, "test": 1, "size": 16})
    problem, _ = prepare(small.model_copy(update={"data": data}))
    for variant in plan.variants:
        box_of(getattr(variant.section, "box", None), Bilevel(problem))
