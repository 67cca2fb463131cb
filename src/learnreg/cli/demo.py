"""The command ``demo``: photographs to a report in one go, TV against Fields of Experts, both
learned by MAID.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from ..core.errors import InputError
from ..core.files import write_atomically
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
from .config import Config
from .guard import Interrupted, say
from .learn import COPY, RESULTS, claimed, save_or_tell, told
from .memory import keep_large_blocks
from .progress import LearnProgress

if TYPE_CHECKING:
    from rich.console import Console

SIGMA, SIZE, SPLIT = 0.1, 96, (24, 8)
FILTERS, WIDTH = 24, 5
TV_SHARE = 0.06
"""Part of the time that the two parameters of TV may take; what they leave is for the others."""
PATIENCE = 400.0
"""Evaluations per image in which the loss has to fall by a thousandth, or the learning ends: TV
rests after a thousand of them, Fields of Experts after some six thousand.
"""
EPS = 1e-2
EXAMPLE = "noisy.png"
LEAST = 1e-3
"""Seconds of a budget that is used up: it has to be positive."""

HEAD = """\
# The Fields of Experts of the demonstration as a run of its own: learnreg learn config.toml
# The budget is the {steps} steps that were made there in {seconds:.0f} seconds: with the same
# versions and threads the numbers are the same. All other keys: learnreg learn --example

"""


def run_demo(output: Path, seconds: float, seed: int, resume: bool, console: Console) -> None:
    """Learn TV and FoE on photographs, reconstruct held-out ones, write the report and the models.

    Args:
        output: the folder for ``index.html``, ``model.safetensors`` (FoE),
            ``tv/model.safetensors``, ``config.toml`` (repeats the run of FoE), ``noisy.png``.
        seconds: most learning time, both methods together; it ends sooner where nothing more is
            gained.
        seed: of the split, the crops and the noise.
        resume: go on from the checkpoints of an interrupted demo.
        console: where to draw.

    Raises:
        Interrupted: Ctrl-C; the checkpoints keep every finished step.
        InputError: a folder that holds the run of another command, or cannot be written.
    """
    keep_large_blocks()
    _check_output(output)
    with claimed(output):
        _demonstrate(output, seconds, seed, resume, console)


def _demonstrate(output: Path, seconds: float, seed: int, resume: bool, console: Console) -> None:
    """The demonstration, in a folder that is ours."""
    say(console, "Preparing the photographs ...")
    physics = Denoising().build((SIZE, SIZE), noise=Gaussian(SIGMA))
    train, test = pairs("natural", physics, size=SIZE, split=SPLIT, seed=seed)
    say(
        console,
        f"{len(train)} training crops from {_listed(train.sources)}; {len(test)} held-out crops "
        "from "
        f"{_listed(test.sources)}. Noise {SIGMA:g}.",
    )
    jobs: dict[str, Regularizer] = {"TV": TV(), "FoE": FoE(filters=FILTERS, size=WIDTH)}
    results: dict[str, tuple[Run, Evaluation]] = {}
    left = seconds
    for name, regularizer in jobs.items():
        problem = BilevelProblem(Energy(physics, regularizer), train)
        say(console, f"\nLearning {name}: {problem.describe()}")
        share = TV_SHARE * seconds if name == "TV" else left
        run = _learn(name, problem, share, seed, output, resume, console)
        left -= min(run.record.rows[-1]["seconds"], share)
        results[name] = run, run.evaluate(test, EPS)
        say(console, run)
    best = results["FoE"][0]
    results["FoE"] = best, replace(results["FoE"][1], honesty=best.check_certificate(test.y[:1]))
    again = shlex.join(["learnreg", "demo", "--output", str(output), "--resume"])
    save_or_tell(best, output, again)
    with told(f"Kept in {output}: the checkpoints and model.safetensors.", again):
        results["TV"][0].save(output / "tv")
        config = as_file(best, seed, output)
        command = ["learnreg", "demo", "--seconds", f"{seconds:g}", "--seed", str(seed)]
        report = Report.compare(results, config={"FoE": config}, command=shlex.join(command))
        page = report.save(output)
        write_atomically(output / COPY, config.encode())
        _example(output, test.sources[0], physics, seed)
    say(
        console,
        f"\n{report}\n\nReport: {page}\nTry:    learnreg reconstruct --model "
        f"{output / 'model.safetensors'} "
        f"{output / EXAMPLE} -o clean.png\n"
        f"Change: learnreg learn {output / COPY}",
    )


def as_file(run: Run, seed: int, output: Path) -> str:
    """A configuration that repeats the run of Fields of Experts, step for step."""
    steps = run.record.rows[-1]["step"]
    config = Config.model_validate(
        {
            "data": {"source": "natural", "size": SIZE, "train": SPLIT[0], "test": SPLIT[1]},
            "noise": {"type": "gaussian", "sigma": SIGMA},
            "regularizer": {"type": "FoE", "filters": FILTERS, "size": WIDTH},
            "learner": {"type": "maid"},
            "budget": {"steps": max(1, steps)},
            "run": {
                "seed": seed,
                "threads": run.record.settings["threads"],
                "output": f"{output}-again",
            },
        }
    )
    return HEAD.format(steps=steps, seconds=run.record.rows[-1]["seconds"]) + config.to_toml()


def _check_output(output: Path) -> None:
    """Refuse to write over the run of another command; an earlier demonstration is replaced."""
    there = [name for name in RESULTS if (output / name).exists()]
    if there and not (output / "tv").is_dir():
        raise InputError(
            f"output folder {output}",
            given=f"the run of another command ({', '.join(there)})",
            expected="no run yet",
            remedy="Choose another --output.",
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
    budget = Budget(seconds=max(seconds, LEAST), patience=PATIENCE)
    folder = output / "checkpoint" / name.lower()
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
