"""BilevelProblem: min over theta of mean_i g(x_i(theta)) + p(theta), x_i(theta) = argmin_x h(x;
theta, y_i).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..core.asking import offers
from ..core.batch import check_images
from ..core.constraints import warn_of_truth
from ..core.datasets import collect, is_dataset
from ..core.errors import InputError
from ..core.guards import check_energy, check_measured, check_pairs
from ..core.maps import Upper
from ..core.measured import Measured, measured, real_channels
from ..core.offers import Units
from ..core.params import flatten, names, trainable
from .losses import PairLoss, as_loss, tied_loss
from .measurement_losses import MeasurementLoss
from .penalty import value_and_slope
from .tied import Tied


class PairsLike(Protocol):
    """Anything with ground truth ``x`` (n, ...) and measurements ``y`` (n, ...)."""

    @property
    def x(self) -> Tensor | None: ...

    @property
    def y(self) -> Any: ...

    def __len__(self) -> int: ...


@dataclass(eq=False)
class _Images:
    """Ground truth, if there is any, and measurements; nothing else."""

    x: Tensor | None
    y: Tensor | Measured

    def __len__(self) -> int:
        return len(measured(self.y))


class WithParams(Protocol):
    """Pairs with parameters of the operator for every image."""

    params: Mapping[str, Tensor]


def data_of(pairs: PairsLike) -> Measured:
    """The measurements of pairs, with the operator parameters of each image if there are any."""
    y = pairs.y
    if isinstance(y, Measured):
        return y
    return Measured(y, (pairs.params or {}) if offers(pairs, WithParams) else {})


def _units(part: object) -> Tensor:
    """Natural steps of what a part of an energy learns; ones where it does not say."""
    if offers(part, Units):
        return part.units()
    learned = trainable(part) if isinstance(part, nn.Module) else []
    return torch.ones(sum(t.numel() for t in learned))


def _plain(data: Measured) -> Tensor | Measured:
    """A real tensor as it is, anything else as Measured."""
    plain = isinstance(data.y, Tensor) and not data.y.is_complex() and not data.params
    return cast(Tensor, data.y) if plain else data


def _in_memory(
    pairs: PairsLike | Tensor | Measured | Dataset[Any] | DataLoader[Any], limit: int | None
) -> PairsLike | Tensor | Measured:
    """The items of a dataset, stacked; anything else as it is."""
    if is_dataset(pairs):
        found = collect(pairs, limit)
        return found if found.x is not None else Measured(found.y, found.params)
    if limit is not None:
        raise InputError(
            "limit",
            given=f"{limit} for {type(pairs).__name__}",
            expected="a Dataset or DataLoader, of which so many pairs are read",
            remedy="Slice pairs in memory: pairs[:n].",
        )
    # why a cast: the other two were datasets
    return cast(PairsLike | Tensor | Measured, pairs)


class BilevelProblem:
    """The learning problem f(theta) = mean_i g(x_i(theta)) + p(theta).

    Args:
        energy: the lower level, with trainable parameters.
        pairs: training pairs ``.x`` (n, c, h, w) and ``.y``; for a loss of measurements also the
            measurements alone; or a ``torch.utils.data`` ``Dataset`` or ``DataLoader`` of (x, y) or
            (x, y, params), which is read into memory.
        loss: g per image: ``SquaredError()`` when None, another loss with known constants, any
            function of (x, x_true) that autograd can differentiate (see ``Custom``), or a loss of
            measurements, which needs no ground truth (``SURE``, ``Whiteness``).
        penalty: p, from theta (d,) to a scalar >= 0 that autograd can differentiate; none when
            None.
        limit: how many pairs of a dataset to use, the first ones; all when None.

    Raises:
        InputError: no images, images and measurements of different number, nothing to learn, or a
            dataset whose items are no pairs or do not fit into memory.

    Warns:
        DataWarning: true images that the bounds of the energy shut out.
    """

    energy: Any  # a Level; of the class that was handed in
    loss: Any
    pairs: Any
    given: Any  # the pairs as they were handed in, with their names
    copies: int = 1  # how often the loss looks at every image
    _upper: Upper

    def __init__(
        self,
        energy: object,
        pairs: PairsLike | Tensor | Measured | Dataset[Any] | DataLoader[Any],
        loss: object | None = None,
        penalty: Callable[[Tensor], Tensor] | None = None,
        *,
        limit: int | None = None,
    ) -> None:
        check_energy(energy, "at", "start", "parameters")
        pairs = _in_memory(pairs, limit)
        self.energy, self.penalty, self.given = energy, penalty, pairs
        if not trainable(cast(nn.Module, energy)):
            raise InputError(
                "energy",
                given="no trainable parameter",
                expected="at least one parameter to learn",
                remedy="Set requires_grad=True on parameters of the regularizer, the data term or "
                "the physics.",
            )
        if isinstance(loss, MeasurementLoss) and not isinstance(loss, type):
            self._without_truth(loss, pairs)
        else:
            self._with_truth(as_loss(loss), pairs)

    def _with_truth(self, loss: PairLoss, pairs: PairsLike | Tensor | Measured) -> None:
        check_pairs(pairs)
        assert not isinstance(pairs, Tensor | Measured) and pairs.x is not None
        data = data_of(pairs)
        if len(pairs) == 0 or pairs.x.shape[0] != len(data):
            raise InputError(
                "pairs",
                given=f"{pairs.x.shape[0]} images and {len(data)} measurements",
                expected="the same positive number of both",
            )
        x = real_channels(pairs.x) if pairs.x.is_complex() else pairs.x
        check_images(x, "x")
        if isinstance(self.energy, Tied) and self.energy.constraint is not None:
            warn_of_truth(self.energy.constraint, x, stacklevel=4)
        self._check_data(data)
        plain = _plain(data)
        as_given = isinstance(plain, Tensor) and x is pairs.x
        self.loss = loss
        self.pairs = pairs if as_given else _Images(x, plain)
        self._upper = tied_loss(loss, x, pairs.x.is_complex())

    def _without_truth(self, loss: MeasurementLoss, pairs: PairsLike | Tensor | Measured) -> None:
        if not isinstance(self.energy, Tied):
            raise InputError(
                "loss",
                given=f"{type(loss).__name__} for {type(self.energy).__name__}",
                expected="an Energy or SaddleEnergy, whose operator it knows",
                remedy="Use a loss of (x, x_true).",
            )
        alone = isinstance(pairs, Tensor | Measured)
        data = measured(pairs) if isinstance(pairs, Tensor | Measured) else data_of(pairs)
        self._check_data(data)
        tying = loss.tie_to(self.energy, _plain(data))
        x = None if isinstance(pairs, Tensor | Measured) or alone else pairs.x
        if x is not None:
            x = torch.cat([real_channels(x) if x.is_complex() else x] * tying.copies)
        self.loss, self._upper, self.copies = loss, tying.upper, tying.copies
        self.pairs = _Images(x, tying.data)

    def _check_data(self, data: Measured) -> None:
        for tensor in data.tensors:
            check_images(torch.view_as_real(tensor) if tensor.is_complex() else tensor, "y")
            check_measured(tensor, self.energy)

    @property
    def theta(self) -> Tensor:
        """The present parameters of the energy as one vector (d,), in the dtype of the data."""
        return flatten(trainable(cast(nn.Module, self.energy))).to(
            dtype=self.dtype, device=self.device
        )

    @property
    def dtype(self) -> torch.dtype:
        """The real type of the images."""
        return measured(self.pairs.y).dtype if self.pairs.x is None else self.pairs.x.dtype

    @property
    def device(self) -> torch.device:
        """Where the measurements are."""
        return measured(self.pairs.y).device if self.pairs.x is None else self.pairs.x.device

    @property
    def data(self) -> Tensor | Measured:
        """The measurements of all lower levels."""
        return self.pairs.y

    @property
    def truth(self) -> Tensor | None:
        """Ground truth (n, c, ...), real; None where there is none."""
        return self.pairs.x

    @property
    def upper(self) -> Upper:
        """The upper loss of all images."""
        return self._upper

    @property
    def units(self) -> Tensor:
        """A natural step of every entry of theta (d,); ones where nobody says."""
        ones = torch.ones_like(self.theta)
        if not isinstance(self.energy, Tied):
            return ones
        parts = (self.energy.regularizer, self.energy.fidelity, self.energy.physics)
        return torch.cat([_units(part).to(ones) for part in parts])

    @property
    def size(self) -> int:
        """Number of lower levels: images, or copies of them that the loss looks at."""
        return len(measured(self.pairs.y))

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(names(cast(nn.Module, self.energy)))

    def to(self, dtype: torch.dtype) -> Self:
        """The same problem with data in another floating-point type."""
        x = None if self.pairs.x is None else self.pairs.x.to(dtype)
        return self._on(x, self.pairs.y.to(dtype), self.upper.to(dtype))

    def select(self, index: Tensor) -> Self:
        """The problem of the images ``index`` (k,): f is then their mean."""
        x = None if self.pairs.x is None else self.pairs.x[index]
        return self._on(x, self.pairs.y[index], self.upper.select(index))

    def _on(self, x: Tensor | None, y: Tensor | Measured, upper: Upper) -> Self:
        """With other images, which come from those that were checked."""
        other = type(self).__new__(type(self))
        other.energy, other.loss, other.penalty = self.energy, self.loss, self.penalty
        other.pairs, other._upper, other.copies = _Images(x, y), upper, self.copies
        return other

    def penalty_at(self, theta: Tensor) -> tuple[float, Tensor]:
        """p(theta) and its gradient (d,), see ``penalty.value_and_slope``."""
        return value_and_slope(self.penalty, theta)

    def describe(self) -> str:
        like = measured(self.pairs.y).tensors[0] if self.pairs.x is None else self.pairs.x
        shape = "x".join(str(s) for s in like.shape[1:])
        count = self.theta.numel()
        plural = "" if count == 1 else "s"
        images = self.size // self.copies
        return f"{self.energy.describe()}, {count} parameter{plural}, {images} images of {shape}"
