"""Tensors of a physics that are written to behind torch's back: nothing found out before counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deepinv import physics as dphysics

import learnreg as lr


def by_data(t: torch.Tensor, shared: np.ndarray) -> None:
    t.data.mul_(3)


def by_other_data(t: torch.Tensor, shared: np.ndarray) -> None:
    t.data = 3 * t.data


def by_numpy(t: torch.Tensor, shared: np.ndarray) -> None:
    shared *= 3


def by_numpy_moved(t: torch.Tensor, shared: np.ndarray) -> None:
    """Sums stay what they are."""
    shared[:] = shared[..., ::-1].copy()


def in_place(t: torch.Tensor, shared: np.ndarray) -> None:
    with torch.no_grad():
        t.mul_(3)


@pytest.mark.parametrize(
    "change", [by_data, by_other_data, by_numpy, by_numpy_moved, in_place], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", ["MRI", "blur", "inpainting"])
def test_a_change_of_any_kind_is_noticed(name, change):
    shared = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)
    if name == "MRI":
        shared = np.concatenate([shared, shared], axis=1)
        physics, channels = dphysics.MRI(img_size=(2, 8, 8)), 2
        physics.mask = torch.from_numpy(shared)
    elif name == "blur":
        shared = np.ascontiguousarray(shared[..., :3, :3])
        physics, channels = dphysics.Blur(filter=torch.ones(1, 1, 3, 3), padding="circular"), 1
        physics.filter = torch.from_numpy(shared)
    else:
        physics, channels = dphysics.Inpainting((1, 8, 8), mask=torch.ones(1, 8, 8)), 1
        physics.mask = torch.from_numpy(shared)
    tensor = physics.filter if name == "blur" else physics.mask

    def energy() -> lr.Energy:
        ridge = lr.regularizers.Tikhonov(0.1, learned=False)
        return lr.Energy(physics, lr.regularizers.TV(0.01, 0.5) + ridge)

    x = torch.rand(1, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    used = energy()
    before = lr.solve(used, physics.A(x), eps=1e-2)
    change(tensor, shared)
    y = physics.A(x)
    after, fresh = lr.solve(used, y, eps=1e-3), lr.solve(energy(), y, eps=1e-3)
    assert torch.dist(after.value, fresh.value) <= 2e-3
    assert before.ok and after.ok
