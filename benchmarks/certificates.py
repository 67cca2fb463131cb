"""How sharp certificates are: true distance to the minimizer over the certified one, on five kinds
of physics.

    OMP_NUM_THREADS=1 python benchmarks/certificates.py --json certificates.json

Each row solves one problem of ``benchmarks/solvers.py`` with ``auto`` to eps and compares with a
float64 solve to 1e-7:
    true       distance, largest over images;
    gradient   true / (||grad h|| / mu): how much of the solver's own certificate is true (1 is
    sharp, above 1 a lie); certify    true / the distance that ``learnreg.certify`` certifies, at
    sharpness 0.1; estimate   estimated / true distance (a Newton step; an estimate, so either side
    of 1); work       evaluations of the solve and of ``certify``, per image.
Ratios are medians over images and seeds, with the range in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import learnreg as lr
from learnreg.core.batch import norm
from learnreg.metrics import honesty
from learnreg.solvers.certify import certify_potential
from learnreg.solvers.solve import solve_potential
from solvers import KINDS, WEIGHTS, Problem

TIGHT = 1e-7


def measured(problem: Problem, eps: float) -> dict[str, Any]:
    """One row."""
    solution = solve_potential(problem.f, eps, problem.x0)
    reference = solve_potential(
        problem.exact, TIGHT, solution.value.double(), max_steps=100_000
    ).raise_if_failed()
    true = norm(solution.value.double() - reference.value)
    found = certify_potential(problem.f, solution.value)
    plain, sharp = honesty(true, solution.error), honesty(true, found.certified)
    if plain.violated or sharp.violated:
        raise SystemExit(f"a certificate is wrong: {problem.label}, eps {eps}: {plain}, {sharp}")
    return {
        **problem.label,
        "eps": eps,
        "true": true.tolist(),
        "gradient": plain.ratios,
        "certify": sharp.ratios,
        "estimate": (found.estimated / true).tolist(),
        "solve_work": solution.cost.work / problem.images,
        "certify_work": found.cost.work / problem.images,
    }


def summary(rows: list[dict[str, Any]]) -> Table:
    """Medians over images and seeds."""
    table = Table(
        "physics",
        "R",
        "eps",
        "true",
        "gradient",
        "certify",
        "estimate",
        "solve work",
        "certify work",
    )
    for key in dict.fromkeys((r["physics"], r["regularizer"], r["eps"]) for r in rows):
        group = [r for r in rows if (r["physics"], r["regularizer"], r["eps"]) == key]

        def middle(name: str, group: list[dict[str, Any]] = group) -> float:
            values = [r[name] if isinstance(r[name], list | tuple) else [r[name]] for r in group]
            return statistics.median(v for part in values for v in part)

        table.add_row(
            key[0],
            key[1],
            f"{key[2]:g}",
            f"{max(max(r['true']) for r in group):.1e}",
            f"{middle('gradient'):.2g}",
            f"{middle('certify'):.2f}",
            f"{middle('estimate'):.2f}",
            f"{middle('solve_work'):.0f}",
            f"{middle('certify_work'):.0f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--physics", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--regularizer", nargs="+", default=["tv", "foe"], choices=list(KINDS))
    parser.add_argument("--eps", nargs="+", type=float, default=[1.0, 1e-1, 1e-2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for name in args.physics:
        for kind in args.regularizer:
            for seed in args.seeds:
                problem = Problem(name, kind, seed, args.images, args.size)
                rows += [measured(problem, eps) for eps in args.eps]
    Console(width=120).print(summary(rows))
    if args.json:
        document = {"version": lr.__version__, "torch": torch.__version__, "rows": rows}
        args.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
