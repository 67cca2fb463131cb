"""Learned discretisations of total variation: standard TV, joint piggyback with fixed steps,
adaptive piggyback.

    python experiments/learned_tv.py --json result.json

Claim (Bogensperger, Ehrhardt, Pock, Salehi, Wong, arXiv 2412.06436; slides of it): denoising with
standard TV 25.82 dB, filters learned non-adaptively 26.63 dB, adaptively 26.90 dB; "results still
depend on parameters; sensitivity much reduced". Data, noise and model of the paper are not known to
us; here: crops of the bundled photographs, noise 0.1, the smooth model of ``LearnedTV``. All
learned arms start from the same random filters with sum one and may spend as many evaluations per
image (one application of K and of its adjoint each, in the lower level or in the adjoint). The
weight of standard TV is learned as well. What is reported was evaluated again: exact training loss
in a certified bracket, PSNR on held-out photographs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import deepinv
import torch

import learnreg as lr
from learnreg.regularizers import ExactTV, LearnedTV
from learnreg.runs.trajectory import trajectory

MODEL = {"smoothing": 5e-4, "curvature": 1.0, "rounding": 1e-4}
"""With these the TV of the smooth model is within 0.1 dB of exact TV at its best weight (noise
0.1).
"""

WEIGHT = 0.09
STEPS = 100


def learned(filters: int, seed: int) -> LearnedTV:
    """The model at its random start."""
    return LearnedTV(filters=filters, weight=WEIGHT, init="random", seed=seed, **MODEL)


def standard() -> LearnedTV:
    """Standard TV in the same smooth model; only its weight is learned."""
    regularizer = LearnedTV(filters=1, weight=WEIGHT, init="identity", **MODEL)
    regularizer.coordinates.requires_grad_(False)
    return regularizer


def adam(alpha: float) -> lr.Stochastic:
    """Adam with all images in each step and a constant step size."""
    return lr.Stochastic(optimizer="adam", batch=10**6, alpha0=alpha, step_exponent=0.0)


def arms(which: str) -> dict[str, tuple[str, Any, Any]]:
    """Name -> (regularizer, learner, strategy)."""
    found: dict[str, tuple[str, Any, Any]] = {
        "exact TV, weight learned": ("exact", lr.MAID(), None),
        "TV, weight learned": ("standard", lr.MAID(), None),
    }
    more = ((0.1, 0.1),) if which == "sensitivity" else ()
    for balance, alpha in ((0.01, 0.1), (0.01, 0.3), *more):
        found[f"joint piggyback, Adam (t={balance:g}, step {alpha:g})"] = (
            "learned",
            adam(alpha),
            lr.JointPiggyback(STEPS, balance),
        )
    for alpha in (0.1, 0.3):
        found[f"two-phase piggyback, Adam (step {alpha:g})"] = (
            "learned",
            adam(alpha),
            lr.Piggyback(certify=False),
        )
    if which == "sensitivity":
        for alpha in (0.01, 1.0):
            for eps in (0.1, 10.0):
                found[f"adaptive (alpha0={alpha:g}, eps0=delta0={eps:g})"] = (
                    "learned",
                    lr.MAID(alpha0=alpha, eps0=eps, delta0=eps),
                    None,
                )
    found["adaptive, steepest descent (alpha0=1)"] = (
        "learned",
        lr.MAID(memory=0, eta=1e-4, sufficient=1e-5, alpha0=1.0),
        None,
    )
    found["adaptive (defaults)"] = ("learned", lr.MAID(), None)
    return found


def run(seed: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per arm."""
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    train, test = lr.data.pairs(
        "natural", physics, size=given.size, split=(given.images, given.test), seed=seed
    )
    rows = []
    for name, (kind, learner, strategy) in arms(given.arms).items():
        regularizer = {
            "exact": lambda: ExactTV(WEIGHT),
            "standard": standard,
            "learned": lambda: learned(given.filters, seed),
        }[kind]()
        problem = lr.BilevelProblem(lr.SaddleEnergy(physics, regularizer), train)
        done = lr.learn(
            problem, learner, hypergradient=strategy, budget=lr.Budget(work=given.budget), seed=seed
        )
        curve = trajectory(
            done, problem, test, points=given.points, relative=3e-3, strategy=strategy
        )
        last = [row for row in curve if row["psnr_test"] is not None][-1]
        rows.append(
            {
                "seed": seed,
                "arm": name,
                "kind": kind,
                "loss": last["loss"],
                "psnr": last["psnr_test"],
                "work": last["work"],
                "cpu": last["cpu_seconds"],
                "stop": done.stop.code,
                "curve": [[row["work"], row["loss"], row["psnr_test"]] for row in curve],
            }
        )
        print(
            f"seed {seed}  {name:58s} loss {last['loss']:8.4f}  PSNR {last['psnr_test']:.2f}"
            f"  {last['work']:.0f} evaluations  {done.stop.code}",
            flush=True,
        )
    return rows


def work_to(curve: list[list[float]], loss: float) -> float | None:
    """Evaluations per image until the exact loss is at most ``loss``."""
    return next((work for work, value, _ in curve if value is not None and value <= loss), None)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and spread over seeds, in the order of the arms; and what reaching the best joint loss
    took.
    """
    seeds = sorted({row["seed"] for row in rows})
    goal = {
        s: min(
            (r["loss"] for r in rows if r["seed"] == s and r["arm"].startswith("joint")),
            default=None,
        )
        for s in seeds
    }
    lines = [
        "| arm | held-out PSNR (dB) | by seed | training loss by seed | evaluations to the best "
        "joint loss |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == name]
        psnr, losses = [row["psnr"] for row in mine], [row["loss"] for row in mine]
        spread = statistics.stdev(psnr) if len(psnr) > 1 else 0.0
        reached = [
            "–"
            if goal[r["seed"]] is None or (w := work_to(r["curve"], goal[r["seed"]])) is None
            else f"{w:.0f}"
            for r in mine
        ]
        lines.append(
            f"| {name} | {statistics.mean(psnr):.2f} ± {spread:.2f} | "
            f"{', '.join(f'{v:.2f}' for v in psnr)} | "
            f"{', '.join(f'{v:.3f}' for v in losses)} | {', '.join(reached)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--test", type=int, default=16)
    parser.add_argument("--size", type=int, default=40)
    parser.add_argument("--filters", type=int, default=4)
    parser.add_argument("--budget", type=float, default=5000, help="evaluations per image")
    parser.add_argument(
        "--points", type=int, default=6, help="steps of a run that are evaluated again"
    )
    parser.add_argument(
        "--arms",
        choices=("main", "sensitivity"),
        default="main",
        help="sensitivity adds a grid of first steps and accuracies",
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        rows += run(seed, given)
        if given.json:
            given.json.write_text(json.dumps(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
