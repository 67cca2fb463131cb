"""A learned model, ready to be applied to images: in a script, a worker or a service."""

from __future__ import annotations

import copy
import math
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.batch import per_image
from ..core.cost import Cost
from ..core.errors import DataWarning, InputError, ModelFileError, SolveError
from ..core.files import load_tensors
from ..core.guards import isolated
from ..core.offers import Specified
from ..core.results import Solution
from ..core.status import Status
from ..problems.energy import Energy
from ..problems.fidelity import KL
from ..problems.saddle import SaddleEnergy
from ..solvers.solve import as_data, first_of, solve_potential, spent_on
from ..solvers.tiles import Tiling, can_be_cut, solve_in_tiles
from .accuracy import Demands, Quality, estimated_bytes, not_enough
from .kinds import AnyImage, as_batch
from .model_file import FORMAT, load_model
from .noise import at_sigma, check_level, estimated_levels, noise_remarks

NAME = "model.safetensors"

TILED_FROM = 2**18
"""Pixels of an image from which it is solved tile by tile where that can be: large vectors leave
the cache, and memory counts.
"""

Kind = TypeVar("Kind", bound=AnyImage)
"""What an image is, before and after."""

Told = Callable[[float], None]
"""Hears the share of the work that is done."""


def find_model(path: str | Path) -> Path:
    """The model file that a path means: itself, or the one in the folder of a run.

    Raises:
        ModelFileError: no such file, a folder without one.
    """
    place = Path(path)
    if not place.is_dir():
        return place
    file = place / NAME
    if file.is_file():
        return file
    below = sorted(p.parent.relative_to(place).as_posix() for p in place.rglob(NAME))
    raise ModelFileError(
        str(place),
        given=f"a folder without {NAME}",
        expected="a model file, or the folder of a finished run",
        remedy=f"Name one of its runs: {', '.join(below[:5])}."
        if below
        else f"Look for {NAME} where the run was written to.",
    )


def load(
    path: str | Path,
    *,
    eps: float | None = None,
    quality: Quality = "fine",
    sigma: float | str | None = None,
    max_seconds: float | None = None,
    channel_wise: bool = False,
    float64: bool = False,
    memory: int | None = None,
    physics: nn.Module | None = None,
    regularizer: nn.Module | None = None,
    fidelity: object | None = None,
) -> TrainedModel:
    """A learned model as a function of images.

    Args:
        path: a model file, or the folder of a run.
        eps: largest distance to the exact minimizer over all pixels of an image; by ``quality``
            when None.
        quality: ``draft``, certified to one 8-bit grey level in the root mean square (usually a
            fifth of it), or ``fine``, a fortieth of one.
        sigma: noise level of the images where it is not that of the model; "auto" estimates it.
        max_seconds: of an image, after which steps end: what has been reached is the result, with
            a warning. The certificate is computed then, at the cost of about two steps.
        channel_wise: treat every channel as a grey image, as models for grey images do anyway.
        float64: compute in double precision.
        memory: bytes that a solve may take; what is free when None.
        physics, regularizer, fidelity: as for ``load_model``.

    Raises:
        ModelFileError: a missing, damaged or foreign model.
        InputError: an option out of range.

    Example:
        ``denoise = lr.load("report"); clean = denoise(PIL.Image.open("noisy.png"))``
    """
    demands = Demands(eps, quality, max_seconds, memory, sigma)
    file = find_model(path)
    # tensors made in inference mode could not be used outside of it
    with torch.inference_mode(False):
        energy = load_model(file, physics=physics, regularizer=regularizer, fidelity=fidelity)
        energy = energy.widened() if float64 else energy
    notes = load_tensors(file, FORMAT)[1].get("notes", {})
    return TrainedModel(energy, demands, channel_wise, str(file), notes)


class TrainedModel:
    """A learned model that reconstructs images; made by ``load``.

    It can be pickled, called from several threads at once, and used in workers and in
    ``torch.inference_mode``. Large images are solved tile by tile where the model allows it.

    Args:
        energy: what is minimized.
        demands: accuracy, time, memory.
        channel_wise: treat every channel as a grey image.
        path: where it comes from, for messages.
        notes: remarks from the file.
    """

    def __init__(
        self,
        energy: Energy | SaddleEnergy,
        demands: Demands | None = None,
        channel_wise: bool = False,
        path: str = "",
        notes: Mapping[str, object] | None = None,
    ) -> None:
        self.energy, self.demands = energy, demands or Demands()
        check_level(energy, self.demands.sigma)
        self.channel_wise, self.path, self.notes = channel_wise, path, dict(notes or {})
        self._local = threading.local()

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in vars(self).items() if k != "_local"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._local = threading.local()

    @property
    def units(self) -> tuple[float, float] | None:
        """The levels of the files that were 0 and 1 in training; None if each file had its own."""
        told = self.notes.get("units")
        if isinstance(told, list) and len(told) == 2:
            return float(told[0]), float(told[1])
        return None

    @property
    def from_pictures(self) -> bool:
        """Whether the images that were learned from had their range made [0, 1]; measured pairs are
        in the units of their files.
        """
        return self.notes.get("pictures") is True

    @property
    def takes_images(self) -> bool:
        """Whether a measurement has the form of an image, of any height and width."""
        energy = self._own()
        if energy.operator.is_identity:
            return True
        # why these numbers: no sinogram, k-space or smaller image has its image's shape with them
        like = next((p for p in energy.parameters()), torch.empty(0))
        probe = torch.zeros(1, 1, 61, 67, device=like.device, dtype=like.dtype)
        try:
            return self._image_shape(energy, probe) == probe.shape[1:]
        except Exception:  # why all: physics refuse foreign shapes in many ways
            return False

    def with_units(self, units: tuple[float, float]) -> TrainedModel:
        """The same model for files whose levels ``units`` are 0 and 1."""
        notes = {**self.notes, "units": list(units)}
        return TrainedModel(self.energy, self.demands, self.channel_wise, self.path, notes)

    def with_demands(self, demands: Demands) -> TrainedModel:
        """The same model with other demands."""
        return TrainedModel(self.energy, demands, self.channel_wise, self.path, self.notes)

    def __call__(self, image: Kind) -> Kind:
        """The reconstruction, of the kind, type and range of what is given.

        Args:
            image: an array (h, w) or (h, w, c), a PIL image, or a tensor (h, w), (c, h, w) or
                (b, c, h, w); measurements come back as an image. Integers are in the ``units`` of
                the training images, where their type holds these, else [0, 1] at the largest value
                of their type; they are clipped and rounded in the result. Those of counts (``KL``),
                sinograms and k-space keep their numbers; floating-point numbers are left as they
                are. A transparency stays as it is.

        Raises:
            InputError: another kind, channels that the model was not learned for, NaN or Inf, an
                image for which memory does not suffice.
            SolveError: the accuracy asked for cannot be reached.

        Warns:
            DataWarning: ``max_seconds`` were over before the accuracy was reached.
        """
        found, solution = self.with_certificate(image)
        if any(s is Status.BUDGET for s in solution.status):
            asked = self.demands.distance(solution.value[0].numel())
            warnings.warn(
                f"max_seconds: {self.demands.max_seconds:g} s were over at a {solution.words} of "
                f"{float(solution.error.max()):.2e}; asked for was {asked:.2e}. Allow more time, "
                "or ask for quality='draft'.",
                DataWarning,
                stacklevel=2,
            )
        return found

    def with_certificate(self, image: Kind) -> tuple[Kind, Solution]:
        """What a call gives, together with the Solution: ``error`` is the distance of the image
        before it was rounded to its type, and the status says whether time ran out.

        Raises:
            InputError, SolveError: as when called.
        """
        batch = as_batch(image, self.units, raw=keeps_counts(self.energy))
        solution = self.reconstruct(batch.y)
        # why a cast: the kind that was given comes back
        return cast(Kind, batch.back(solution.value)), solution

    @isolated
    def reconstruct(
        self,
        y: Tensor,
        progress: Told | None = None,
        *,
        throw: bool = True,
    ) -> Solution:
        """The reconstruction with its certificate.

        Args:
            y: (b, c, h, w), floating-point, on the scale of the images that were learned from; or
                measurements (b, ...) of the physics of the model.
            progress: told the share of the work that is done, of large images.
            throw: raise when an image misses what is asked for; running out of ``max_seconds`` is
                no reason, the status says it.

        Returns:
            Solution with ``value`` (b, c, h, w) and one ``error`` per image, also where channels
            are treated one by one.

        Raises:
            InputError, SolveError: as when called.
        """
        if not isinstance(y, Tensor) or y.dim() < 3 or y.shape[0] == 0:
            raise InputError(
                "y",
                given=f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__,
                expected="a tensor (b, c, h, w)",
                remedy="Call the model itself on images of any kind.",
            )
        energy = self._own()
        like = next((p for p in energy.parameters()), None)
        data = y if like is None else in_type_of(y, like)
        count, channels = y.shape[:2]
        shape = self._image_shape(energy, data)
        # channels of a measurement, of k-space or several energies, are none of the image
        apart = shape == y.shape[1:] and self.apart(channels)
        asked = self.demands.distance(math.prod(shape))
        if apart:
            data = data.reshape(count * channels, 1, *y.shape[2:])
            asked /= math.sqrt(channels)
        energy = at_sigma(energy, data, self.demands.sigma)
        limit = self.demands.max_seconds
        end = math.inf if limit is None else time.monotonic() + limit * count
        solution = self._solve(energy, data, asked, progress, lambda: time.monotonic() >= end)
        if apart:
            solution = joined(solution, channels)
        failed = [s for s in solution.status if not s.ok and s is not Status.BUDGET]
        return solution.raise_if_failed() if throw and failed else solution

    @isolated
    def noise_remarks(self, y: Tensor) -> list[str | None]:
        """For each of the measurements y (b, ...): in which way its noise is not that of the model,
        unless a level is given.
        """
        if self.demands.sigma is not None:
            return [None] * len(y)
        energy = self._own()
        found = [noise_remarks(energy, self._at_a_time(energy, part)) for part in y.split(1)]
        return [next((text for text in texts if text), None) for texts in found]

    @isolated
    def estimated_levels(self, y: Tensor) -> list[list[float]]:
        """For each of y (b, ...) the noise levels that "auto" takes, of channels that are treated
        one by one each its own; none where a level is given.
        """
        if self.demands.sigma != "auto":
            return [[] for _ in y]
        energy = self._own()
        return [estimated_levels(energy, self._at_a_time(energy, part)) for part in y.split(1)]

    def _at_a_time(self, energy: Energy | SaddleEnergy, y: Tensor) -> Tensor:
        """One measurement (1, c, ...) as it is solved: (c, 1, ...) if channel by channel."""
        apart = self._image_shape(energy, y) == y.shape[1:] and self.apart(y.shape[1])
        return y[0][:, None] if apart else y

    def apart(self, channels: int) -> bool:
        """Whether the channels of an image are treated one by one.

        Raises:
            InputError: the model was learned for another number of channels.
        """
        regularizer = self.energy.regularizer
        expected = model_channels(regularizer.spec()) if offers(regularizer, Specified) else None
        apart = self.channel_wise or (expected == 1 and channels > 1)
        if expected is not None and expected != (1 if apart else channels):
            raise InputError(
                "image",
                given=f"{1 if apart else channels} channel(s) at a time",
                expected=f"{expected} channels, as in the images the model was learned from",
                remedy="Do not treat its channels one by one."
                if self.channel_wise
                else "Learn a model with channels = 1.",
            )
        return apart

    def _image_shape(self, energy: Energy | SaddleEnergy, y: Tensor) -> torch.Size:
        """The shape of the images that measurements like y are reconstructed to.

        Raises:
            InputError: measurements that the physics does not take.
        """
        if energy.operator.is_identity:
            return y.shape[1:]
        with torch.no_grad():
            return energy.start(y[:1]).shape[1:]

    def _own(self) -> Energy | SaddleEnergy:
        """The energy of this thread: what is found out about operators and filters is kept in it
        and would be changed by another thread meanwhile.
        """
        found = vars(self._local).get("energy")
        if found is None:
            found = self._local.energy = copy.deepcopy(self.energy)
        return found

    @torch.no_grad()
    def _solve(
        self,
        energy: Energy | SaddleEnergy,
        y: Tensor,
        eps: float,
        progress: Told | None,
        stop: Callable[[], bool],
    ) -> Solution:
        """The batch to a distance eps each, in memory that there is."""
        try:
            return self._fitted(energy, y, eps, progress, stop)
        except (MemoryError, RuntimeError) as error:
            words = str(error).lower()
            full = isinstance(error, MemoryError) or (
                "allocate memory" in words or "out of memory" in words
            )
            if isinstance(error, SolveError) or not full:
                raise
            raise not_enough(
                f"image of {' x '.join(map(str, y.shape[2:]))}",
                estimated_bytes(y.numel(), y.element_size()),
                self.demands.bytes,
            ) from error

    def _fitted(
        self,
        energy: Energy | SaddleEnergy,
        y: Tensor,
        eps: float,
        progress: Told | None,
        stop: Callable[[], bool],
    ) -> Solution:
        """Whole images, tiles, or one image after the other.

        Raises:
            InputError: not even that fits; an estimate, made before anything is computed.
        """
        tiling, size = Tiling(), y.element_size()
        window = y.shape[0] * y.shape[1] * (tiling.size + 2 * tiling.overlap) ** 2
        large = math.prod(y.shape[2:]) > TILED_FROM
        data = as_data(y, None, energy)
        f = energy.at(data)
        if large and can_be_cut(f):
            self._check_room(y, estimated_bytes(y.numel(), size, window))
            start = first_of(energy, f, data)
            found = solve_in_tiles(
                f, eps, start, tiling=tiling, should_stop=stop, progress=progress
            )
            return replace(found, cost=found.cost + spent_on(f))

        if estimated_bytes(y.numel(), size) > self.demands.bytes:
            if y.shape[0] == 1:
                self._check_room(y, estimated_bytes(y.numel(), size))
            del f
            parts = [self._fitted(energy, image[None], eps, progress, stop) for image in y]
            return stacked(parts)

        start = first_of(energy, f, data).detach()
        found = solve_potential(f, per_image(eps, start), start, should_stop=stop)
        return replace(found, cost=found.cost + spent_on(f))

    def _check_room(self, y: Tensor, needed: int) -> None:
        allowed = self.demands.bytes
        if needed > allowed:
            raise not_enough(f"image of {' x '.join(map(str, y.shape[2:]))}", needed, allowed)

    def __repr__(self) -> str:
        name = self.notes.get("name") or type(self.energy.regularizer).__name__
        return f"TrainedModel({name}, {self.demands}, {self.path})"


def keeps_counts(energy: Energy | SaddleEnergy) -> bool:
    """Whether integers are measurements in units of their own, and no picture of [0, 1]."""
    from ..physics.own import in_own_units  # deepinv takes seconds to import

    counts = isinstance(energy.fidelity, KL) and not energy.fidelity.scaled
    return counts or in_own_units(energy.physics)


def in_type_of(y: Tensor, like: Tensor) -> Tensor:
    """y in the precision and on the device of ``like``; complex numbers stay complex."""
    dtype = like.dtype.to_complex() if y.is_complex() else like.dtype
    return y.to(device=like.device, dtype=dtype)


def model_channels(spec: Mapping[str, object]) -> int | None:
    """The channels that a regularizer was made for; None if any number will do."""
    terms = spec.get("terms")
    inner = [*(terms if isinstance(terms, list | tuple) else ()), spec.get("regularizer")]
    # where there are both, the latter are feature maps; a word says how TV treats any number
    own = spec.get("in_channels", spec.get("channels"))
    found = [own if isinstance(own, int) else None]
    found += [model_channels(part) for part in inner if isinstance(part, Mapping)]
    return next((c for c in found if c is not None), None)


def joined(solution: Solution, channels: int) -> Solution:
    """One image of every few channels that were solved one by one: distances add in squares."""
    count = len(solution.status) // channels

    def together(x: Tensor) -> Tensor:
        return x.reshape(count, channels, *x.shape[2:])

    def length(x: Tensor) -> Tensor:
        return x.reshape(count, channels).square().sum(dim=1).sqrt()

    groups = [solution.status[i * channels : (i + 1) * channels] for i in range(count)]
    return replace(
        solution,
        value=together(solution.value),
        error=length(solution.error),
        status=tuple(next((s for s in group if not s.ok), group[0]) for group in groups),
        steps=solution.steps.reshape(count, channels).amax(dim=1),
        gradient_norm=length(solution.gradient_norm),
        gradient=together(solution.gradient)
        if solution.gradient.shape == solution.value.shape
        else solution.gradient,
        state=None,
        theorem=solution.theorem[::channels],
    )


def stacked(parts: list[Solution]) -> Solution:
    """One Solution of images that were solved one after the other."""
    first = parts[0]
    return replace(
        first,
        value=torch.cat([p.value for p in parts]),
        error=torch.cat([p.error for p in parts]),
        status=tuple(s for p in parts for s in p.status),
        steps=torch.cat([p.steps for p in parts]),
        cost=sum((p.cost for p in parts), Cost()),
        gradient_norm=torch.cat([p.gradient_norm for p in parts]),
        gradient=torch.cat([p.gradient for p in parts]),
        state=None
        if first.state is None
        else torch.cat([p.state for p in parts if p.state is not None]),
        theorem=tuple(t for p in parts for t in p.theorem),
    )
