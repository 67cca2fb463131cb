"""The command ``demo``: from photographs to a report in one go, TV against a method with learned
filters, both learned by MAID. What there is to show stands in ``demo_scenes``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..core.errors import InputError
from ..core.files import write_atomically
from ..core.results import Evaluation
from ..core.words import slug
from ..data import Pairs, save_array, save_image
from ..data.images import load_natural
from ..learners import Deferred
from ..problems import BilevelProblem
from ..reports import Report
from ..runs import Budget, Run, learn
from ..runs.checkpoint import FILE
from .config import Config
from .demo_scenes import MAID, Scene, scene_of
from .guard import Interrupted, say
from .learn import COPY, RESULTS, claimed, evaluate, save_or_tell, told
from .memory import keep_large_blocks
from .prepare import prepared
from .progress import LearnProgress

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 400.0
"""Evaluations per image in which the loss has to fall by a thousandth, or the learning ends: TV
rests after a thousand of them, Fields of Experts after some six thousand.
"""
EPS = 1e-2
FEW = 2
"""A method that had time for fewer steps has hardly been tried."""
LEAST = 1e-3
"""Seconds of a budget that is used up: it has to be positive."""

HEAD = """\
# The {story} of the demonstration as a run of its own: learnreg learn config.toml
# The budget is the {steps} steps that were made there in {seconds:.0f} seconds: with the same
# versions and threads the numbers are the same. All other keys: learnreg learn --example

"""


def run_demo(
    name: str,
    output: Path | None,
    seconds: float | None,
    seed: int,
    resume: bool,
    console: Console,
) -> None:
    """Learn two methods, reconstruct held-out images, write the report and the models.

    Args:
        name: "photographs" (TV against FoE), "ct" or "mri" (TV against TV + FoE).
        output: the folder for ``index.html``, ``model.safetensors`` (the method with filters),
            ``tv/model.safetensors``, ``config.toml`` (repeats its run) and an example to
            reconstruct: ``noisy.png``, ``sinogram.npy`` or ``kspace.npy``; that of the
            demonstration when None.
        seconds: most learning time, both methods together; it ends sooner where nothing more is
            gained. That of the demonstration when None.
        seed: of the split, the crops, the noise and the mask.
        resume: go on from the checkpoints of an interrupted demo.
        console: where to draw.

    Raises:
        Interrupted: Ctrl-C; the checkpoints keep every finished step.
        InputError: an unknown name; a folder that holds the run of another command, or cannot be
            written.
    """
    scene = scene_of(name)
    folder = Path(scene.output) if output is None else output
    keep_large_blocks()
    _check_output(folder)
    with claimed(folder):
        words = ["learnreg", "demo", *([] if name.lower() == "photographs" else [name.lower()])]
        _Demo(scene, words, folder, seed, resume, console).run(
            scene.seconds if seconds is None else seconds
        )


def as_file(scene: Scene, run: Run, seed: int, output: Path) -> str:
    """A configuration that repeats the run of the method with filters, step for step."""
    steps = run.record.rows[-1]["step"]
    threads = run.record.settings["threads"]
    place = {"seed": seed, "threads": threads, "output": f"{output}-again"}
    config = scene.config(scene.learned, scene.learner, place, max(1, steps))
    seconds = run.record.rows[-1]["seconds"]
    return HEAD.format(story=scene.story, steps=steps, seconds=seconds) + config.to_toml()


class _Demo:
    """A demonstration, in a folder that is ours.

    Args:
        words: the command without options.
    """

    def __init__(
        self,
        scene: Scene,
        words: list[str],
        output: Path,
        seed: int,
        resume: bool,
        console: Console,
    ) -> None:
        self.scene, self.words, self.output = scene, words, output
        self.seed, self.resume, self.console = seed, resume, console

    @property
    def again(self) -> str:
        """The command that goes on."""
        return shlex.join([*self.words, "--output", str(self.output), "--resume"])

    def run(self, seconds: float) -> None:
        """Learn, evaluate, report."""
        say(self.console, f"{self.scene.task}: preparing the photographs ...")
        scene, run = self.scene, {"seed": self.seed}
        tv = scene.config(scene.total_variation, MAID, run)
        learned = scene.config(scene.learned, scene.learner, run)
        problem, _, test = prepared(tv)
        train = problem.given
        assert isinstance(train, Pairs)
        say(
            self.console,
            f"{len(train)} training crops from {_listed(train.sources)}; {len(test)} held-out "
            f"crops from {_listed(test.sources)}. {self.scene.measured}",
        )
        baseline = self._learn(tv, problem, self.scene.tv_share * seconds)
        used = min(baseline.record.rows[-1]["seconds"], self.scene.tv_share * seconds)
        energy = learned.build_energy(train.physics, learned.data.channels)
        problem = BilevelProblem(energy, train)
        best = self._learn(learned, problem, seconds - used)

        say(self.console, f"\nReconstructing {len(test)} held-out images ...")
        results = {
            tv.name: (baseline, baseline.evaluate(test, EPS)),
            learned.name: (best, evaluate(best, test, EPS, self.console)),
        }
        self._write(results, learned, test, seconds)

    def _write(
        self,
        results: dict[str, tuple[Run, Evaluation]],
        learned: Config,
        test: Pairs,
        seconds: float,
    ) -> None:
        """Models, report, configuration and example; and what to do with them."""
        output, best = self.output, results[learned.name][0]
        save_or_tell(best, output, self.again)
        with told(f"Kept in {output}: the checkpoints and model.safetensors.", self.again):
            results["TV"][0].save(output / "tv")
            config = as_file(self.scene, best, self.seed, output)
            command = [*self.words, "--seconds", f"{seconds:g}", "--seed", str(self.seed)]
            report = Report.compare(
                results, config={learned.name: config}, command=shlex.join(command)
            )
            page = report.save(output)
            write_atomically(output / COPY, config.encode())
            self._example(test)
        say(
            self.console,
            f"\n{report}\n\nReport: {page}\nTry:    learnreg reconstruct --model "
            f"{output / 'model.safetensors'} "
            f"{output / self.scene.example} -o {self.scene.clean}\n"
            f"Change: learnreg learn {output / COPY}",
        )

    def _learn(self, config: Config, problem: BilevelProblem, seconds: float) -> Run:
        """One run, shown while it goes on; Ctrl-C ends the demo, not only this run."""
        name, learner = config.name, config.build_learner()
        way = " in certified blocks" if isinstance(learner, Deferred) else ""
        say(self.console, f"\nLearning {name}{way}: {problem.describe()}")
        budget = Budget(seconds=max(seconds, LEAST), patience=PATIENCE)
        folder = self.output / "checkpoint" / slug(name)
        with LearnProgress(self.console, budget, problem.size) as progress:
            run = learn(
                problem,
                learner,
                budget=budget,
                seed=self.seed,
                checkpoint=folder,
                name=name,
                progress=progress,
                resume=self.resume and (folder / FILE).exists(),
            )
        if run.stop.code == "interrupted":
            raise Interrupted(
                f"Stopped after step {run.record.rows[-1]['step']} of {name}. "
                f"Kept: the checkpoint in {folder}. Go on with: {self.again}"
            )
        say(self.console, run)
        if run.stop.code == "budget" and run.record.rows[-1]["step"] < FEW:
            say(
                self.console,
                f"note: {name} had time for {run.record.rows[-1]['step']} steps only, which says "
                "little of it; give more --seconds before comparing.",
            )
        return run

    def _example(self, test: Pairs) -> None:
        """A held-out measurement to try ``reconstruct`` on: a whole photograph with noise, or the
        first sinogram or k-space.
        """
        path = self.output / self.scene.example
        if path.suffix == ".png":
            _photograph(path, test, self.seed)
            return
        y = test.y[0]
        # why complex: that is how scanners keep k-space; the two channels are deepinv's
        save_array(path, torch.complex(*y) if y.shape[0] == 2 else y[0])


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


def _photograph(path: Path, test: Pairs, seed: int) -> None:
    """A whole held-out photograph with noise."""
    from torch.nn.functional import interpolate

    from ..data.measure import measure

    source = test.sources[0]
    whole = interpolate(
        load_natural(source)[None], scale_factor=0.5, mode="bilinear", antialias=True
    )
    save_image(path, measure(whole, test.physics, [source], seed)[0])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
