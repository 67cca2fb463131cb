"""A regularizer of one's own: the squared size of second differences, with all it takes for
certified hypergradients.

python examples/own_regularizer.py
"""

import math

import deepinv as dinv
import torch

import learnreg as lr
from learnreg.core.batch import dot, norm
from learnreg.regularizers import LinearizedHessian, Regularizer


class Bending(Regularizer):
    """R(x) = w / 2 ||B x||^2, w = e^theta, B the periodic Laplacian: 0 <= B^T B <= 64."""

    def __init__(self, weight=0.1):
        super().__init__()
        self.log_weight = torch.nn.Parameter(torch.tensor(math.log(weight)))

    def bend(self, x):
        return sum(x.roll(s, d) for s in (1, -1) for d in (-1, -2)) - 4 * x

    def value(self, x):
        return 0.5 * self.log_weight.exp().detach() * dot(self.bend(x), self.bend(x))

    def grad(self, x):
        return self.linearize(x)(x)

    def linearize(self, x):
        weight = self.log_weight.exp().detach()
        return LinearizedHessian(lambda v: weight * self.bend(self.bend(v)))

    def directional(self, x, v):  # differentiable in theta
        return self.log_weight.exp() * dot(self.bend(x), self.bend(v))

    def bounds(self):
        L = 64 * math.exp(self.log_weight.item())
        return lr.core.Curvature(lr.Bound.exact(0.0), lr.Bound.proven(L))

    # what follows is optional: without it the errors of hypergradients are estimates
    def hessian_change(self, x, q, radius):
        return torch.zeros_like(radius)

    def mixed_change(self, x, q, radius):  # J(x) = w B^T B x
        return radius * norm(self.grad(q.double()))

    def mixed_norm(self, x, radius):
        return norm(self.grad(x.double())) + self.bounds().L.value * radius


physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
train, test = lr.data.pairs("phantoms", physics, size=32, split=(4, 2), seed=0)
print(*lr.testing.check_regularizer(Bending(), train.x), sep=", ")

problem = lr.BilevelProblem(lr.Energy(physics, Bending()), train)
run = lr.learn(problem, lr.MAID(test="certified"), budget=lr.Budget(steps=10, seconds=10), seed=0)
print(run)
print(f"weight {run.trained.regularizer.log_weight.exp().item():.4f}")
print(run.reconstruct(test.y, eps=1e-2))
