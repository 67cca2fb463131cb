"""Where the linear system cannot be solved more accurately, a run ends or goes on in float64; it
never spins.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.learners.cases import pictures

from learnreg.core.results import StopReason
from learnreg.core.status import Status
from learnreg.hypergradients import Implicit
from learnreg.learners import MAID
from learnreg.runs import Budget, learn


class AtTheFloor(Implicit):
    """A linear solver that has reached its floor far above what is asked for."""

    def pull(self, *arguments, **keywords):
        found = super().pull(*arguments, **keywords)
        n = len(found.status)
        return replace(
            found,
            residual=torch.full((n,), 1e3, dtype=torch.float64),
            correction=10 * found.theta,  # ten times the norm of z is how far z may be off
            status=(Status.ROUNDING_FLOOR,) * n,
        )


@pytest.mark.parametrize("promote", [True, False])
def test_a_linear_system_at_its_floor_ends_the_run_with_a_sentence(promote):
    outcome = learn(
        pictures(), MAID(), hypergradient=AtTheFloor(), budget=Budget(steps=3), promote=promote
    )
    assert isinstance(outcome.stop, StopReason) and outcome.stop.code == "rounding_floor"
    assert "linear system" in outcome.stop.sentence
