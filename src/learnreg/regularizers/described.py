"""Described: what reports, model files and learners ask of any regularizer, differentiable or
not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Described(nn.Module):
    """A module whose trainable parameters are theta, with defaults for what others want to know of
    it.
    """

    def spec(self) -> dict[str, object]:
        """JSON-able constructor arguments with the class name under ``type``; the model file stores
        it.
        """
        raise NotImplementedError

    def units(self) -> Tensor:
        """A natural step of every entry of theta (d,), in its order: learners that use curvature
        start from these.
        """
        return torch.cat(
            [torch.ones(p.numel()) for p in self.parameters() if p.requires_grad]
            or [torch.zeros(0)]
        )

    def scaling(self) -> Tensor:
        """The direction s of theta (d,) with R(theta + t s) = e^t R(theta), for learners that look
        for a scale first: 1 for the logarithms of weights that multiply all of R; zeros where there
        are none.
        """
        return self._ones_for(())

    def _ones_for(self, chosen: Sequence[Tensor]) -> Tensor:
        """1 for the entries of the chosen parameters, 0 for all others that are trainable."""
        parts = [
            torch.full((p.numel(),), float(any(p is c for c in chosen)))
            for p in self.parameters()
            if p.requires_grad
        ]
        return torch.cat(parts or [torch.zeros(0)])

    def filters(self) -> dict[str, Tensor] | None:
        """Learned filters for a report: ``kernels`` (K, c, s, s), ``weights`` (K,), ``smoothings``
        (K,) if there are any, or None."""
        return None
