"""Learning the weight of exact total variation where only a tiny tikhonov makes the energy strongly
convex: salt and pepper with L1, counts with Kullback-Leibler.

    OMP_NUM_THREADS=1 python benchmarks/operators_saddle.py --seeds 0 1 2 --json saddle.json

Evaluations per image:
    hoag     three passes of HOAG, whose loss is the target; nothing of it is certified.
    maid     until MAID has a certified decrease to a loss at most as large; "first" is its first
             accepted step.
    deferred the same for blocks certified at their ends.
"-" stands for a budget that was used up; the loss that was reached is in the JSON file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import deepinv as dinv
import torch
from rich.console import Console
from rich.table import Table

import learnreg as lr

TIKHONOV = 1e-3
PASSES = 3


def problem(kind: str, source: str, seed: int, images: int, size: int) -> lr.BilevelProblem:
    """Salt and pepper with L1, or counts (50 for white) with Kullback-Leibler, in float64."""
    if kind == "l1":
        physics = lr.physics.Denoising().build((size, size), noise=lr.physics.SaltPepper())
        fidelity: object = lr.L1()
        weight = 0.3
    else:
        physics = dinv.physics.Denoising(dinv.physics.PoissonNoise(gain=1 / 50, normalize=True))
        fidelity = lr.KL(0.02)
        weight = 0.05
    train, _ = lr.data.pairs(source, physics, size=size, split=(images, 1), seed=seed)
    train = train.to(dtype=torch.float64)
    tv = lr.regularizers.ExactTV(weight)
    energy = lr.SaddleEnergy(train.physics, tv, fidelity, tikhonov=TIKHONOV)
    return lr.BilevelProblem(energy, train)


def to_loss(
    posed: lr.BilevelProblem, learner: object, target: float, budget: float
) -> dict[str, Any]:
    """Evaluations per image until a row of the record has a loss of at most ``target``."""
    run = lr.learn(posed, learner, budget=lr.Budget(work=budget))
    rows = run.record.rows
    there = [r for r in rows if r["loss"] <= target]
    best = min(rows, key=lambda r: r["loss"])
    return {
        "evaluations": there[0]["work"] / posed.size if there else None,
        "first": rows[1]["work"] / posed.size if len(rows) > 1 else None,
        "first_loss": rows[1]["loss"] if len(rows) > 1 else None,
        "best_loss": best["loss"],
        "best_bracket": [best["lower"], best["upper"]],
        "steps": len(rows) - 1,
    }


def run(seeds: tuple[int, ...] = (0, 1, 2), quick: bool = False) -> list[dict[str, Any]]:
    """One row per problem and seed."""
    images, size, budget = (2, 16, 600.0) if quick else (4, 32, 2000.0)
    rows = []
    for kind in ("l1", "kl"):
        for source in ("phantoms",) if quick else ("phantoms", "natural"):
            for seed in seeds:
                posed = problem(kind, source, seed, images, size)
                passes = lr.learn(posed, lr.HOAG(), budget=lr.Budget(steps=PASSES)).record.rows
                target = min(r["loss"] for r in passes)
                rows.append(
                    {
                        "data_term": kind,
                        "images": source,
                        "seed": seed,
                        "start": passes[0]["loss"],
                        "target": target,
                        "hoag": passes[-1]["work"] / images,
                        "maid": to_loss(posed, lr.MAID(), target, budget),
                        "deferred": to_loss(posed, lr.learners.Deferred(), target, budget),
                    }
                )
    return rows


def summary(rows: list[dict[str, Any]]) -> Table:
    """One line per row."""

    def shown(entry: dict[str, Any]) -> str:
        return "-" if entry["evaluations"] is None else f"{entry['evaluations']:.0f}"

    table = Table("D", "images", "seed", "start", "target", "hoag", "maid", "first", "deferred")
    for r in rows:
        first = r["maid"]["first"]
        table.add_row(
            r["data_term"],
            r["images"],
            str(r["seed"]),
            f"{r['start']:.3f}",
            f"{r['target']:.3f}",
            f"{r['hoag']:.0f}",
            shown(r["maid"]),
            "-" if first is None else f"{first:.0f} ({r['maid']['first_loss']:.3f})",
            shown(r["deferred"]),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        rows += run((seed,), args.quick)
        Console(width=110).print(summary(rows))
    if args.json:
        args.json.write_text(json.dumps({"version": lr.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
