"""The weight of exact total variation, with no smoothing at all, learned as a saddle point.

python examples/exact_tv.py [seconds]
"""

import sys

import deepinv as dinv

import learnreg as lr

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0

physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
train, test = lr.data.pairs("phantoms", physics, size=32, split=(4, 2), seed=0)
energy = lr.SaddleEnergy(physics, lr.regularizers.ExactTV(weight=0.02))
problem = lr.BilevelProblem(energy, train)
run = lr.learn(
    problem, lr.MAID(), budget=lr.Budget(seconds=seconds), seed=0
)  # differentiated by lr.Piggyback()
print(run)
print(f"weight {run.trained.regularizer.log_weight.exp().item():.4f}")

solution = run.reconstruct(test.y, eps=0.05)
for error, theorem, psnr in zip(
    solution.error, solution.theorem, lr.metrics.psnr(solution.value, test.x), strict=True
):
    print(
        f"PSNR {psnr:.2f} dB, within {error:.1e} of the exact minimizer (certified by the "
        f"{theorem})"
    )
