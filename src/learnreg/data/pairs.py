"""Pairs: true images, their measurements and the physics between them."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from ..core.batch import check_images
from ..core.errors import DataWarning, InputError
from ..core.measured import Native, tensors_of
from ..operators.pickling import picklable
from ..operators.private import clone
from .gather import gather
from .measure import measure
from .seeds import check_count, check_seed, generator
from .sources import SourceLike
from .units import RangeLike, noise_remark

if TYPE_CHECKING:
    from deepinv.physics import Physics


Y = TypeVar("Y", bound=Native)

MOST_CHANNELS = 7
"""Of signals (n, c, length): with more of them an image without its batch is meant."""


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """n true images, their measurements, and the physics that made these.

    Args:
        x: true images (n, c, h, w), signals (n, c, length) or volumes (n, c, d, h, w); floating
            point or complex, finite. n = 0 is allowed (an empty side of a split).
        y: measurements (n, ...), floating point or complex, finite; or the TensorList of a stacked
            physics.
        physics: the deepinv physics with ``y = physics(x)``.
        names: one name per image.
        seed: the seed that made the data; None for data from elsewhere.
        params: tensors of the physics that differ from image to image, (n, ...), by the names that
            ``physics.update`` takes (masks, coil maps, kernels).
        units: the levels (lo, hi) of the image files that are 0 and 1 in ``x``, if a range was
            asked for; None where every file had the full range of its type. New files are to
            be read with them: ``load_image(path, range=train.units)``.

    Raises:
        InputError: shapes that do not fit together, another type of pixels, NaN/Inf (names the
            image).
    """

    x: Tensor
    y: Tensor
    physics: Physics
    names: tuple[str, ...]
    seed: int | None = None
    params: Mapping[str, Tensor] = field(default_factory=dict)
    units: tuple[float, float] | None = None

    def __getstate__(self) -> dict[str, object]:
        """For pickle, which refuses the functions without a name in a physics."""
        physics = self.physics
        return vars(self) | {
            "physics": picklable(physics) if isinstance(physics, nn.Module) else physics
        }

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if not isinstance(self.x, Tensor):
            raise InputError(
                "x",
                given=type(self.x).__name__,
                expected="a tensor",
                remedy="Pass torch tensors.",
            )
        image_alone = self.x.dim() == 3 and self.x.shape[1] > MOST_CHANNELS
        if self.x.dim() not in (3, 4, 5) or image_alone:
            raise InputError(
                "x",
                given=f"shape {tuple(self.x.shape)}",
                expected="shape (n, c, h, w), or (n, c, length) or (n, c, d, h, w)",
                remedy="Add what is missing: x[None] for one image, x[:, None] for grey ones.",
            )
        n = self.x.shape[0]
        tensors = tensors_of(self.y)
        if any(t.dim() < 2 or t.shape[0] != n for t in tensors):
            raise InputError(
                "y",
                given=f"shape {tuple(tensors[0].shape)}",
                expected=f"{n} measurements, one per image in x",
                remedy="Measure the whole of x: y = physics(x).",
            )
        if len(self.names) != n:
            raise InputError(
                "names",
                given=f"{len(self.names)} names",
                expected=f"{n}, one per image in x",
                remedy="Pass names=tuple(map(str, range(len(x)))) if the images have none.",
            )
        for name, t in self.params.items():
            if not isinstance(t, Tensor) or t.dim() < 1 or t.shape[0] != n:
                raise InputError(
                    f"params[{name!r}]",
                    given=f"shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__,
                    expected=f"a tensor ({n}, ...), one slice per image",
                    remedy="What all images share belongs to the physics itself.",
                )
        if n:
            check_images(_real(self.x), "x")
            for t in tensors:
                check_images(_real(t), "y")

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Pairs:
        """The chosen pairs: one for an integer, several for slices, lists, index and mask tensors.

        Raises:
            IndexError: an index out of range.
            InputError: an index of another kind.
        """
        n = len(self)
        if isinstance(index, slice):
            chosen = list(range(n))[index]
        elif isinstance(index, Tensor) and index.dtype == torch.bool:
            if index.shape != (n,):
                raise InputError(
                    "index",
                    given=f"a mask of {tuple(index.shape)}",
                    expected=f"shape ({n},)",
                    remedy="Pass one truth value per image.",
                )
            chosen = torch.nonzero(index).flatten().tolist()
        else:
            given = index.flatten().tolist() if isinstance(index, Tensor) else index
            try:
                chosen = [_index(i) for i in (given if isinstance(given, Sequence) else [given])]
            except TypeError:
                raise InputError(
                    "index",
                    given=repr(index),
                    expected="an integer, slice, integers or mask",
                    remedy="Index pairs like a tensor along its first dimension.",
                ) from None
        if any(not -n <= i < n for i in chosen):
            raise IndexError(f"index {index} is out of range for {n} pairs")
        where = torch.tensor(chosen, dtype=torch.long)
        return replace(
            self,
            x=self.x[where.to(self.x.device)],
            y=_chosen(self.y, where),
            names=tuple(self.names[i] for i in chosen),
            params={name: t[where.to(t.device)] for name, t in self.params.items()},
        )

    def __iter__(self) -> Iterator[Pairs]:
        return (self[i] for i in range(len(self)))

    def batches(self, size: int, seed: int) -> Iterator[Pairs]:
        """Every pair once, in an order shuffled by ``seed``, ``size`` at a time (fewer in the last
        batch).

        Raises:
            InputError: size < 1, or a seed that is not a non-negative integer; at the call already.
        """
        check_count(size, "size", least=1, remedy="Pass the number of images per batch.")
        order = torch.randperm(len(self), generator=generator(check_seed(seed), "batches"))
        return (self[part] for part in (order.split(size) if len(self) else ()))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Pairs:
        """The same pairs elsewhere, or in float32 or float64 (complex measurements likewise).

        The physics is copied if anything changes, since moving a module in place would change the
        caller's.

        Raises:
            InputError: another dtype than float32 or float64.
        """
        if dtype not in (None, torch.float32, torch.float64):
            raise InputError(
                "dtype",
                given=dtype,
                expected="torch.float32 or torch.float64",
                remedy="Half precision is too coarse for certified errors.",
            )

        def moved(t: Tensor) -> Tensor:
            kind = dtype.to_complex() if dtype and t.is_complex() else dtype
            return t.to(
                device=device,
                dtype=kind if t.is_floating_point() or kind is None or t.is_complex() else None,
            )

        x = moved(self.x)
        y = _mapped(self.y, moved)
        params = {name: moved(t) for name, t in self.params.items()}
        if x is self.x and tensors_of(y)[0] is tensors_of(self.y)[0]:
            return self
        physics = clone(self.physics)
        if device is not None:
            physics = physics.to(device)
        if dtype is not None:  # unlike .to(dtype), these two do not make complex buffers real
            physics = physics.double() if dtype == torch.float64 else physics.float()
        return replace(self, x=x, y=y, physics=physics, params=params)

    @property
    def sources(self) -> tuple[str, ...]:
        """The photographs (or phantoms) that the images come from, without repetition."""
        return tuple(dict.fromkeys(name.rsplit("@", 1)[0] for name in self.names))

    def __repr__(self) -> str:
        def shape(t: Tensor) -> str:
            return " x ".join(map(str, t.shape[1:]))

        images = f"{len(self)} image(s) of {shape(self.x)} from {len(self.sources)} source(s)"
        seed = "" if self.seed is None else f", seed {self.seed}"
        physics = type(self.physics).__name__
        measured = ", ".join(shape(t) for t in tensors_of(self.y))
        return f"Pairs({images}; measurements of {measured} by {physics}{seed})"


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def _mapped(y: Y, change: Callable[[Tensor], Tensor]) -> Y:
    """Measurements with every tensor changed; a list stays a list of its kind."""
    # why a cast: a tensor becomes a tensor, and lists of tensors are made of a list
    if isinstance(y, Tensor):
        return cast(Y, change(y))
    return cast(Callable[[list[Tensor]], Y], type(y))([change(t) for t in y])


def _chosen(y: Y, where: Tensor) -> Y:
    """The measurements of some images."""
    return _mapped(y, lambda t: t[where.to(t.device)])


def _index(i: object) -> int:
    """``i`` as an integer; a truth value is none, or a list of them would silently choose images 0
    and 1.
    """
    if isinstance(i, bool):
        raise TypeError
    return operator.index(i)  # type: ignore[arg-type]


class Sides(NamedTuple):
    """Pairs for training, for validation (to stop or to choose by) and for the test."""

    train: Pairs
    validation: Pairs
    test: Pairs


@overload
def pairs(
    source: SourceLike,
    physics: Physics,
    *,
    size: int,
    split: tuple[int, int],
    seed: int,
    channels: int = 1,
    scale: float | None = None,
    range: RangeLike = None,
    group: str | None = None,
    skip_small: bool = False,
    validation_source: SourceLike | None = None,
    test_source: SourceLike | None = None,
) -> tuple[Pairs, Pairs]: ...
@overload
def pairs(
    source: SourceLike,
    physics: Physics,
    *,
    size: int,
    split: tuple[int, int, int],
    seed: int,
    channels: int = 1,
    scale: float | None = None,
    range: RangeLike = None,
    group: str | None = None,
    skip_small: bool = False,
    validation_source: SourceLike | None = None,
    test_source: SourceLike | None = None,
) -> Sides: ...
def pairs(
    source: SourceLike,
    physics: Physics,
    *,
    size: int,
    split: tuple[int, int] | tuple[int, int, int],
    seed: int,
    channels: int = 1,
    scale: float | None = None,
    range: RangeLike = None,
    group: str | None = None,
    skip_small: bool = False,
    validation_source: SourceLike | None = None,
    test_source: SourceLike | None = None,
) -> tuple[Pairs, Pairs] | Sides:
    """Training and test pairs (x, y = physics(x)) from photographs; the same seed gives the same
    pairs.

    The photographs, not the crops, are dealt to the sides, so no pixel of a photograph in the test
    set is ever trained on. Crops are spread evenly over the photographs of a side, at random
    places, no window twice, without augmentation. The noise of an image depends on the seed and the
    image only, not on how many others there are. Photographs are read one at a time: only their
    crops stay in memory, and miniatures in which the same photograph on two sides is looked for.

    Args:
        source: ``"natural"`` (the photographs of :data:`learnreg.data.images.NATURAL`),
            ``"phantoms"``, a folder, a list of image files, or one TIFF stack. A folder that is
            called "natural" is reached by ``"./natural"``. Every page of a stack is an image,
            ``"stack.tif#3"`` (from 0), by which a list can name it, too; pages are read one by one.
        physics: a ``deepinv.physics.Physics``; its noise model is used, and it is left as it was.
        size: height and width of the crops, in pixels.
        split: (number of training crops, number of test crops), or (training, validation, test);
            some of them may be 0. Validation photographs come out of those for training: the test
            pairs stay as they were where there are enough photographs.
        seed: non-negative integer.
        channels: 1 (grey) or 3 (colour).
        scale: factor in (0, 1] by which photographs are downsampled before cropping. None stands
            for 0.5 with "natural" (the originals are sampled finer than they are sharp) and 1
            otherwise.
        range: the levels of the files that become 0 and 1: ``(lo, hi)``; ``"dtype"`` for the full
            range of an integer type; ``"auto"`` for one range for all files: 0 and the smallest 2^k
            - 1 that holds all, or, of float and signed files, the smallest and the largest value of
            the training images. None is "dtype" for integers of 8 and 16 bits, or the depth that a
            TIFF header declares, and [0, 1] for floats.
        group: a regular expression that finds in a file's name the patient (or scene) it belongs
            to: its first group, or the whole match. Files of one patient stay on one side. Without
            it, the pages of a file stay together; only where there are fewer files than sides
            are they cut into blocks of neighbours: training first, the test last.
        skip_small: leave out photographs that are smaller than a crop.
        validation_source: where the validation photographs come from, if not from ``source``.
        test_source: where the test photographs come from, if not from ``source``.

    Returns:
        (train, test), or (train, validation, test) for three numbers, with x (n, channels, size,
        size) float32, [0, 1] for what the range holds, on the CPU.

    Raises:
        InputError: a value out of range, missing, unreadable or too small images (all of them in
            one message), the same image twice, fewer photographs than sides, a physics that does
            not take such images.

    Warns:
        DataWarning: pages of one file on several sides; images that fill less than a fifth of their
            range or were read with fewer bits than they have; photographs of two sides that look
            like the same one, or of which one shows a part of the other; grey photographs among
            colour; noise of more than half the range of the images.

    Example:
        >>> train, validation, test = pairs(
        ...     "scans",
        ...     deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)),
        ...     size=96,
        ...     split=(24, 4, 8),
        ...     seed=0,
        ...     range=(0, 4095),
        ...     group="^patient[0-9]+",
        ... )  # doctest: +SKIP
    """
    from deepinv.physics import Physics

    if not isinstance(physics, Physics):
        raise InputError(
            "physics",
            given=type(physics).__name__,
            expected="a deepinv.physics object",
            remedy="For denoising: physics = deepinv.physics.Denoising(GaussianNoise(0.1)).",
        )
    gathered = gather(
        source,
        size=size,
        split=split,
        seed=seed,
        channels=channels,
        scale=scale,
        range=range,
        group=group,
        skip_small=skip_small,
        validation_source=validation_source,
        test_source=test_source,
    )
    noise = noise_remark(physics, torch.cat([x for x, _ in gathered.sides]))
    for remark in [*gathered.remarks, *([noise] if noise else [])]:
        warnings.warn(remark, DataWarning, stacklevel=2)

    made = [
        Pairs(x, measure(x, physics, names, seed), physics, tuple(names), seed, {}, gathered.units)
        if names
        else None
        for x, names in gathered.sides
    ]
    full = next(side for side in made if side is not None)  # split holds at least one image
    train, validation, test = (side if side is not None else full[:0] for side in made)
    return (train, test) if len(split) == 2 else Sides(train, validation, test)
