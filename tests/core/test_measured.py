"""Measurements and what belongs to their images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deepinv import physics as D

import learnreg as lr
from learnreg.core.errors import InputError

WRONG = [0.4, 1, None, [0.1, 0.2], np.ones((2, 1, 1, 1)), torch.tensor(0.5)]


@pytest.mark.parametrize("value", WRONG, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("name", ["upper", "background", "mask"])
def test_parameters_of_images_are_tensors(value, name):
    y = torch.ones(2, 1, 4, 4)
    with pytest.raises(InputError, match=f"(?s)params\\['{name}'\\].*one slice per image"):
        lr.Measured(y, {name: value})
    ridge = lr.regularizers.Tikhonov(0.1, learned=False)
    energy = lr.Energy(D.Inpainting((1, 4, 4)), ridge, lr.KL())
    with pytest.raises(InputError, match=f"params\\['{name}'\\]"):
        lr.solve(energy, y, eps=1e-2, params={name: value})
    with pytest.raises(InputError, match=f"params\\['{name}'\\]"):
        lr.Reconstructor(energy, eps=1e-2)(y, params={name: value})
