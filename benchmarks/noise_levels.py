"""What a model learned at one noise level does at others: the tables of docs/noise_levels.md.

python benchmarks/noise_levels.py [--folder PHOTOGRAPHS] [--seeds 2] [--exponents]

Learns TV, ExactTV and FoE at 0.1 and prints the PSNR of held-out photographs at 0.05, 0.1 and 0.2:
as learned, by the rule, by the rule with estimated levels, and with the best factor on R, which is
found with the true images. Then the estimate over sigma. With ``--exponents`` instead: the best
weight of TV between 0.01 and 0.16 for several physics, as exponents of sigma.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import deepinv as dinv
import torch
from torch import Tensor

import learnreg as lr
from learnreg.data.images import load_image, natural_photographs
from learnreg.metrics import estimate_sigma, psnr
from learnreg.problems import at_noise_level
from learnreg.problems.noise_level import data_term_at

LEARNED, SIGMAS = 0.1, (0.05, 0.1, 0.2)
MODELS = {
    "TV": (lambda: lr.regularizers.TV(), 500),
    "ExactTV": (lambda: lr.regularizers.ExactTV(), 1500),
    "FoE, 8 filters 3x3": (lambda: lr.regularizers.FoE(filters=8, size=3), 1500),
}


def largest(
    f: Callable[[float], float], low: float, high: float, steps: int = 7
) -> tuple[float, float]:
    """The largest of so many values of f in golden sections of an interval, and where."""
    ratio = (5**0.5 - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(steps - 2):
        if at_left > at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = f(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = f(right)
    return max((at_left, left), (at_right, right))


def times(energy: lr.Energy, k: float) -> lr.Energy:
    """D + k R."""
    factor = torch.tensor([k], dtype=torch.float64)
    term = data_term_at(energy.fidelity, factor, factor)
    return lr.problems.energy_for(energy.physics, energy.regularizer, term)


def row(energy: lr.Energy, x: Tensor, sigma: float, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed + 100)
    y = x + sigma * torch.randn(x.shape, generator=generator)

    def score(e: lr.Energy) -> float:
        return float(psnr(lr.solve(e, y, 0.1, throw=False).value, x).mean())

    middle = 1.2 * math.log(sigma / LEARNED)
    best, _ = largest(lambda t: score(times(energy, math.exp(t))), middle - 0.9, middle + 0.9)
    estimated = at_noise_level(energy, estimate_sigma(y))
    return [score(energy), score(at_noise_level(energy, sigma)), score(estimated), best]


def physics_of(sigma: float) -> dict[str, dinv.physics.LinearPhysics]:
    noise = dinv.physics.GaussianNoise(sigma)
    taps = dinv.physics.functional.blur.gaussian_blur(sigma=(1.2, 1.2))
    half = (torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    return {
        "denoising": dinv.physics.Denoising(noise),
        "half of the pixels": dinv.physics.Inpainting((1, 64, 64), mask=half, noise_model=noise),
        "blur": dinv.physics.Blur(filter=taps, padding="circular", noise_model=noise),
        "40 angles": dinv.physics.Tomography(
            angles=40, img_width=64, circle=False, normalize=True, noise_model=noise
        ),
    }


def exponents() -> None:
    """d log k / d log sigma of the best weight of TV, from 0.01 to 0.04, and from there to 0.16."""
    levels = (0.01, 0.04, 0.16)
    for data in ("natural", "phantoms"):
        x = lr.data.pairs(data, physics_of(0.1)["denoising"], size=64, split=(5, 2), seed=11)[0].x
        for name in physics_of(0.1):
            found = []
            for sigma in levels:
                physics = physics_of(sigma)[name]
                torch.manual_seed(1)
                y, middle = physics(x), 1.2 * math.log(sigma / LEARNED) + math.log(0.08)

                def score(
                    t: float, physics: torch.nn.Module = physics, y: Tensor = y, x: Tensor = x
                ) -> float:
                    r = lr.regularizers.TV(math.exp(t), 0.02) + lr.regularizers.Tikhonov(1e-4)
                    solution = lr.solve(lr.Energy(physics, r), y, 0.3, throw=False)
                    return float(psnr(solution.value, x).mean())

                found.append(largest(score, middle - 3, middle + 2, 9)[1])
            slopes = [(b - a) / math.log(4) for a, b in pairwise(found)]
            print(f"| {data} | {name} | " + " | ".join(f"{p:.2f}" for p in slopes) + " |")


def estimates(photographs: list[Tensor]) -> None:
    for clip in (False, True):
        for sigma in (0.02, 0.05, 0.1, 0.2, 0.3):
            generator, found = torch.Generator().manual_seed(1), []
            for x in photographs:
                y = x + sigma * torch.randn(x.shape, generator=generator)
                found.append(estimate_sigma((y.clamp(0, 1) * 255).round() / 255 if clip else y))
            ratio = torch.cat(found) / sigma
            words = " ".join(f"{float(v):.2f}" for v in (ratio.min(), ratio.median(), ratio.max()))
            print(f"| {sigma:g} | {'8 bits' if clip else 'not clipped'} | {words} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="photographs to estimate the noise of as well")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--exponents", action="store_true", help="only those, of several physics")
    arguments = parser.parse_args()
    if arguments.exponents:
        exponents()
        return
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(LEARNED))
    for name, (make, work) in MODELS.items():
        table: dict[float, list[list[float]]] = {s: [] for s in SIGMAS}
        for seed in range(arguments.seeds):
            train, test = lr.data.pairs("natural", physics, size=96, split=(16, 8), seed=seed)
            problem = lr.BilevelProblem(lr.problems.energy_for(physics, make()), train)
            run = lr.learn(problem, lr.MAID(), budget=lr.Budget(work=work), seed=seed)
            for sigma in SIGMAS:
                table[sigma].append(row(run.energy, test.x, sigma, seed))
        for sigma, rows in table.items():
            means = torch.tensor(rows).mean(dim=0).tolist()
            print(f"| {name} | {sigma:g} | " + " | ".join(f"{m:.2f}" for m in means) + " |")
    estimates([x[None, None, :256, :256] for x in natural_photographs().values()])
    if arguments.folder:
        estimates([load_image(f)[None] for f in sorted(arguments.folder.glob("*.png"))])


if __name__ == "__main__":
    main()
