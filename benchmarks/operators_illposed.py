"""Learning on ill-posed physics: Fields of Experts against tuned total variation after the same
work, and the norm of the operator.

    python benchmarks/operators_illposed.py            # everything, some 40 minutes
    python benchmarks/operators_illposed.py --quick    # smaller images and budgets, phantoms only
    python benchmarks/operators_illposed.py --data FOLDER   # pictures and slices of a folder

Every row is a run: ``psnr`` on held-out images at a certified distance, ``loss`` on the training
images with its bracket, ``work`` in evaluations of the energy per training image (everything
counted), ``to_1_percent`` after how many of them the certified loss was within 1 % of its last.
All methods have the same solver, budget, counter, training images and Tikhonov term. Images are
phantoms, or with ``--data`` those of ``kodak256`` (under a smooth phase for MRI) and ``ct``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import deepinv
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import learnreg as lr
from learnreg.core.measured import real_channels
from learnreg.metrics import data_psnr
from learnreg.physics import CT, MRI, Blur

MU = 1e-3
"""Of the Tikhonov term, relative to the norm of the operator, which is one."""

EPS = 0.1
"""Distance of the held-out reconstructions, a hundredth of their distance to the truth."""

Make = Callable[[int], lr.regularizers.Regularizer]
METHODS: dict[str, tuple[Make, Callable[[], object]]] = {
    "TV, MAID": (lambda c: lr.regularizers.TV(), lr.MAID),
    "TV, Deferred": (lambda c: lr.regularizers.TV(), lr.Deferred),
    "FoE, MAID": (lambda c: lr.regularizers.FoE(8, 5, channels=c), lr.MAID),
    "FoE, batches": (
        lambda c: lr.regularizers.FoE(8, 5, channels=c),
        lambda: lr.Deferred(steps="batches", rescale=False),
    ),
    "FoE, Deferred": (lambda c: lr.regularizers.FoE(8, 5, channels=c), lr.Deferred),
}


@dataclass(frozen=True)
class Case:
    """One problem: its operator, images and budget (evaluations per image)."""

    name: str
    physics: object
    channels: int
    size: int
    train: int
    test: int
    noise: float
    work: float


CASES = (
    Case("MRI 4x, complex", MRI(acceleration=4), 2, 64, 32, 8, 0.05, 2000),
    Case("CT, 60 angles", CT(angles=60), 1, 128, 4, 4, 0.02, 1500),
    Case("CT, 30 angles", CT(angles=30), 1, 64, 8, 8, 0.02, 1000),
    Case("blur 1.2", Blur(width=1.2), 1, 48, 16, 8, 0.02, 1000),
)
SMALL = (
    Case("MRI 4x, complex", MRI(acceleration=4), 2, 32, 4, 4, 0.05, 400),
    Case("CT, 20 angles", CT(angles=20), 1, 32, 4, 4, 0.02, 400),
)


def pictures(case: Case, count: int, seed: int, folder: Path | None) -> Tensor:
    """(count, 1, size, size): phantoms, or parts of the files of a folder."""
    if folder is None:
        plain = deepinv.physics.Denoising()
        return lr.data.pairs("phantoms", plain, size=case.size, split=(count, 0), seed=seed)[0].x
    kind = "ct/train" if case.name.startswith("CT") else "kodak256"
    files = sorted((folder / kind).iterdir())
    generator, found = torch.Generator().manual_seed(seed), []
    for k in range(count):
        whole = lr.data.load_image(str(files[(seed * count + k) % len(files)]))[None]
        scale = min(1.0, 2 * case.size / min(whole.shape[-2:]))
        whole = interpolate(whole, scale_factor=scale, mode="bilinear", antialias=True)
        top, left = (
            int(torch.randint(0, n - case.size + 1, (1,), generator=generator))
            for n in whole.shape[-2:]
        )
        found.append(whole[0, :1, top : top + case.size, left : left + case.size])
    return torch.stack(found)


def with_phase(x: Tensor, seed: int) -> Tensor:
    """Complex slices as two channels: a picture under a smooth phase."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(len(x), 1, 3, 3, generator=generator)
    phase = interpolate(coarse, size=x.shape[-2:], mode="bicubic", align_corners=True)
    return torch.cat([x * phase.cos(), x * phase.sin()], dim=1)


class Times(deepinv.physics.LinearPhysics):
    """c times another physics."""

    def __init__(self, base: deepinv.physics.LinearPhysics, c: float) -> None:
        super().__init__()
        self.base, self.c = base, c

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        return self.c * self.base.A(x)

    def A_adjoint(self, y: Tensor, **kwargs: object) -> Tensor:
        return self.c * self.base.A_adjoint(y)


def pairs_of(
    case: Case, seed: int, folder: Path | None, c: float = 1.0
) -> tuple[lr.data.Pairs, lr.data.Pairs]:
    """Training and held-out pairs, measured by c times the operator with c times the noise."""
    count = case.train + case.test
    x = pictures(case, count, seed, folder)
    if case.channels == 2:
        x = with_phase(x, seed)
    physics = case.physics.build((case.size, case.size), case.channels, seed=seed)
    y = physics.A(x)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 77))
    # what is not measured has no noise
    y = y + case.noise * noise * (y != 0 if case.channels == 2 else 1)
    if c != 1:
        physics, y = Times(physics, c), c * y
    names = tuple(map(str, range(count)))
    sides = slice(case.train), slice(case.train, count)
    train, test = (lr.data.Pairs(x[s], y[s], physics, names[s]) for s in sides)
    return train, test


def learned(
    case: Case,
    method: str,
    seed: int,
    folder: Path | None,
    c: float = 1.0,
) -> dict[str, object]:
    """One run as a row."""
    make, learner = METHODS[method]
    train, test = pairs_of(case, seed, folder, c)
    ridge = lr.regularizers.Tikhonov(MU * c * c, learned=False)
    problem = lr.BilevelProblem(lr.Energy(train.physics, make(case.channels) + ridge), train)
    run = lr.learn(problem, learner(), budget=lr.Budget(work=case.work), seed=seed)
    x = lr.solve(run.energy, test.y, EPS, throw=False).value
    x = real_channels(x) if x.is_complex() else x
    rows, n = run.record.rows, len(train)
    near = [row for row in rows if row["loss"] <= 1.01 * rows[-1]["loss"]]
    return {
        "problem": case.name,
        "method": method,
        "seed": seed,
        "norm": c,
        "psnr": round(float(data_psnr(x, test.x).mean()), 3),
        "loss": round(rows[-1]["loss"], 4),
        "lower": round(rows[-1]["lower"], 4),
        "upper": round(rows[-1]["upper"], 4),
        "work": round(rows[-1]["work"] / n),
        "to_1_percent": round(near[0]["work"] / n),
        "stop": run.stop.code,
    }


def run(
    seeds: Sequence[int] = (0, 1, 2), quick: bool = False, folder: Path | None = None
) -> list[dict[str, object]]:
    """All rows."""
    cases = SMALL if quick else CASES
    found = []
    for seed in seeds:
        for case in cases:
            for method in METHODS:
                found.append(learned(case, method, seed, folder))
                print(found[-1], flush=True)
        tomography = SMALL[1]
        for c in (1.0, 30.0, 1e3):
            for method in ("FoE, MAID", "FoE, Deferred"):
                found.append(learned(tomography, method, seed, folder, c))
                print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", help="problems and methods, by parts of their names")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.only:
        rows = [
            learned(case, method, seed, args.data)
            for seed in args.seeds
            for case in (SMALL if args.quick else CASES)
            for method in METHODS
            if any(part in case.name for part in args.only)
            and any(part in method for part in args.only)
        ]
        print(*rows, sep="\n")
    else:
        rows = run(args.seeds, args.quick, args.data)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
