"""Deblurring with an unknown kernel: regularizer and kernel learned together, by eight models and
three learners.

    OMP_NUM_THREADS=1 python benchmarks/operators_kernels.py --folder PHOTOGRAPHS

Six training and six test crops of 40^2 grey pixels, blurred with a Gaussian of 5x5 taps and
standard deviation 1 (reflected borders), noise 5/255 with the generator's seed 0, training noise
first. The lower level is 1/2 ||k * x - y||^2 + TV + 0.0005 ||x||^2, isotropic TV of forward
differences with theta = (log weight, log smoothing) from (-6, -4), in [-12, 0] x [-7, 0]; the loss
is the mean of 1/2 ||x - x_true||^2. The numbers of the table were made with 24 photographs of Kodak
squashed to 256^2 (``--folder``): training crops from (100, 100) of every fourth of the sorted list,
test crops from (60, 60) of those between. Without a folder the bundled photographs stand in
for them, and the numbers are others.

Models of the kernel: a single pixel and the true kernel, both fixed; free taps, with the model's
borders zero, from a single pixel, from a Gaussian of standard deviation 0.5; softmax, radial and
Gaussian from there. Learners: L-BFGS-B to 1e-6 (40 moves); MAID on the Gaussian; and in turn: the
regularizer with the kernel fixed, then the kernel with the regularizer fixed, and so on.

Two further rows have one crop and no truth (the analytical deep prior of Salehi, Bubba and
Korolev): TV of fixed weight, and the operator of the fit learned from the measurements alone.

Work is counted in batch applications of A to all images at once, whatever they are for: gradients,
Hessian products, norms and checks (one A^T goes with each), and in Hessian products and gradients
per image. ``kernel_error`` is ||k - k_true|| / ||k_true||: a learned kernel serves the regularizer,
it is no estimate of the true one.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepinv as dinv
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import learnreg as lr
from learnreg.physics import (
    Free,
    GaussianKernel,
    LearnedPhysics,
    RadialKernel,
    SimplexKernel,
)

SIDE, NOISE, RIDGE, START = 40, 5 / 255, 1e-3, (-6.0, -4.0)
BOX = {"terms.0.log_weight": [-12.0, 0.0], "terms.0.log_smoothing": [-7.0, 0.0]}
EXPECTED = {
    "pixel": (1.590, 29.81),
    "true": (0.910, 32.20),
    "free, zero borders": (1.331, 29.96),
    "free from pixel": (1.056, 30.95),
    "free": (1.063, 31.12),
    "simplex": (0.945, 32.10),
    "radial": (0.899, 32.29),
    "gaussian": (0.901, 32.29),
}
"""Loss and PSNR on the test crops that an independent computation gives."""

REFERENCE_PRODUCTS = 3704
"""Batch Hessian products of L-BFGS-B on the Gaussian in that computation."""


class Pairs(SimpleNamespace):
    """Ground truth ``x`` and measurements ``y``."""

    def __len__(self) -> int:
        return len(self.x)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count how often blurs are applied to a batch, in the only entry of the list."""
    plain, count = dinv.physics.Blur.A, [0]

    def A(self: dinv.physics.Blur, x: Tensor, **kwargs: Any) -> Tensor:
        count[0] += 1
        return plain(self, x, **kwargs)

    dinv.physics.Blur.A = A
    try:
        yield count
    finally:
        dinv.physics.Blur.A = plain


@dataclass(frozen=True)
class Arm:
    """A model of the kernel: a fixed one, or parameters."""

    name: str
    kernel: Callable[[], torch.nn.Module | Tensor]
    padding: str = "reflect"


def true_kernel() -> Tensor:
    """(1, 1, 5, 5), standard deviation 1."""
    t = torch.arange(-2, 3, dtype=torch.float64)
    k = torch.exp(-(t[:, None] ** 2 + t**2) / 2)
    return (k / k.sum())[None, None]


def pixel() -> Tensor:
    """(1, 1, 3, 3): no blur."""
    k = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    k[..., 1, 1] = 1
    return k


ARMS = (
    Arm("pixel", pixel),
    Arm("true", true_kernel),
    Arm("free, zero borders", lambda: Free(5, start=0.0), "constant"),
    Arm("free from pixel", lambda: Free(5, start=0.0)),
    Arm("free", lambda: Free(5, start=0.5)),
    Arm("simplex", lambda: SimplexKernel(5, start=0.5)),
    Arm("radial", lambda: RadialKernel(5, start=0.5)),
    Arm("gaussian", lambda: GaussianKernel(5, std=0.5)),
)


def data(folder: Path | None, side: int = SIDE, seed: int = 0) -> tuple[Pairs, Pairs, str]:
    """Training and test pairs, and where they come from."""
    files = sorted(folder.glob("*.png"))[:24] if folder else []
    if len(files) >= 24:
        pictures = [_grey(Image.open(file)) for file in files]
        train = [p[100 : 100 + side, 100 : 100 + side] for p in pictures[::4]]
        test = [p[60 : 60 + side, 60 : 60 + side] for p in pictures[2::4]]
        source = folder.name if folder else ""
    else:
        photographs = lr.data.natural_photographs()
        whole = [Image.fromarray(p.numpy()) for p in list(photographs.values())[:6]]
        pictures = [np.asarray(p.resize((256, 256)), dtype=np.float64) for p in whole]
        train = [p[100 : 100 + side, 100 : 100 + side] for p in pictures]
        test = [p[60 : 60 + side, 60 : 60 + side] for p in pictures]
        source = "bundled photographs, in the place of those of the table"

    blur = dinv.physics.Blur(filter=true_kernel(), padding="reflect")
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for crops in (train, test):
        x = torch.from_numpy(np.stack(crops))[:, None]
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        pairs.append(Pairs(x=x, y=blur.A(x) + NOISE * noise))
    return pairs[0], pairs[1], source


def _grey(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"), dtype=np.float64) / 255


def pose(arm: Arm, train: Pairs) -> lr.BilevelProblem:
    """The learning problem of an arm, in float64."""
    kernel = arm.kernel()
    fixed = isinstance(kernel, Tensor)
    base = dinv.physics.Blur(filter=kernel if fixed else pixel(), padding=arm.padding)
    physics = base if isinstance(kernel, Tensor) else LearnedPhysics(base, {"filter": kernel})
    weight, smoothing = map(math.exp, START)
    regularizer = lr.regularizers.TV(weight, smoothing)
    ridge = lr.regularizers.Tikhonov(RIDGE, learned=False)
    return lr.BilevelProblem(lr.Energy(physics.double(), regularizer + ridge), train)


def kernel_of(energy: lr.Energy) -> Tensor:
    """The kernel at the present parameters, (5, 5)."""
    physics = energy.physics
    k = physics.tensors()["filter"] if isinstance(physics, LearnedPhysics) else physics.filter
    k = k.detach().double()
    margin = (5 - k.shape[-1]) // 2
    return torch.nn.functional.pad(k, [margin] * 4)[0, 0]


def judged(energy: lr.Energy, train: Pairs, test: Pairs) -> dict[str, float]:
    """The loss to six digits, PSNR on the test crops, and the error of the kernel."""
    fitted = lr.solve(energy, train.y, eps=1e-6).value
    x = lr.solve(energy, test.y, eps=1e-4).value
    psnr = -10 * (x - test.x).square().mean(dim=(1, 2, 3)).log10()
    true = true_kernel()[0, 0]
    return {
        "loss": float(0.5 * (fitted - train.x).square().sum(dim=(1, 2, 3)).mean()),
        "test_psnr": float(psnr.mean()),
        "kernel_error": float((kernel_of(energy) - true).norm() / true.norm()),
    }


def learned(
    arm: Arm, learner: Any, train: Pairs, test: Pairs, steps: int, until: float = 0.0
) -> dict[str, Any]:
    """A row, at the first move whose loss is below ``until``, else at the last one."""
    problem, applications = pose(arm, train), list[int]()
    with counted() as count:
        run = lr.learn(
            problem,
            learner,
            budget=lr.Budget(steps=steps),
            seed=0,
            progress=lambda row: applications.append(count[0]),
        )
    at = next((i for i, row in enumerate(run.record.rows) if row["loss"] <= until), -1)
    row, n = run.record.rows[at], len(train)
    return {
        "arm": arm.name,
        "learner": type(learner).__name__,
        "parameters": problem.theta.numel(),
        **judged(problem.energy.with_theta(run.thetas[at].double()), train, test),
        "moves": row["step"],
        "applications": applications[at],
        "hessian_products": row["hessian_products"] / n,
        "gradients": row["gradients"] / n,
    }


def in_turn(arm: Arm, train: Pairs, test: Pairs, rounds: int, moves: int) -> dict[str, Any]:
    """The baseline: a few moves of the regularizer alone, then as many of the kernel alone."""
    problem = pose(arm, train)
    energy, n = problem.energy, len(train)
    spent = dict.fromkeys(("moves", "hessian_products", "gradients"), 0.0)
    first, rest = energy.regularizer.terms[0], energy.physics.parametrizations
    with counted() as count:
        for number in range(2 * rounds):
            first.requires_grad_(number % 2 == 0)
            rest.requires_grad_(number % 2 == 1)
            box = BOX if number % 2 == 0 else None
            learner = lr.LBFGSB(eps=1e-5, delta=1e-5, box=box)
            run = lr.learn(
                lr.BilevelProblem(energy, train), learner, budget=lr.Budget(steps=moves), seed=0
            )
            energy = run.trained
            first, rest = energy.regularizer.terms[0], energy.physics.parametrizations
            row = run.record.rows[-1]
            spent["moves"] += row["step"]
            spent["hessian_products"] += row["hessian_products"] / n
            spent["gradients"] += row["gradients"] / n
    return {
        "arm": arm.name,
        "learner": f"in turn, {rounds} x ({moves} + {moves})",
        "parameters": problem.theta.numel(),
        **judged(energy, train, test),
        **spent,
        "applications": count[0],
    }


def without_truth(train: Pairs, steps: int) -> list[dict[str, Any]]:
    """The analytical deep prior on the first crop: the operator B of the regularized fit is
    learned so that A x(B) fits the measurements; A is known, or B itself takes its place.
    """
    pair = Pairs(x=train.x[:1], y=train.y[:1])
    blur = dinv.physics.Blur(filter=true_kernel(), padding="reflect")
    regularizer = lr.regularizers.TV(math.exp(-5), 0.01) + lr.regularizers.Tikhonov(RIDGE)
    regularizer.requires_grad_(False)

    def fit(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (blur.A(x) - y).square().mean(dim=(1, 2, 3))

    rows = []
    for known in (True, False):
        kernel = Free(start=true_kernel()) if known else GaussianKernel(5, std=0.6)
        base = dinv.physics.Blur(filter=pixel(), padding="reflect")
        physics = LearnedPhysics(base, {"filter": kernel}).double()
        energy = lr.Energy(physics, regularizer)
        if known:
            tied = lr.problems.SobolevDistance(true_kernel(), 1e-4)
            penalty = lr.problems.KernelPenalty(energy, tied)
            problem = lr.BilevelProblem(energy, Pairs(x=pair.y, y=pair.y), fit, penalty)
        else:
            problem = lr.BilevelProblem(energy, pair.y, lr.DataConsistency())
        with counted() as count:
            found = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=steps), seed=0)
        fixed = judged(lr.Energy(blur, regularizer), pair, pair)
        rows.append(
            {
                "arm": f"no truth, A {'known' if known else 'unknown'}",
                "learner": f"MAID (with A {fixed['test_psnr']:.2f} dB)",
                "parameters": problem.theta.numel(),
                **judged(found.energy, pair, pair),
                "moves": found.record.rows[-1]["step"],
                "applications": count[0],
                "hessian_products": found.record.rows[-1]["hessian_products"],
                "gradients": found.record.rows[-1]["gradients"],
            }
        )
    return rows


def run(
    seeds: Sequence[int] = (0,), quick: bool = False, folder: Path | None = None
) -> list[dict[str, Any]]:
    """All rows; seed 0 is that of the table, others draw other noise."""
    rows = []
    for seed in seeds:
        train, test, source = data(folder, 24 if quick else SIDE, seed)
        arms = [a for a in ARMS if a.name in ("true", "gaussian")] if quick else ARMS
        moves = 3 if quick else 40
        made = [
            learned(arm, lr.LBFGSB(eps=1e-5, delta=1e-5, box=BOX), train, test, moves)
            for arm in arms
        ]
        gaussian, goal = ARMS[-1], 1.01 * made[-1]["loss"]
        made.append(learned(gaussian, lr.MAID(), train, test, moves, until=goal))
        made.append(in_turn(gaussian, train, test, 1 if quick else 4, 2 if quick else 5))
        made += without_truth(train, 2 if quick else 12)
        rows += [{"seed": seed, "data": source, **row} for row in made]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="24 grey photographs of 256^2 pixels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(args.seeds, args.quick, args.folder)
    for row in rows:
        expected = EXPECTED.get(row["arm"]) if args.folder and not args.quick else None
        print(
            f"{row['seed']} {row['arm']:20} {row['learner']:22} d={row['parameters']:<3}"
            f" loss {row['loss']:.4f} psnr {row['test_psnr']:.2f} kernel {row['kernel_error']:.2f}"
            f" moves {row['moves']:.0f} A {row['applications']}"
            f" hvp {row['hessian_products']:.0f} grad {row['gradients']:.0f}"
            + (f"   expected {expected[0]:.3f} {expected[1]:.2f}" if expected else "")
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
