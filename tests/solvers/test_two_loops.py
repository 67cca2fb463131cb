"""The directions of L-BFGS are those of the BFGS matrix, built densely from the same pairs."""

from __future__ import annotations

import pytest
import torch
from tests.regularizers.cases import ENERGIES, pairs
from torch import Tensor

from learnreg.core.batch import dot
from learnreg.solvers import LBFGS
from learnreg.solvers.lbfgs import LBFGSState


class WithoutAverages:
    """A potential that offers no averages of its curvature."""

    def __init__(self, inner) -> None:
        self.grad, self.bounds, self.constants = inner.grad, inner.bounds, inner.constants


def dense_direction(state: LBFGSState, i: int) -> Tensor:
    """-H g of image i with H_0 = gamma P, H <- V^T H V + rho s s^T, V = I - rho y s^T."""
    g, n = state.g[i].flatten(), state.g[i].numel()
    eye = torch.eye(n, dtype=g.dtype)
    if state.P is None:
        start = eye
    else:
        P = state.P.select(torch.full((n,), i))
        start = P(eye.view(n, *state.g.shape[1:])).flatten(1)
    s, y, rho = ([pair[k][i].flatten() for pair in state.pairs] for k in range(3))
    assert all(r > 0 for r in rho)
    H = start / (rho[-1] * (y[-1] @ start @ y[-1]))
    for s_k, y_k, rho_k in zip(s, y, rho, strict=True):
        V = eye - rho_k * torch.outer(y_k, s_k)
        H = V.T @ H @ V + rho_k * torch.outer(s_k, s_k)
    return -H @ g


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("name", ["tv", "foe"])
def test_directions_are_those_of_the_dense_matrix(name, averages):
    energy, y = ENERGIES[name](), pairs(3).y
    f = energy.at(y)
    solver = LBFGS(memory=3)
    f = f if averages else WithoutAverages(f)
    state = solver.init(f, y)
    assert (state.P is not None) == averages
    compared = 0
    for _ in range(12):
        before, state = state, solver.step(f, state)
        assert len(state.pairs) == min(state.count, 3)
        newest = state.pairs[-1]
        torch.testing.assert_close(newest[0], before.alpha[:, None, None, None] * before.d)
        for i in torch.nonzero(state.alpha == 1).flatten().tolist():
            if not all(pair[2][i] > 0 for pair in state.pairs):
                continue
            expected = dense_direction(state, i)
            torch.testing.assert_close(state.d[i].flatten(), expected, rtol=1e-7, atol=1e-10)
            compared += 1
        torch.testing.assert_close(state.slope, dot(state.g, state.d))
    assert compared > 15
