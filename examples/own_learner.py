"""A learner of one's own, a coordinate search, compared with MAID and Adam.

python examples/own_learner.py
"""

from dataclasses import dataclass

import deepinv as dinv
import torch

import learnreg as lr
from learnreg.core import Objective, Value


@dataclass(frozen=True)
class Along:
    """What the search knows between two steps: resuming needs nothing else."""

    point: Value
    length: float
    axis: int

    @property
    def theta(self) -> torch.Tensor:
        return self.point.theta

    def row(self) -> dict:
        return self.point.row() | {"step_size": self.length}


@dataclass(frozen=True)
class CoordinateSearch:
    """One parameter after the other, a step up and a step down; shorter where neither is better."""

    length: float = 0.5
    eps: float = 1e-2
    needs = lr.Grants.LOSS | lr.Grants.ADAPTIVE

    def init(self, objective: Objective, theta: torch.Tensor, seed: int = 0) -> Along:
        return Along(objective.evaluate(theta, self.eps), self.length, 0)

    def step(self, objective: Objective, state: Along) -> Along:
        unit = torch.zeros_like(state.theta)
        unit[state.axis] = state.length * objective.units[state.axis]
        trials = [objective.trial(state.theta + u, self.eps, state.point) for u in (unit, -unit)]
        solved = [state.point, *(value for value in trials if value is not None)]
        best = min(solved, key=lambda value: value.loss)
        length = state.length if best is not state.point else 0.7 * state.length
        return Along(best, length, (state.axis + 1) % len(state.theta))


physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
train, test = lr.data.pairs("phantoms", physics, size=24, split=(3, 2), seed=0)
problem = lr.BilevelProblem(lr.Energy(physics, lr.regularizers.TV()), train)
adam = lr.Stochastic(optimizer="adam", batch=1)
learners = {"MAID": lr.MAID(), "Adam": adam, "coordinates": CoordinateSearch()}
outcome = lr.compare(problem, learners, budget=lr.Budget(work=150), test=test, seeds=(0, 1))
comparison = lr.Comparison.of(*outcome)
print(comparison)
