"""Primal-dual against subgradient and accelerated gradient methods for reconstructions with
input-convex networks.

    python experiments/icnn_solvers.py --json result.json
    python experiments/icnn_solvers.py --checkpoint ICNN.pt --tasks denoising inpainting --seeds 0

Claim (Ehrhardt, Mukherjee and Wong, arXiv 2410.12441): the primal-dual method on the lifted network
is faster and more stable than the subgradient method, and also beats the accelerated method (nmAPG)
where the network is smoothed.

The network is random (8 filters 5x5 of mean zero, means over 8x8, 8 units, slope 0.2, small random
offsets), and its weight is that with the best PSNR for denoising the first photograph. All methods
minimize the same energy, evaluated by the network itself, from the same start. The least energy is
the smallest value seen in any run, and bounded from below by the duality gap of a long one. Free
step sizes are tuned on the first seed, for every task, in runs of a quarter of the length, by the
iterations to the last target that is reached; the other seeds take what was found. An iteration is
the network forward and back once for primal-dual and subgradient methods; nmAPG adds values.
Seconds are processor time without the evaluation of the energies.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import deepinv
import torch
from torch import Tensor

import learnreg as lr
from learnreg.core.bounds import Bound, Curvature
from learnreg.problems.fidelity import L1
from learnreg.problems.saddle import SaddleEnergy
from learnreg.regularizers.icnn import ICNN
from learnreg.solvers import NmAPG
from learnreg.solvers.pdhg import PDHG, Steps

TARGETS = (1e-3, 1e-5)
CONSTANT = (0.03, 0.1, 0.3, 1.0, 1.5)
"""Constant steps, and the first of the diminishing ones, in units of the task."""
DIMINISHING = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FIRST = (0.01, 0.1, 1.0, 10.0, 100.0)
SECOND = (0.01, 0.1, 1.0, 10.0)
"""c1 and c2 of the published block steps."""
BALANCES = (0.1, 1.0, 10.0)


# --- the problems ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A data term tied to data; ``unit`` is the step that suits its gradient, ``ca`` a grid for its
    dual block.
    """

    name: str
    energy: SaddleEnergy
    y: Tensor
    truth: Tensor
    start: Tensor
    unit: float
    ca: tuple[float, ...] = (1.0,)

    @torch.no_grad()
    def value(self, u: Tensor) -> Tensor:
        e = self.energy
        if isinstance(e.fidelity, L1):
            data = e.fidelity.weight * (u - self.y).abs().flatten(1).sum(dim=1)
        else:
            data = e.fidelity.value(e.operator, u, self.y)
        return data + 0.5 * e.tikhonov * u.square().flatten(1).sum(dim=1) + e.regularizer.value(u)

    @torch.no_grad()
    def grad(self, u: Tensor) -> Tensor:
        e = self.energy
        data = (
            e.fidelity.weight * (u - self.y).sign()
            if isinstance(e.fidelity, L1)
            else e.fidelity.grad(e.operator, u, self.y)
        )
        return data + e.tikhonov * u + e.regularizer.grad(u)

    # what a smooth method asks for
    def bounds(self) -> Curvature:
        return Curvature(Bound.exact(0.0), Bound(math.inf, Bound.unknown().kind))

    def select(self, index: Tensor) -> Task:
        return self


def make(name: str, network: ICNN, truth: Tensor, seed: int) -> Task:
    """One problem with one photograph (1, 1, n, n)."""
    g = torch.Generator().manual_seed(100 + seed)
    noise = torch.randn(truth.shape, generator=g)
    if name == "denoising":
        y = truth + 0.1 * noise
        return Task(name, SaddleEnergy(_denoising(), network), y, truth, y, 1.0)
    if name == "inpainting":
        mask = (torch.rand(truth.shape, generator=g) > 0.5).float()
        physics = deepinv.physics.Inpainting(img_size=truth.shape[1:], mask=mask[0])
        y = mask * (truth + 0.03 * noise)
        return Task(name, SaddleEnergy(physics, network, tikhonov=1e-3), y, truth, y, 1.0)
    if name == "salt and pepper":
        kind = torch.rand(truth.shape, generator=g)
        y = torch.where(kind < 0.125, 0.0, torch.where(kind > 0.875, 1.0, truth))
        return Task(name, SaddleEnergy(_denoising(), network, L1(0.5)), y, truth, y, 0.1)
    angles = 30
    physics = deepinv.physics.Tomography(angles=angles, img_width=truth.shape[-1], normalize=True)
    y = physics.A(truth)
    y = y + 0.01 * torch.randn(y.shape, generator=g)
    e = SaddleEnergy(physics, network, tikhonov=1e-3)
    return Task(name, e, y, truth, physics.A_adjoint(y), 1.0, (10.0,))


def _denoising() -> Any:
    return deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))


def random_network(weight: float, rounding: float) -> ICNN:
    r = ICNN(8, 5, pooling=8, units=8, rounding=rounding, weight=weight)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        r.biases[0].copy_(0.03 * torch.randn(8, generator=g))
        r.biases[1].copy_(-0.02 * torch.rand(8, generator=g))
    return r


def published_network(path: Path, rounding: float) -> ICNN:
    """The denoising network of a checkpoint of the LearnedRegularizers benchmark (32 filters 5x5,
    32 -> 32).

    There R(u) = e^(alpha - 2 scale) N(e^scale u) with one hidden layer, no pooling, slope 0.
    """
    w = torch.load(path, map_location="cpu", weights_only=True)
    net = {k.removeprefix("regularizer.icnn."): v for k, v in w.items()}
    zoom = w["scale"].exp()
    last = (net["scaling"].flatten() + w["alpha"] - 2 * w["scale"]).exp()
    return ICNN.from_weights(
        [zoom * net["wx.parametrizations.weight.original"], net["wz.weight"].clamp_min(0)],
        [net["wx.bias"], net["wz.bias"]],
        last,
        pooling=1,
        slope=0.0,
        rounding=rounding,
        padding="zero",
    )


# --- the methods ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blocks(PDHG):
    """The published steps: sigma = c_k / ||W||^2 for every map W, and tau that saturate the
    condition.

    The two halves of an epigraph block do not mix, so tau = 1 / (ca + c1) for the image and 1 /
    (sigma_1 + c2) for z.
    """

    c1: float = 1.0
    c2: float = 1.0
    ca: float = 1.0
    rule: Any = "basic"

    def steps(self, f: Any) -> Steps:
        first, last = f.norms[-2][0], f.norms[-1][1]
        sigma = [self.c1 / first**2, self.c2 / last**2]
        image = self.c1
        if f.data:
            sigma.insert(0, self.ca / f.norms[0][0] ** 2)
            image += self.ca
        return Steps((1 / image, 1 / (self.c1 / first**2 + self.c2)), tuple(sigma))


Iterates = Iterator[tuple[Tensor, int, float]]
"""The image, and the iterations and operator evaluations since the last one."""

INTERVAL = 5
"""Iterations after which a primal-dual method computes its gap: two more operator evaluations."""


def primal_dual(method: PDHG, task: Task) -> Iterates:
    f = task.energy.at(task.y, task.start)
    state = method.init(f, f.pack(*f.start(task.start)))
    while True:
        state = method.step(f, state)
        yield state.x[0], method.interval, 2.0 * (method.interval + 1)


def descent(step: Callable[[int], float], task: Task) -> Iterates:
    u, k = task.start, 0
    while True:
        u = u - step(k) * task.unit * task.grad(u)
        k += 1
        yield u, 1, 2.0


def accelerated(method: NmAPG, task: Task) -> Iterates:
    state = method.init(task, task.start)
    while True:
        state = method.step(task, state)
        yield state.x, 1, 2.0 * state.cost.gradients + state.cost.values


Candidate = tuple[str, Callable[[Task], Iterates]]


def families(task: Task, smooth: bool) -> dict[str, list[Candidate]]:
    """Name of a method -> its grid."""
    found: dict[str, list[Candidate]] = {
        "PDHG, balanced": [("", lambda t: primal_dual(PDHG(interval=INTERVAL), t))],
        "PDHG, basic": [
            (
                f"balance {b:g}",
                lambda t, b=b: primal_dual(PDHG(rule="basic", balance=b, interval=INTERVAL), t),
            )
            for b in BALANCES
        ],
        "PDHG, blocks (c1, c2)": [
            (
                f"c1 {c1:g}, c2 {c2:g}" + (f", ca {ca:g}" if len(task.ca) > 1 else ""),
                lambda t, c1=c1, c2=c2, ca=ca: primal_dual(
                    Blocks(c1=c1, c2=c2, ca=ca, interval=INTERVAL), t
                ),
            )
            for c1, c2, ca in product(FIRST, SECOND, task.ca)
        ],
        "subgradient, constant": [
            (f"{c:g}", lambda t, c=c: descent(lambda k: c, t)) for c in CONSTANT
        ],
        "subgradient, c/(1+k)": [
            (f"{c:g}", lambda t, c=c: descent(lambda k: c / (1 + k), t)) for c in DIMINISHING
        ],
    }
    if smooth:
        found["nmAPG"] = [("", lambda t: accelerated(NmAPG(), t))]
        found["nmAPG, restarted"] = [("", lambda t: accelerated(NmAPG(restart=True), t))]
    return found


# --- measurements ---------------------------------------------------------------------------------


@dataclass
class Curve:
    """Energies of a run, with operator evaluations and processor seconds so far; only where the
    energy fell.
    """

    rows: list[tuple[int, float, float, float]]

    @property
    def least(self) -> float:
        return self.rows[-1][1]

    def reach(self, target: float) -> tuple[int, float, float] | None:
        """(iterations, operator evaluations, seconds) until the energy is at most ``target``."""
        return next(
            ((k, work, seconds) for k, value, work, seconds in self.rows if value <= target), None
        )


def run(
    method: Callable[[Task], Iterates], task: Task, limit: int, stop: float = -math.inf
) -> Curve:
    """At most ``limit`` iterations, or until the energy is below ``stop``; the energy is looked at
    in float64.
    """
    exact = Task(
        task.name, task.energy.widened(), task.y.double(), task.truth, task.start, task.unit
    )
    rows, best, k, work, seconds, before = [], math.inf, 0, 0.0, 0.0, time.process_time()
    for u, iterations, operators in method(task):
        seconds += time.process_time() - before
        k += iterations
        work += operators
        if k <= 50 or k % INTERVAL == 0:
            value = float(exact.value(u.double()))
            if value < best:
                best = value
                rows.append((k, value, work, seconds))
            if value <= stop or not value < 1e12 or k >= limit:
                return Curve(rows or [(k, math.inf, work, seconds)])
        before = time.process_time()
    raise AssertionError


@torch.no_grad()
def reference(task: Task, method: PDHG, limit: int) -> tuple[float, float]:
    """(energy, gap) of a long primal-dual run in float64; the gap is inf where no dual point was
    feasible.
    """
    double = Task(
        task.name,
        task.energy.widened(),
        task.y.double(),
        task.truth,
        task.start.double(),
        task.unit,
        task.ca,
    )
    f = double.energy.at(double.y, double.start)
    state, best, gap = method.init(f, f.pack(*f.start(double.start))), math.inf, math.inf
    for _ in range(limit // method.interval):
        state = method.step(f, state)
        value = float(double.value(state.x[0]))
        found = float(f.gap(state.x, state.p, state.kx, state.ktp))
        if value < best:
            best = value
        gap = min(gap, found + best - value)  # value - found is a lower bound of the least energy
        if gap <= 0.1 * TARGETS[-1] * best:
            break
    return best, gap


@torch.no_grad()
def compare(
    name: str, network: ICNN, truths: Tensor, seeds: list[int], limit: int, smooth: bool
) -> list[dict[str, Any]]:
    """One row per seed and method."""
    rows, chosen = [], {}
    for position, seed in enumerate(seeds):
        task = make(name, network, truths[seed : seed + 1], seed)
        best, gap = reference(task, PDHG(rule="basic", interval=100), 2 * limit)
        stop = best * (1 + 0.5 * TARGETS[-1])
        if not position:
            chosen = {
                family: tuned(grid, task, limit // 4, best)
                for family, grid in families(task, smooth).items()
            }
        curves = {
            family: run(method, task, limit, stop) for family, (_, method, _) in chosen.items()
        }
        best = min(best, *(curve.least for curve in curves.values()))
        for family, curve in curves.items():
            label, _, size = chosen[family]
            reached = {f"{t:g}": curve.reach(best * (1 + t)) for t in TARGETS}
            rows.append(
                {
                    "task": name,
                    "smoothed": smooth,
                    "seed": seed,
                    "method": family,
                    "setting": label,
                    "grid": size,
                    "energy": best,
                    "gap": gap / best,
                    "end": curve.least / best - 1,
                    "reached": reached,
                }
            )
    return rows


def tuned(grid: list[Candidate], task: Task, limit: int, best: float) -> tuple[str, Any, int]:
    """The setting with the fewest iterations to the last target that one reaches, or else with the
    least energy.
    """
    if len(grid) == 1:
        return (*grid[0], 1)
    targets = [best * (1 + t) for t in reversed(TARGETS)]

    def score(candidate: Candidate) -> tuple[float, ...]:
        curve = run(candidate[1], task, limit, targets[0])
        reached = [curve.reach(t) for t in targets]
        return (*(r[0] if r else math.inf for r in reached), curve.least)

    return (*min(grid, key=score), len(grid))


@torch.no_grad()
def tuned_weight(truth: Tensor) -> float:
    """The weight of the random network with the best PSNR for denoising."""

    def quality(weight: float) -> float:
        task = make("denoising", random_network(weight, 0.0), truth, 0)
        u = next(islice(primal_dual(PDHG(rule="basic"), task), 20, None))[0]
        return -10 * math.log10(float((u - truth).square().mean()))

    return max((2.0**k for k in range(-3, 5)), key=quality)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: per method the median over seeds of iterations, operator evaluations and seconds to
    every target.
    """
    lines = [
        "| method | setting (grid) | "
        + " | ".join(f"to {t:g}: iterations / operators / s" for t in TARGETS)
        + " | end |",
        "|---|---|" + "---|" * (len(TARGETS) + 1),
    ]
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        cells = []
        for t in TARGETS:
            hits = [r["reached"][f"{t:g}"] for r in own if r["reached"][f"{t:g}"]]
            shares = f" ({len(hits)} of {len(own)})" if len(hits) < len(own) else ""
            cells.append(
                f"{median([h[0] for h in hits])} / {median([h[1] for h in hits]):.0f} / "
                f"{median([h[2] for h in hits]):.2f}{shares}"
                if hits
                else "not reached"
            )
        end = max(r["end"] for r in own)
        lines.append(
            f"| {method} | {own[0]['setting'] or 'none'} ({own[0]['grid']}) | "
            + " | ".join(cells)
            + f" | {end:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="photographs, and their noise"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=["denoising", "inpainting", "salt and pepper", "tomography"]
    )
    parser.add_argument(
        "--networks", nargs="+", choices=["plain", "smoothed"], default=["plain", "smoothed"]
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--limit", type=int, default=1500, help="iterations of a run")
    parser.add_argument("--rounding", type=float, default=0.01, help="of the smoothed network")
    parser.add_argument(
        "--checkpoint", type=Path, help="published weights in the place of the random network"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, _ = lr.data.pairs(
        "natural", _denoising(), size=args.size, split=(max(args.seeds) + 1, 1), seed=0
    )
    weight = tuned_weight(train.x[:1])
    print(f"weight of the random network: {weight:g}")
    found = []
    for smooth in (kind == "smoothed" for kind in args.networks):
        rounding = args.rounding if smooth else 0.0
        network = (
            published_network(args.checkpoint, rounding)
            if args.checkpoint
            else random_network(weight, rounding)
        )
        for name in args.tasks:
            if smooth and name == "salt and pepper":
                continue  # nmAPG needs a differentiable data term
            rows = compare(name, network, train.x, args.seeds, args.limit, smooth)
            found += rows
            print(
                f"\n**{name}{', smoothed network' if smooth else ''}** (least energy known to "
                f"{max(r['gap'] for r in rows):.0e})\n\n{table(rows)}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
