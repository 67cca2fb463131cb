"""Certificates of learned saddle points against true errors: the reference, its limit, and what is
left out.
"""

from __future__ import annotations

import deepinv
import pytest
import torch
from torch import Tensor

from learnreg.core.errors import SolveError
from learnreg.core.results import RunRecord, StopReason
from learnreg.problems import SaddleEnergy
from learnreg.regularizers import ExactTV, LearnedTV
from learnreg.runs import Run
from learnreg.solvers.views import SaddleView

SADDLE_GRID, SADDLE_REFERENCE, _ = USUAL = SaddleView.reference


def learned(regularizer) -> Run:
    """A run that learned nothing."""
    energy = SaddleEnergy(
        deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)), regularizer
    )
    theta = torch.cat([p.detach().reshape(-1) for p in regularizer.parameters()])
    return Run(
        RunRecord("problem", "learner", 1, ()),
        StopReason("budget", "it ended"),
        theta,
        theta[None],
        energy,
    )


def picture(size: int = 16) -> Tensor:
    """(1, 1, size, size): a bright corner, with noise 0.1."""
    y = 0.1 * torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    y[..., : size // 2, : size // 2] += 0.7
    return y


@pytest.mark.parametrize(
    "make",
    [lambda: ExactTV(0.2), lambda: ExactTV(0.2, rounding=1e-2), lambda: LearnedTV(2, weight=0.2)],
    ids=["ExactTV", "Huber", "LearnedTV"],
)
def test_certificates_hold(make):
    rows = learned(make()).check_certificate(picture())
    assert [row["eps"] for row in rows] == list(SADDLE_GRID)
    for row in rows:
        assert row["reference"] <= SADDLE_REFERENCE == min(SADDLE_GRID) / 100
        assert (
            row["true"] <= row["certified"] + row["reference"] and row["certified"] <= row["eps"]
        ), row


def test_a_reference_of_ones_own_is_kept_to():
    (row,) = learned(ExactTV(0.2)).check_certificate(picture(), grid=[0.1], reference_eps=1e-5)
    assert row["eps"] == 0.1 and row["reference"] <= 1e-5


def test_accuracies_that_the_reference_says_nothing_about_are_left_out(monkeypatch):
    monkeypatch.setattr(SaddleView, "reference", USUAL._replace(steps=15))
    rows = learned(ExactTV(0.2)).check_certificate(picture())
    assert rows and rows[0]["reference"] > SADDLE_REFERENCE
    assert [row["eps"] for row in rows] == [
        eps for eps in SADDLE_GRID if eps >= 10 * rows[0]["reference"]
    ]
    assert len(rows) < len(SADDLE_GRID)
    assert all(row["true"] <= row["certified"] + row["reference"] for row in rows)


def test_a_reference_that_says_nothing_at_all_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setattr(SaddleView, "reference", USUAL._replace(steps=1))
    with pytest.raises(
        SolveError, match=r"within .* of the truth after 1 steps, .* distances up to 0\.01"
    ):
        learned(ExactTV(0.2)).check_certificate(picture(), grid=[0.01])


def test_an_evaluation_says_which_theorem_certifies():
    class Pairs:
        x = y = picture().expand(2, 1, 16, 16)

        def __len__(self) -> int:
            return 2

    assert learned(ExactTV(0.2)).evaluate(Pairs(), 0.1).theorem == ("gap", "gap")
