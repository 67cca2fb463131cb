"""What the command line tells a report besides its numbers: how to repeat it, and baselines."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, TypedDict

from ..core.errors import InputError, LearnregError
from ..core.offers import is_saddle
from ..data import Pairs
from ..problems import KL, BilevelProblem
from ..runs.baselines import Baseline, bm3d, tuned_tv
from .config import Config
from .guard import say

if TYPE_CHECKING:
    from rich.console import Console

TUNED_ON = 8
"""Training images that the weight of a baseline is tuned on, at most."""

COPY, AGAIN = "config.toml", "again"


class Extras(TypedDict):
    """Arguments of ``Report``."""

    config: str
    command: str
    baselines: dict[str, Baseline]


def extras(config: Config, problem: BilevelProblem, test: Pairs, console: Console) -> Extras:
    """Configuration, command and baselines for the report of a run.

    Args:
        config: as it was run, changes of the command line included.
        problem: what was learned from.
        test: the held-out pairs.
        console: where it is said that a baseline could not be had.
    """
    return {
        "config": config.to_toml(),
        # why another output: a folder with a finished run is not written over
        "command": shlex.join(["learnreg", "learn", COPY, "--output", AGAIN]),
        "baselines": baselines(config, problem, test, console),
    }


def baselines(
    config: Config, problem: BilevelProblem, test: Pairs, console: Console
) -> dict[str, Baseline]:
    """Those of ``[run] baselines``; total variation is no baseline of itself."""
    found: dict[str, Baseline] = {}
    for name in config.run.baselines:
        given = problem.given
        if name == "tuned TV" and (config.name == "TV" or not isinstance(given, Pairs)):
            continue
        try:
            if name == "tuned TV":
                energy = problem.energy
                fidelity = None if is_saddle(energy) else energy.fidelity
                found[name] = tuned_tv(
                    given[:TUNED_ON], test, fidelity=fidelity, constraint=energy.constraint
                )
            elif name == "BM3D":
                found[name] = bm3d(test)
            elif isinstance(given, Pairs):
                found[name] = _of_counts(name, given[:TUNED_ON], test, problem.energy.fidelity)
        except LearnregError as error:  # a baseline less must not cost the page
            say(console, f"{name} is not in the report: {error}")
    return found


def _of_counts(name: str, train: Pairs, test: Pairs, fidelity: object) -> Baseline:
    """Expectation maximization.

    Raises:
        InputError: measurements that are no counts.
    """
    from ..runs.em import mlem, osem  # deepinv takes seconds to import

    if not isinstance(fidelity, KL):
        raise InputError(
            "baselines",
            given=f"{name} with {type(fidelity).__name__}",
            expected="counts, with the data term KL",
            remedy=f"Leave {name} out of [run] baselines.",
        )
    return (mlem if name == "MLEM" else osem)(train, test, fidelity)
