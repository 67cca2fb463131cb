"""Learn which frequencies an MRI scanner should measure: single ones, lines and spokes, then the
binary pattern with the rest learned again, beside a pattern of the same size that nobody learned.

python examples/learned_sampling.py [steps per pattern] [picture.png]
"""

import sys

import matplotlib
import torch

import learnreg as lr

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
PICTURE = sys.argv[2] if len(sys.argv) > 2 else "learned_sampling.png"
SIZE, SHARE = 48, 0.25
PRICES = {"free": 0.002, "lines": 0.004, "radial": 0.008}

physics = lr.physics.MRI(acceleration=1).build((SIZE, SIZE), noise=lr.physics.Gaussian(0.03))
train, test = lr.data.pairs("phantoms", physics, size=SIZE, split=(3, 2), seed=0)
train, test = (side.to(dtype=torch.float64) for side in (train, test))
mean_square = lr.problems.ScaledSquaredError(2.0, mean=True)


def energy_with(term):
    tv = lr.regularizers.TV(weight=0.01, smoothing=0.01)
    tv.log_smoothing.requires_grad_(False)
    ridge = lr.regularizers.Tikhonov(1e-2, learned=False)
    return lr.Energy(physics, (tv + ridge).double(), term)


def learn(energy, penalty=None, steps=STEPS, **options):
    problem = lr.BilevelProblem(energy, train, loss=mean_square, penalty=penalty)
    learner = lr.MAID(gradient_tolerance=1e-7, **options)
    return lr.learn(problem, learner, budget=lr.Budget(steps=steps, seconds=60), solver="newton")


def quality(energy):
    x = lr.solve(energy, test.y, eps=1e-2, solver="newton").value
    return x[0, 0], float(lr.metrics.psnr(x, test.x).mean())


def fixed(weights):
    """The weight of the regularizer learned for a pattern that stays, and what it comes to."""
    weights = weights.double()
    weights.requires_grad_(False)
    return quality(learn(energy_with(lr.SampledL2(weights)), steps=min(STEPS, 15)).energy)


def spread(mask):
    """The point spread function: what the measurements make of one bright pixel."""
    point = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.float64)
    point[..., SIZE // 2, SIZE // 2] = 1
    return physics.A_adjoint(mask * physics.A(point.to(physics.mask)))[0, 0].abs()


rows = {}
for kind, price in PRICES.items():
    energy = energy_with(lr.SampledL2(lr.SamplingWeights((SIZE, SIZE), kind).double()))
    path = []
    # small weights are cheap and nearly as good as large ones: the second part of the penalty,
    # which makes them as dear, comes after the first one has said which are wanted
    for beta1 in (0.0, price, 10 * price):
        penalty = lr.SparsityPenalty.of(energy, price, beta1)
        run = learn(energy, penalty, box={"omega": [0, 1]})
        energy = run.energy
        for theta, row in zip(run.thetas, run.record.rows, strict=True):
            omega = energy.with_theta(theta).fidelity.weights
            path.append((omega().mean().item(), row["loss"] - penalty(theta).item()))
    learned = energy.fidelity.weights
    binary = learned.binary(fraction=SHARE)
    (_, weighted), (x, final) = quality(energy), fixed(binary)
    print(
        f"{kind:7s} weights > 0 on {learned.sampled():6.1%}: PSNR {weighted:.2f} dB; "
        f"binary {binary.sampled():6.1%}: {final:.2f} dB"
    )
    rows[f"{kind}, learned"] = learned().detach(), binary.mask(), x, final, path

drawn = lr.physics.MRI(acceleration=4).build((SIZE, SIZE)).mask[0, 0]
x, final = fixed(lr.SamplingWeights((SIZE, SIZE), start=drawn))
rows["lines, drawn"] = drawn, drawn, x, final, []
print(f"drawn   binary {float(drawn.mean()):6.1%}: {final:.2f} dB")

figure, axes = plt.subplots(len(rows), 5, figsize=(12, 2.5 * len(rows)), layout="constrained")
heads = ("weights", "binary pattern", "point spread, log", "reconstruction", "its error")
for line, (name, (omega, mask, x, final, _)) in zip(axes, rows.items(), strict=True):
    error = (x - test.x[0, 0]).abs()
    point = (spread(mask) / spread(mask).max()).clamp_min(1e-3).log10()
    ranges = ((0, 1), (0, 1), (-3, 0), (0, 1), (0, 0.15))
    for place, picture, (low, high) in zip(
        line, (omega, mask, point, x, error), ranges, strict=True
    ):
        place.imshow(picture, cmap="gray", vmin=low, vmax=high)
        place.set(xticks=[], yticks=[])
    line[0].set_ylabel(f"{name}\n{float(mask.mean()):.1%}, {final:.2f} dB")
for place, head in zip(axes[0], heads, strict=True):
    place.set_title(head)
figure.savefig(PICTURE, dpi=110)

figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
for name, (*_, path) in rows.items():
    if path:
        axes.semilogy(*zip(*path, strict=True), marker=".", label=name)
axes.set(xlabel="mean weight of the frequencies", ylabel="mean squared error")
axes.legend()
figure.savefig(PICTURE.replace(".png", "_path.png"), dpi=110)
print(f"Pictures: {PICTURE}")
