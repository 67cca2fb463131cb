"""Reconstructions of counts: expectation maximization, BSREM, and learned regularizers.

python benchmarks/operators_counts.py [--seeds 3] [--quick] [--levels 20 200] [--methods MLEM OSEM]

Emission tomography of phantoms with attenuation, resolution and contamination (half of the mean of
the trues), every scan with a background of its own. Where to stop and how much to regularize is
chosen on the training scans. Of every method: PSNR and relative error of held-out images, work on
the training scans (epochs of A and A^T, or evaluations per image), and the certified distance to
the minimizer over the size of the image, where there is one.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import learnreg as lr
from learnreg.regularizers import TV, ExactTV, FoE, Tikhonov
from learnreg.runs.em import bsrem, mlem, osem

LEVELS = (20.0, 200.0)
"""Counts of a ray through a width of ones."""

RIDGE = 1e-3
"""Tikhonov term over counts per ray: relative to the curvature of the data term at 1."""

SADDLE_STEPS = 4
"""Accepted steps for the one number of exact total variation."""

CLOSE = 1e-2
"""Distance of a reconstruction to the minimizer, over the size of the image, in evaluations."""


@functools.cache
def scanner(size: int, views: int) -> lr.physics.EmissionTomography:
    """Rays as a sparse matrix, attenuation by a disc, detectors that blur."""
    built = lr.physics.PET(angles=views, attenuation=1.0, resolution=1.5).build((size, size))
    rays = lr.physics.explicit(built.inner, (1, size, size))
    return lr.physics.EmissionTomography(rays, built.attenuation, built.filter)


def scans(
    physics: lr.physics.EmissionTomography, size: int, count: int, level: float, seed: int
) -> lr.data.Pairs:
    """Phantoms and their counts; half as many counts as trues are contamination."""
    x = lr.data.phantoms(count, size, seed)
    with torch.no_grad():
        trues = level * physics.A(x)
    background = lr.physics.contamination(trues, 0.5)
    y = torch.poisson(trues + background, generator=torch.Generator().manual_seed(1000 + seed))
    names = tuple(f"{seed}-{i}" for i in range(count))
    return lr.data.Pairs(x, y, physics, names, params={"background": background})


def measured(found: Tensor, truth: Tensor) -> dict[str, object]:
    """PSNR and relative error, means over images."""
    error = (found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    psnr = lr.metrics.psnr(found, truth)
    return {"psnr": float(psnr.mean()), "nrmse": float(error.mean())}


def learned(
    energy: lr.Energy | lr.SaddleEnergy, train: lr.data.Pairs, test: lr.data.Pairs, steps: int
) -> dict[str, object]:
    """A regularizer by MAID, and its held-out reconstructions to a certified distance."""
    size = float(train.x.flatten(1).norm(dim=1).mean())
    run = lr.learn(
        lr.BilevelProblem(energy, train),
        lr.MAID(eps0=0.1 * size),
        budget=lr.Budget(steps=steps, work=4000),
    )
    eps = CLOSE * size
    found = lr.solve(run.trained, test.y, eps=eps, params=test.params, throw=False)
    worst = float((found.error / test.x.flatten(1).norm(dim=1)).max())
    return {
        **measured(found.value, test.x),
        "work": float(run.record.rows[-1]["work"]) / len(train.x),
        "solve": found.cost.work / len(test.x),
        "certified": worst,
        "smallest": float(found.value.min()),
    }


def methods(
    level: float, steps: int
) -> dict[str, Callable[[lr.data.Pairs, lr.data.Pairs], dict[str, float]]]:
    """What is compared, by name."""
    gain, kappa, root = 1 / level, RIDGE * level, math.sqrt(level)
    term = lr.KL(gain=gain)

    def baseline(make: Callable[..., lr.runs.baselines.Baseline], **options: object):
        def run(train: lr.data.Pairs, test: lr.data.Pairs) -> dict[str, object]:
            found = make(train, test, term, **options)
            return {**measured(found.images, test.x), "words": found.words}

        return run

    def smooth(regularizer: Callable[[], torch.nn.Module], constraint: object | None = None):
        def run(train: lr.data.Pairs, test: lr.data.Pairs) -> dict[str, object]:
            whole = regularizer() + Tikhonov(kappa, learned=False)
            energy = lr.Energy(train.physics, whole, term, constraint=constraint)
            return learned(energy, train, test, steps)

        return run

    def saddle(train: lr.data.Pairs, test: lr.data.Pairs) -> dict[str, object]:
        energy = lr.SaddleEnergy(train.physics, ExactTV(0.3 * root), term, tikhonov=kappa)
        return learned(energy, train, test, min(steps, SADDLE_STEPS))

    return {
        "MLEM": baseline(mlem, epochs=40),
        "OSEM": baseline(osem, subsets=5, epochs=12),
        "BSREM, RDP": baseline(bsrem, subsets=5, epochs=12),
        "KL + TV": smooth(lambda: TV(0.3 * root, 0.03)),
        "KL + TV, x >= 0": smooth(lambda: TV(0.3 * root, 0.03), lr.NonNegative()),
        "KL + exact TV": saddle,
        "KL + FoE": smooth(lambda: FoE(filters=6, size=3, weight=0.1 * root)),
    }


def run(
    seeds: Sequence[int] = (0, 1, 2),
    quick: bool = False,
    levels: Sequence[float] = LEVELS,
    only: Sequence[str] = (),
) -> list[dict[str, object]]:
    """One row for every seed, level and method.

    Args:
        seeds: of phantoms and counts.
        quick: 32 x 32 pixels, 20 views and 2 + 4 images in the place of 64 x 64, 40 and 4 + 4.
        levels: counts per ray.
        only: names of methods; all when empty.
    """
    size, views, count, steps = (32, 20, 2, 6) if quick else (64, 40, 4, 10)
    physics = scanner(size, views)
    rows: list[dict[str, object]] = []
    for seed in seeds:
        for level in levels:
            train = scans(physics, size, count, level, 2 * seed)
            test = scans(physics, size, 4, level, 2 * seed + 1)
            for name, method in methods(level, steps).items():
                if only and name not in only:
                    continue
                row = {"method": name, "counts": level, "seed": seed, "size": size}
                rows.append(row | method(train, test))
                print(rows[-1], flush=True)
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """Means over seeds as Markdown."""
    lines = ["| method | counts per ray | PSNR | relative error | work | certified |"]
    lines.append("|---|---|---|---|---|---|")
    for level in dict.fromkeys(row["counts"] for row in rows):
        for name in dict.fromkeys(row["method"] for row in rows):
            found = [r for r in rows if (r["method"], r["counts"]) == (name, level)]
            if not found:
                continue

            def mean(key: str, some: list[dict[str, object]] = found) -> str:
                values = [float(str(r[key])) for r in some if key in r]
                return f"{sum(values) / len(values):.4g}" if values else ""

            cells = [mean(key) for key in ("psnr", "nrmse", "work", "certified")]
            lines.append(f"| {name} | {level:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--levels", type=float, nargs="*", default=list(LEVELS))
    parser.add_argument("--methods", nargs="*", default=[])
    given = parser.parse_args()
    chosen = range(given.first, given.first + given.seeds)
    print(table(run(chosen, given.quick, given.levels, given.methods)))
