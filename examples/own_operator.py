"""An operator of one's own with parameters to learn: a blur whose taps are calibrated from pairs.

python examples/own_operator.py
"""

import deepinv as dinv
import torch

import learnreg as lr


class MotionBlur(dinv.physics.LinearPhysics):
    """A x = sum_k taps[k] x(. - k), a periodic shift along each row, k = 0, 1, 2."""

    def __init__(self, taps, **kwargs):
        super().__init__(**kwargs)
        self.taps = torch.nn.Parameter(torch.tensor(taps))

    def A(self, x, **kwargs):
        return sum(t * x.roll(k, -1) for k, t in enumerate(self.taps))

    def A_adjoint(self, y, **kwargs):
        return sum(t * y.roll(-k, -1) for k, t in enumerate(self.taps))


true = MotionBlur([0.5, 0.3, 0.2], noise_model=dinv.physics.GaussianNoise(0.02))
true.requires_grad_(False)
train, test = lr.data.pairs("phantoms", true, size=24, split=(3, 1), seed=0)

guess = MotionBlur([0.34, 0.33, 0.33])
lr.testing.check_operator(guess, train.x)

regularizer = lr.regularizers.TV(weight=0.005) + lr.regularizers.Tikhonov(1e-2, learned=False)
energy = lr.Energy(guess, regularizer)
problem = lr.BilevelProblem(energy, train)
run = lr.learn(problem, lr.MAID(), budget=lr.Budget(steps=8, seconds=10), seed=0)
print(run)
print("taps", [round(t, 3) for t in run.trained.physics.taps.tolist()])
print(run.reconstruct(test.y, eps=1e-2))
