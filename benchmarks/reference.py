"""The reference problems T4 and F10: loss of every accepted step, re-evaluated tightly, against CPU
time and work.

    python benchmarks/reference.py --problem T4.npz --model tv --learner maid --threads 1 --seconds
    60 --json out.json python benchmarks/reference.py --problem F10.npz --model foe --filters 10
    --size 5 --json out.json

A problem file holds ``y``, ``x_true`` (n, 1, h, w) and ``theta0`` (d,). The problem posed is
    h(x) = 1/2 ||x - y||^2 + 1/2 R(x; theta),   f(theta) = mean over images of 1/2 ||x(theta) -
    x_true||^2,
with R = e^{t0} anisotropic smoothed TV (``--model tv``) or Fields of Experts with free filters and
reflect padding. Counters of a row are means per image; ``cpu_seconds`` is process time from the
call of ``learn``. The losses of the rows are re-evaluated in float64 after the run, which is
neither timed nor counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepinv as dinv
import numpy as np
import torch

import learnreg as lr

LEARNERS = {
    "maid": lambda: lr.MAID(),
    "maid-paper": lambda: lr.MAID(
        memory=0, eps0=0.1 / 2, delta0=0.1 / 2, alpha0=0.01, eta=1e-4, sufficient=1e-8
    ),
    "fixed": lambda: lr.FixedAccuracy(eps=1e-3, delta=1e-3),
    "lbfgsb": lambda: lr.LBFGSB(eps=1e-3, delta=1e-3),
    "lbfgsb-tight": lambda: lr.LBFGSB(eps=1e-6, delta=1e-6),
    "hoag-quadratic": lambda: lr.HOAG("quadratic"),
    "hoag-cubic": lambda: lr.HOAG("cubic"),
    "hoag-geometric": lambda: lr.HOAG("geometric"),
    "sgd": lambda: lr.Stochastic("sgd", batch=1),
    "adam": lambda: lr.Stochastic("adam", batch=1),
}
TIGHT = 1e-6
"""Distance per image of the re-evaluation: the loss is then known to about 1e-5 of its value."""


class Data(SimpleNamespace):
    """Pairs without a physics: ground truth ``x`` and measurements ``y``."""

    def __len__(self) -> int:
        return len(self.x)


def pose(path: Path, model: str, filters: int, size: int, dtype: torch.dtype) -> lr.BilevelProblem:
    """The bilevel problem of a file."""
    with np.load(path) as file:
        y, x, theta = (torch.tensor(file[k]).to(dtype) for k in ("y", "x_true", "theta0"))
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    base = (
        lr.regularizers.TV(isotropic=False)
        if model == "tv"
        else lr.regularizers.FoE(
            filters, size, zero_mean=False, padding="reflect", init="random", least_smoothing=0.0
        )
    )
    return lr.BilevelProblem(lr.Energy(physics, 0.5 * base).with_theta(theta), Data(x=x, y=y))


def exact_losses(problem: lr.BilevelProblem, thetas: torch.Tensor) -> list[float]:
    """f(theta) of every accepted step in float64, each solve started from the one before."""
    tight, x0, losses = problem.to(torch.float64), None, []
    for theta in thetas.double():
        energy = tight.energy.with_theta(theta)
        solution = lr.solve(energy, tight.pairs.y, TIGHT, x0=x0)
        losses.append(float(tight.loss.value(solution.value, tight.pairs.x).mean()))
        x0 = solution.value
    return losses


def report(args: argparse.Namespace, problem: lr.BilevelProblem, run: lr.Run) -> dict[str, Any]:
    """The JSON document."""
    n = problem.size
    rows = []
    for row, loss in zip(run.record.rows, exact_losses(problem, run.thetas), strict=True):
        counters = {
            "gradients": "gradients",
            "hvps": "hessian_products",
            "mixed_products": "mixed_products",
            "cg_steps": "cg_steps",
            "work": "work",
        }
        shown = {
            "psnr": "psnr",
            "cpu_seconds": "cpu_seconds",
            "eps": "eps",
            "delta": "delta",
            "step_size": "step_size",
            "trials": "trials",
            "loss_lower": "lower",
            "loss_upper": "upper",
            "omega_estimated": "omega_estimated",
        }
        rows.append(
            {
                "step": row["step"],
                "loss": loss,
                **{k: row[v] / n for k, v in counters.items()},
                **{k: row.get(v) for k, v in shown.items()},
            }
        )
    return {
        "problem": args.problem.stem,
        "model": args.model,
        "learner": args.learner,
        "threads": args.threads,
        "seed": args.seed,
        "dtype": args.dtype,
        "stop": str(run.stop),
        "rows": rows,
        "theta": run.theta.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--problem", type=Path, required=True, help="npz file with y, x_true, theta0"
    )
    parser.add_argument("--model", choices=["tv", "foe"], required=True)
    parser.add_argument("--filters", type=int, default=10)
    parser.add_argument("--size", type=int, default=5)
    parser.add_argument("--learner", choices=list(LEARNERS), default="maid")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument(
        "--seed", type=int, default=0, help="recorded; the problem file fixes all random numbers"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="float32",
        help="of the run; float32 goes on in float64 where its accuracy ends",
    )
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problem = pose(args.problem, args.model, args.filters, args.size, getattr(torch, args.dtype))
    run = lr.learn(
        problem, LEARNERS[args.learner](), budget=lr.Budget(seconds=args.seconds), seed=args.seed
    )
    print(run)
    document = report(args, problem, run)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(document, indent=1))
    print(f"exact loss of the last step {document['rows'][-1]['loss']:.6f}; rows in {args.json}")


if __name__ == "__main__":
    main()
