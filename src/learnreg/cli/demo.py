"""The command ``demo``: photographs to a report in one go, TV against Fields of Experts, both
learned by MAID.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..core.results import Evaluation
from ..data import pairs, save_image
from ..data.images import load_natural
from ..learners import MAID
from ..physics import Denoising, Gaussian
from ..problems import BilevelProblem, Energy
from ..regularizers import TV, FoE, Regularizer
from ..reports import Report
from ..runs import Budget, Run, learn
from ..runs.checkpoint import FILE
from .guard import Interrupted, say
from .memory import keep_large_blocks
from .progress import LearnProgress

if TYPE_CHECKING:
    from rich.console import Console

SIGMA, SIZE, SPLIT = 0.1, 96, (24, 8)
TV_SHARE = 0.06
"""Part of the time given to the two parameters of TV, which need far less than that to converge."""
EPS = 1e-2
EXAMPLE = "noisy.png"


def run_demo(output: Path, seconds: float, seed: int, resume: bool, console: Console) -> None:
    """Learn TV and FoE on photographs, reconstruct held-out ones, write the report and the models.

    Args:
        output: the folder for ``index.html``, ``model.safetensors`` (FoE),
            ``tv/model.safetensors``, ``noisy.png``.
        seconds: learning time, both methods together.
        seed: of the split, the crops and the noise.
        resume: go on from the checkpoints of an interrupted demo.
        console: where to draw.

    Raises:
        Interrupted: Ctrl-C; the checkpoints keep every finished step.
    """
    keep_large_blocks()
    physics = Denoising().build((SIZE, SIZE), noise=Gaussian(SIGMA))
    train, test = pairs("natural", physics, size=SIZE, split=SPLIT, seed=seed)
    say(
        console,
        f"{len(train)} training crops from {_listed(train.sources)}; {len(test)} held-out crops "
        "from "
        f"{_listed(test.sources)}. Noise {SIGMA:g}.",
    )
    jobs: dict[str, tuple[Regularizer, float]] = {
        "TV": (TV(), TV_SHARE * seconds),
        "FoE": (FoE(filters=24, size=5), (1 - TV_SHARE) * seconds),
    }
    results: dict[str, tuple[Run, Evaluation]] = {}
    for name, (regularizer, share) in jobs.items():
        problem = BilevelProblem(Energy(physics, regularizer), train)
        say(console, f"\nLearning {name}: {problem.describe()}")
        run = _learn(name, problem, share, seed, output, resume, console)
        results[name] = run, run.evaluate(test, EPS)
        say(console, run)
    best = results["FoE"][0]
    results["FoE"] = best, replace(results["FoE"][1], honesty=best.check_certificate(test.y[:1]))
    report = Report.compare(results)
    page = report.save(output)
    best.save(output)
    results["TV"][0].save(output / "tv")
    _example(output, test.sources[0], physics, seed)
    say(
        console,
        f"\n{report}\n\nReport: {page}\nTry:    learnreg reconstruct --model "
        f"{output / 'model.safetensors'} "
        f"{output / EXAMPLE} -o clean.png",
    )


def _learn(
    name: str,
    problem: BilevelProblem,
    seconds: float,
    seed: int,
    output: Path,
    resume: bool,
    console: Console,
) -> Run:
    """One run, shown while it goes on; Ctrl-C ends the demo, not only this run."""
    budget, folder = Budget(seconds=seconds), output / "checkpoint" / name.lower()
    with LearnProgress(console, budget, problem.size) as progress:
        run = learn(
            problem,
            MAID(),
            budget=budget,
            seed=seed,
            checkpoint=folder,
            name=name,
            progress=progress,
            resume=resume and (folder / FILE).exists(),
        )
    if run.stop.code == "interrupted":
        raise Interrupted(
            f"Stopped after step {run.record.rows[-1]['step']} of {name}. "
            f"Kept: the checkpoint in {folder}. Go on with: learnreg demo --output {output} "
            "--resume"
        )
    return run


def _example(output: Path, source: str, physics: nn.Module, seed: int) -> None:
    """A whole held-out photograph with noise, to try ``reconstruct`` on."""
    from torch.nn.functional import interpolate

    from ..data.measure import measure

    photograph = interpolate(
        load_natural(source)[None], scale_factor=0.5, mode="bilinear", antialias=True
    )
    save_image(output / EXAMPLE, measure(photograph, physics, [source], seed)[0])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
