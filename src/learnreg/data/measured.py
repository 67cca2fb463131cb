"""Measured pairs: true images and measurements from files, matched, checked against their physics.

Reading is lazy: only the files (of .npy and HDF5 files: the rows) that a split uses are read.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from ..core.datasets import collect
from ..core.errors import DataWarning, InputError
from ..core.measured import Measured
from ..core.memory import check_fits
from ..core.ranges import check_number
from ..operators.private import clone
from .dealing import Group, Split, dealt
from .entries import Entry, SourceLike, entries_of, matched
from .fitting import Fit, fit_alone, fit_of
from .pairs import Pairs
from .plausible import check_plausible
from .seeds import check_seed

if TYPE_CHECKING:
    from deepinv.physics import Physics
    from torch.utils.data import DataLoader, Dataset

_MEMORY = "Use fewer with split=(n_train, n_test), or smaller images."


@overload
def measured(
    images: SourceLike,
    measurements: SourceLike,
    physics: Physics,
    *,
    split: Split = ...,
    seed: int = ...,
    group: Group = ...,
    params: Mapping[str, SourceLike] | None = ...,
    channels: int | None = ...,
    image_factor: float = ...,
    measurement_factor: float = ...,
    dtype: torch.dtype = ...,
) -> tuple[Pairs, ...]: ...


@overload
def measured(
    images: None,
    measurements: SourceLike,
    physics: Physics,
    *,
    split: Split = ...,
    seed: int = ...,
    group: Group = ...,
    params: Mapping[str, SourceLike] | None = ...,
    channels: int | None = ...,
    image_factor: float = ...,
    measurement_factor: float = ...,
    dtype: torch.dtype = ...,
) -> tuple[Measured, ...]: ...


def measured(
    images: SourceLike | None,
    measurements: SourceLike,
    physics: Physics,
    *,
    split: Split = None,
    seed: int = 0,
    group: Group = None,
    params: Mapping[str, SourceLike] | None = None,
    channels: int | None = None,
    image_factor: float = 1.0,
    measurement_factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Pairs, ...] | tuple[Measured, ...]:
    """Training and test pairs (x, y) that were measured, not simulated; the same seed deals them
    alike.

    Images and measurements are matched by the names of their files without endings; those of two
    single files (or tensors) and of two lists of equal length by their places. The physics is tried
    on the first pair: an image gets the channel that it lacks, complex numbers become the two real
    channels of deepinv's MRI where the physics wants these, and axes of length one come and go.

    Args:
        images: a folder, a single file whose first axis counts the images, a list of files, or a
            tensor or array; formats as in :func:`learnreg.data.arrays.read_array`, and PNG, JPEG
            and their like in [0, 1]. ``file.h5:entry`` names an entry. None for measurements
            without truth, which losses of measurements learn from (``SURE``, ``Whiteness``).
        measurements: likewise, y = A x + noise.
        physics: the ``deepinv.physics.Physics`` that has measured them; it is left as it was.
        split: (training, test) or (training, validation, test): numbers of pairs, fractions of
            all such as (0.8, 0.2), (1.0, 0.0) for no test pairs, or None for what the others leave
            as in (None, 8). None alone: a fifth of the pairs for the test.
        seed: of the dealing, non-negative.
        group: what must not be on both sides, such as the patient: a function from the name of a
            pair to its group, or a regular expression whose first group (or whole match) it is.
        params: tensors of the physics that differ from image to image, by the names that
            ``physics.update`` takes, each from files like those of the measurements.
        channels: of the images; as found when None. PNG and JPEG files are read as grey for None
            and 1, in colour for 3.
        image_factor: images are multiplied by it.
        measurement_factor: measurements are multiplied by it.
        dtype: torch.float32 or torch.float64.

    Returns:
        One set per entry of split, (train, test) by default, on the CPU, as ``Pairs``; as
        ``Measured`` where there are no images.

    Raises:
        InputError: unmatched files (all of them in one message), unreadable or not finite ones,
            shapes that do not fit each other or the physics, too few pairs for the split, more
            than fits into memory.

    Warns:
        DataWarning: ||A x - y|| is more than half of ||y||; says whether a factor or a flip of the
            images explains it.

    Example::

        train, test = lr.data.measured("truth", "sinograms", physics, split=(0.8, 0.2))
    """
    seed = check_seed(seed)
    _check_physics(physics)
    _check_settings(channels, image_factor, measurement_factor, dtype)
    ys = entries_of(measurements, "measurements", channels or 1)
    xs = None if images is None else entries_of(images, "images", channels or 1)
    xs = None if xs is None else matched(ys, xs)
    extra = {
        name: matched(ys, entries_of(source, f"params[{name!r}]")).items
        for name, source in (params or {}).items()
    }

    sides = dealt([y.name for y in ys.items], split, seed, group)
    true = None if xs is None else xs.items
    factors = (image_factor, measurement_factor)
    reader = _Reader(true, ys.items, extra, channels, factors, dtype)
    used = [i for side in sides for i in side]
    # why: a physics keeps the parameters it is given, and cloning one can take half a second
    probed = clone(physics) if extra else physics
    reader.prepare(probed, used)

    if xs is None:
        return tuple(reader.alone(side) for side in sides)
    found = tuple(reader.pairs(side, physics) for side in sides)
    check_plausible(next(pairs for pairs in found if len(pairs)), probed)
    warn_shared(found)
    return found


def from_dataset(
    dataset: Dataset[object] | DataLoader[object], physics: Physics, limit: int | None = None
) -> Pairs:
    """The pairs of a ``Dataset`` or ``DataLoader`` of PyTorch with items (x, y) or (x, y, params),
    deepinv's ``HDF5Dataset`` among them; read into memory.

    ``BilevelProblem(energy, dataset)`` takes a dataset as it is; pairs are needed for evaluations.

    Args:
        dataset: items of a dataset are single images (c, ...), those of a loader batches.
        physics: that has measured them.
        limit: how many to use, the first ones; all when None.

    Raises:
        InputError: items of another form or of different shapes, no truth, or more than fits into
            memory.
    """
    found = collect(dataset, limit)
    if found.x is None:
        raise InputError(
            "dataset",
            given="measurements without true images",
            expected="pairs (x, y)",
            remedy="Hand it to BilevelProblem with a loss of measurements, such as SURE.",
        )
    names = tuple(f"item-{i}" for i in range(len(found)))
    # why ignored: a list of tensors for a stacked physics, as ``Pairs`` says of y
    return Pairs(found.x, found.y, physics, names, params=found.params)  # type: ignore[arg-type]


def warn_shared(sides: Sequence[Pairs]) -> None:
    """Warn of measurements that are on two sides, under whatever names.

    Warns:
        DataWarning: names them.
    """
    seen: dict[bytes, tuple[int, str]] = {}
    shared: list[str] = []
    for number, pairs in enumerate(sides):
        for y, name in zip(pairs.y, pairs.names, strict=True):
            digest = hashlib.sha256(y.contiguous().numpy().tobytes()).digest()
            side, other = seen.setdefault(digest, (number, name))
            if side != number:
                shared.append(f"{other} and {name}")
    if shared:
        warnings.warn(
            f"measurements: {len(shared)} are on two sides of the split: {'; '.join(shared[:5])}. "
            "What is held out would be trained on; remove the copies.",
            DataWarning,
            stacklevel=3,
        )


class _Reader:
    """Entries read, brought into the form that the physics takes, and stacked."""

    def __init__(
        self,
        xs: Sequence[Entry] | None,
        ys: Sequence[Entry],
        params: Mapping[str, Sequence[Entry]],
        channels: int | None,
        factors: tuple[float, float],
        dtype: torch.dtype,
    ) -> None:
        self.xs, self.ys, self.params = xs, ys, params
        self.channels, self.factors, self.dtype = channels, factors, dtype
        self.fit = Fit()

    def prepare(self, physics: Physics, used: list[int]) -> None:
        """Find out from the first pair in use how images and measurements are to be read."""
        first = used[0]
        y = self.ys[first].load()
        x = None if self.xs is None else self.xs[first].load()
        params = {name: entries[first].load()[None] for name, entries in self.params.items()}
        check_fits(len(used), y.nbytes + (0 if x is None else x.nbytes), "measurements", _MEMORY)
        if x is not None and self.xs is not None:
            names = (self.xs[first].where, self.ys[first].where)
            self.fit = fit_of(x, y, physics, params, self.channels, names)
        else:
            self.fit = fit_alone(y, physics, params, self.ys[first].where)

    def pairs(self, side: list[int], physics: Physics) -> Pairs:
        """The pairs of one side, which may be empty."""
        assert self.xs is not None
        chosen = side or [0]  # an empty side has the shapes of the first pair
        x = self._stack([self.xs[i] for i in chosen], self.fit.image, self.factors[0])
        y = self._stack([self.ys[i] for i in chosen], self.fit.measurement, self.factors[1])
        params = {
            name: self._stack([entries[i] for i in chosen], None, 1.0)
            for name, entries in self.params.items()
        }
        found = Pairs(x, y, physics, tuple(self.ys[i].name for i in chosen), params=params)
        return found if side else found[:0]

    def alone(self, side: list[int]) -> Measured:
        """The measurements of one side, which may be empty."""
        chosen = side or [0]
        y = self._stack([self.ys[i] for i in chosen], self.fit.measurement, self.factors[1])
        params = {
            name: self._stack([entries[i] for i in chosen], None, 1.0)
            for name, entries in self.params.items()
        }
        return Measured(y, params)[: len(side)]

    def _stack(
        self, entries: list[Entry], form: Callable[[Tensor], Tensor] | None, factor: float
    ) -> Tensor:
        """Entries (n, ...) in one type, each finite and of the shape of the first."""
        tensors: list[Tensor] = []
        for entry in entries:
            t = entry.load()
            if not bool(torch.isfinite(torch.view_as_real(t) if t.is_complex() else t).all()):
                raise InputError(
                    entry.where,
                    given="NaN or Inf",
                    expected="finite numbers",
                    remedy="Repair or remove it.",
                )
            t = (t if form is None else form(t)) * factor
            t = t.to(self.dtype.to_complex() if t.is_complex() else self.dtype)
            if tensors and t.shape != tensors[0].shape:
                raise InputError(
                    entry.where,
                    given=f"shape {tuple(t.shape)}",
                    expected=f"{tuple(tensors[0].shape)}, as in {entries[0].where}",
                    remedy="Sort sizes into folders of their own, or crop them.",
                )
            if tensors and t.is_complex() != tensors[0].is_complex():
                raise InputError(
                    entry.where,
                    given="complex numbers" if t.is_complex() else "real numbers",
                    expected=f"numbers as in {entries[0].where}",
                    remedy="Save all measurements in one form.",
                )
            tensors.append(t)
        return torch.stack(tensors)


def _check_physics(physics: object) -> None:
    from deepinv.physics import Physics

    if not isinstance(physics, Physics):
        raise InputError(
            "physics",
            given=type(physics).__name__,
            expected="a deepinv.physics object",
            remedy="For CT: deepinv.physics.Tomography(angles=60, img_width=128).",
        )


def _check_settings(
    channels: object, image_factor: float, measurement_factor: float, dtype: object
) -> None:
    if channels is not None and (
        isinstance(channels, bool) or not isinstance(channels, int) or channels < 1
    ):
        raise InputError(
            "channels",
            given=repr(channels),
            expected="a positive integer, or None for what is found",
            remedy="Pass 1 for grey images, 3 for colour, 2 for complex ones.",
        )
    for name, value in (("image_factor", image_factor), ("measurement_factor", measurement_factor)):
        check_number(name, value, lambda v: v != 0, "a finite number, not 0")
    if dtype not in (torch.float32, torch.float64):
        raise InputError(
            "dtype",
            given=dtype,
            expected="torch.float32 or torch.float64",
            remedy="Half precision is too coarse for certified errors.",
        )
