"""Learn a certified denoiser from photographs in ten lines; writes report/index.html.

python examples/denoise.py [seconds] [folder]
"""

import sys

import deepinv as dinv

import learnreg as lr

seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
folder = sys.argv[2] if len(sys.argv) > 2 else "report"

physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
train, test = lr.data.pairs("natural", physics, size=96, split=(24, 8), seed=0)  # or a folder
energy = lr.Energy(physics, lr.regularizers.FoE(filters=24, size=7))
problem = lr.BilevelProblem(energy, train)  # upper loss: 1/2 ||x - x_true||^2, mean over images
run = lr.learn(problem, lr.MAID(), budget=lr.Budget(seconds=seconds), seed=0)
print(run)  # why it stopped, loss and its bracket, cost
evaluation = run.evaluate(test, eps=1e-2)  # certified reconstructions, PSNR, SSIM: one per image
lr.Report(run, evaluation).save(folder)
run.save(folder)  # model.safetensors, to be used again
print(evaluation)
