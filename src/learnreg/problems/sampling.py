"""Which measurements are worth taking: a data term whose weights omega in [0, 1] are learned.

    D(Ax, y) = 1/2 <omega (A x - y), A x - y>,   omega = omega(theta),   y fully sampled.

Sherry, Benning, De los Reyes, Graves, Maierhofer, Williams, Schoenlieb, Ehrhardt, Learning the
sampling pattern for MRI, IEEE Trans. Med. Imaging 39 (2020), learn S with omega = S^2 in this way.
Zero is absorbing for S: the derivative in S is 2 S times that in omega, so that a measurement
that was once switched off never returns. Omega has no such trap and describes the same patterns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from ..core.errors import InputError, MissingPropertyError
from ..core.params import named_trainable
from ..core.ranges import check_choice, check_integer, check_number, plain, shown, tidy
from ..operators.foreign import LinearPhysicsLike
from ..operators.private import tensor_named, with_tensors
from .data_functions import Quadratic

Kind = Literal["free", "lines", "product", "radial"]
Parametrization = Literal["omega", "S"]

SLACK = 1e-6
"""How far rounding may carry weights out of [0, 1]."""


class SamplingWeights(nn.Module):
    """Weights omega in [0, 1] of measurements, made from few numbers that are learned.

    - ``free``: one number for every measurement.
    - ``lines``: one for every index along ``axis``, shared by all measurements with that index:
      lines of k-space, views of a sinogram.
    - ``product``: lines times free numbers.
    - ``radial``: one for every spoke through the middle of (h, w). A measurement on several spokes
      has 1 - prod (1 - omega_spoke), which is exact where all are 0 or 1; on none it has 0.

    Args:
        shape: the last axes of the measurements, (h, w) for MRI; axes before (channels, coils) and
            the images share one pattern.
        kind: see above.
        axis: of ``shape``, or several; the numbers of ``lines`` and ``product`` differ along it.
        spokes: their number; pi/2 times the longer side when None, which covers everything.
        parametrization: ``omega`` learns omega itself, ``S`` its root (see the module).
        start: of all weights, in (0, 1], or a tensor of weights omega: like ``shape`` for
            ``free`` and ``product``, (lines,) or (spokes,) for the others.

    Raises:
        InputError: a value out of range, or a start of another shape.

    >>> weights = SamplingWeights((32, 32), "lines")
    >>> tuple(weights().shape), weights.omega.numel()
    ((32, 32), 32)
    """

    omega: nn.Parameter
    root: nn.Parameter
    spoke_of: Tensor
    place_of: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: Kind = "free",
        *,
        axis: int | tuple[int, ...] = -1,
        spokes: int | None = None,
        parametrization: Parametrization = "omega",
        start: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, get_args(Kind))
        check_choice("parametrization", parametrization, get_args(Parametrization))
        self.shape = _checked_shape(shape, kind)
        self.kind, self.parametrization = kind, parametrization
        self.axis = _checked_axes(axis, len(self.shape))
        self.spokes = check_integer("spokes", spokes, 1, optional=True)
        if kind == "radial":
            self.spokes = self.spokes or math.ceil(math.pi / 2 * max(self.shape))
            spoke, place = _crossings(self.shape, self.spokes)
            self.register_buffer("spoke_of", spoke)
            self.register_buffer("place_of", place)
        omega = self._numbers(start)
        name = "root" if parametrization == "S" else "omega"
        self.register_parameter(name, nn.Parameter(omega.sqrt() if name == "root" else omega))

    @property
    def numbers(self) -> nn.Parameter:
        """What is learned, (count,): omega, or S."""
        return self.root if self.parametrization == "S" else self.omega

    @property
    def line_shape(self) -> tuple[int, ...]:
        """``shape`` with ones in the place of the axes that the numbers of a line share."""
        return tuple(n if k in self.axis else 1 for k, n in enumerate(self.shape))

    @property
    def lines(self) -> int:
        """How many lines there are."""
        return math.prod(self.line_shape)

    def forward(self) -> Tensor:
        """omega, of ``shape``; differentiable in the numbers."""
        numbers = self.numbers
        omega = numbers.square() if self.parametrization == "S" else numbers
        if self.kind == "free":
            return omega.view(self.shape)
        if self.kind == "lines":
            return omega.view(self.line_shape).expand(self.shape)
        if self.kind == "product":
            return omega[: self.lines].view(self.line_shape) * omega[self.lines :].view(self.shape)
        missed = omega.new_ones(math.prod(self.shape))
        missed = missed.scatter_reduce(0, self.place_of, (1 - omega)[self.spoke_of], "prod")
        return (1 - missed).view(self.shape)

    def sampled(self, threshold: float = 0.0) -> float:
        """The share of measurements whose weight is larger."""
        return float((self().detach() > threshold).double().mean())

    def mask(self) -> Tensor:
        """1 where the weight is positive, 0 elsewhere, of ``shape``: that of
        ``deepinv.physics.MRI(mask=...)``.
        """
        omega = self().detach()
        return (omega > 0).to(omega.dtype)

    def binary(self, *, threshold: float = 0.0, fraction: float | None = None) -> SamplingWeights:
        """The pattern with weights 0 and 1, with nothing to learn.

        Args:
            threshold: measurements (lines, spokes) with larger weights are taken; in [0, 1).
            fraction: instead of it the largest share of the measurements that may be taken, in
                (0, 1]; those with the largest weights are.

        Raises:
            InputError: a value out of range, or nothing would be measured.
        """
        check_number("threshold", threshold, lambda v: 0 <= v < 1, "a number in [0, 1)")
        check_number("fraction", fraction, lambda v: 0 < v <= 1, "in (0, 1]", optional=True)
        # why: a product of zeros and ones need not be any set of lines
        each = self.kind in ("free", "product")
        omega = self().detach().reshape(-1) if each else self._omega()
        chosen = omega > threshold
        if fraction is not None:
            chosen = self._most_important(omega, fraction)
        if not bool(chosen.any()):
            raise InputError(
                "threshold" if fraction is None else "fraction",
                given=f"{threshold if fraction is None else fraction:g}, which leaves nothing to "
                f"measure (the largest weight is {float(omega.max()):.3g})",
                expected="a value that leaves some measurements",
                remedy="Choose a smaller threshold or a larger fraction.",
            )
        return self._fixed("free" if each else self.kind, chosen)

    def _fixed(self, kind: Kind, chosen: Tensor) -> SamplingWeights:
        start = chosen.to(self.numbers.dtype)
        start = start.view(self.shape) if kind == "free" else start
        other = SamplingWeights(self.shape, kind, axis=self.axis, spokes=self.spokes, start=start)
        other.numbers.requires_grad_(False)
        return other.to(self.numbers.device)

    def _omega(self) -> Tensor:
        """The numbers as omega."""
        numbers = self.numbers.detach()
        return numbers.square() if self.parametrization == "S" else numbers

    def _most_important(self, omega: Tensor, fraction: float) -> Tensor:
        """The largest positive weights that together take no more than a share."""
        order = omega.argsort(descending=True, stable=True)
        kind: Kind = "free" if self.kind == "product" else self.kind

        def first(count: int) -> Tensor:
            return torch.zeros_like(omega, dtype=torch.bool).index_fill(0, order[:count], True)

        low, high = 0, int((omega > 0).sum())
        while low < high:  # the share grows with the count
            middle = (low + high + 1) // 2
            if self._fixed(kind, first(middle)).sampled() <= fraction + 1e-12:
                low = middle
            else:
                high = middle - 1
        return first(low)

    def _numbers(self, start: float | Tensor) -> Tensor:
        """The numbers that the weights ``start`` are made of.

        Raises:
            InputError: out of range, or of another shape.
        """
        each = self.kind in ("free", "product")
        counts = {"lines": self.lines, "radial": self.spokes or 0}
        wanted = self.shape if each else (counts[self.kind],)
        start = plain(start)
        if not isinstance(start, Tensor):
            check_number("start", start, lambda v: 0 < v <= 1, "a number in (0, 1]")
            start = torch.full(wanted, float(start))
        usable = start.is_floating_point() and tuple(start.shape) == wanted
        if not usable or not bool(((start >= 0) & (start <= 1)).all()):
            raise InputError(
                "start",
                given=f"a tensor of shape {tuple(start.shape)}, {start.dtype}, from "
                f"{float(start.min()):.3g} to {float(start.max()):.3g}"
                if start.numel()
                else "an empty tensor",
                expected=f"floating-point weights in [0, 1] of shape {wanted}",
            )
        flat = start.detach().clone().reshape(-1)
        return torch.cat([flat.new_ones(self.lines), flat]) if self.kind == "product" else flat

    def spec(self) -> dict[str, object]:
        """What ``SamplingWeights`` is built from, without the numbers."""
        return {
            "shape": list(self.shape),
            "kind": self.kind,
            "axis": list(self.axis),
            "spokes": self.spokes,
            "parametrization": self.parametrization,
        }

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], numbers: Tensor, learned: bool) -> Self:
        """From what ``spec`` tells and the numbers.

        Raises:
            ValueError: numbers that do not belong to it.
        """
        shape, kind = tuple(spec["shape"]), spec["kind"]
        axes = _checked_axes(tuple(spec["axis"]), len(shape))
        each, lines = math.prod(shape), math.prod(shape[k] for k in axes)
        counts = {"free": each, "lines": lines, "product": lines + each, "radial": spec["spokes"]}
        if counts[kind] != numbers.numel():  # before any memory is taken
            raise ValueError(f"{numbers.numel()} numbers for a pattern {kind!r} of shape {shape}")
        made = cls(
            shape,
            kind,
            axis=axes,
            spokes=spec["spokes"],
            parametrization=spec["parametrization"],
        ).to(numbers.dtype)
        with torch.no_grad():
            made.numbers.copy_(numbers)
        made.numbers.requires_grad_(learned)
        return made

    def extra_repr(self) -> str:
        words = f"{self.shape}, {self.kind!r}, parametrization={self.parametrization!r}"
        return f"{words}, sampled={self.sampled():.3g}"


def _checked_shape(shape: object, kind: str) -> tuple[int, ...]:
    """Raises: InputError."""
    given = tuple(shape) if isinstance(shape, tuple | list | torch.Size) else ()
    sides = tuple(map(plain, given))
    usable = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides)
    if not sides or not usable or (kind == "radial" and len(sides) != 2):
        raise InputError(
            "shape",
            given=shown(shape),
            expected="(h, w)" if kind == "radial" else "positive integers such as (h, w)",
            remedy="Pass the last axes of the measurements, without images, channels and coils.",
        )
    return sides


def _checked_axes(axis: object, count: int) -> tuple[int, ...]:
    """Axes >= 0 in their order.

    Raises:
        InputError: one that is not there.
    """
    given = tuple(axis) if isinstance(axis, tuple | list) else (axis,)
    whole = [a for a in map(plain, given) if isinstance(a, int) and not isinstance(a, bool)]
    found = {a % count for a in whole if -count <= a < count}
    if not found or len(found) != len(given):
        raise InputError(
            "axis",
            given=shown(axis),
            expected=f"an integer from {-count} to {count - 1}, or several",
        )
    return tuple(sorted(found))


def _crossings(shape: tuple[int, ...], spokes: int) -> tuple[Tensor, Tensor]:
    """Which spoke crosses which place: two lists of integers.

    A spoke is a line of width one through the place of the zero frequency, (h // 2, w // 2).
    """
    height, width = shape
    down = torch.arange(height, dtype=torch.float64)[:, None] - height // 2
    right = torch.arange(width, dtype=torch.float64) - width // 2
    found = []
    for k in range(spokes):
        angle = math.pi * k / spokes
        away = (math.cos(angle) * down - math.sin(angle) * right).abs().flatten()
        found.append(torch.nonzero(away <= 0.5).flatten())
    counts = torch.tensor([len(places) for places in found])
    return torch.arange(spokes).repeat_interleave(counts), torch.cat(found)


# --- the data term --------------------------------------------------------------------------------


class SampledL2(nn.Module):
    """D(Ax, y) = 1/2 <omega (A x - y), A x - y> with omega in [0, 1] from a module that learns it.

    The measurements y are fully sampled; omega says how much of each is used. Weights outside of
    [0, 1] are refused, so learners need ``box={"omega": [0, 1]}``.

    Args:
        weights: ``SamplingWeights``, or a module of your own that is called without arguments and
            gives a tensor of the last axes of the measurements, differentiable in its parameters.

    Raises:
        InputError: no module.

    >>> term = SampledL2(SamplingWeights((32, 32), "lines"))
    """

    weights: nn.Module

    def __init__(self, weights: nn.Module) -> None:
        super().__init__()
        if isinstance(weights, type) or not isinstance(weights, nn.Module):
            raise InputError(
                "weights",
                given=shown(weights),
                expected="a module that gives the weights, such as SamplingWeights((h, w))",
                remedy="Weights that are known are for WeightedL2(tensor).",
            )
        self.weights = weights

    def tie(self, y: Tensor) -> Quadratic:
        """D(., y).

        Raises:
            InputError: weights of another shape than the last axes of y.
            MissingPropertyError: weights outside of [0, 1].
        """
        omega = self.weights()
        if not isinstance(omega, Tensor) or not omega.is_floating_point():
            raise InputError(
                "weights",
                given=f"{type(self.weights).__name__} that gives {shown(omega)}",
                expected="a floating-point tensor",
            )
        low, high = float(omega.detach().min()), float(omega.detach().max())
        if not (low >= -SLACK and high <= 1 + SLACK):
            raise MissingPropertyError(
                "weights",
                given=f"numbers from {low:.3g} to {high:.3g}",
                expected="numbers in [0, 1]",
                remedy='Give the learner a box: box={"omega": [0, 1]}.',
            )
        return Quadratic(y, _rounded(_placed(omega, y)).to(y.dtype))

    def binary(self, *, threshold: float = 0.0, fraction: float | None = None) -> SampledL2:
        """The data term of the binary pattern, with nothing to learn; see
        ``SamplingWeights.binary``.

        Raises:
            InputError: weights of another class.
        """
        if not isinstance(self.weights, SamplingWeights):
            raise InputError(
                "weights",
                given=type(self.weights).__name__,
                expected="SamplingWeights",
                remedy="Make SamplingWeights(shape, start=...) of your own binary pattern.",
            )
        return SampledL2(self.weights.binary(threshold=threshold, fraction=fraction))


def _rounded(omega: Tensor) -> Tensor:
    """Without what rounding has carried out of [0, 1].

    why not ``clamp``: its derivative at the ends themselves is zero, so that nothing would leave
    them.
    """
    omega = torch.where(omega < 0, 0.0, omega)
    return torch.where(omega > 1, 1.0, omega)


def _placed(omega: Tensor, y: Tensor) -> Tensor:
    """omega with ones in the place of the axes of y that share it: (1, ..., *shape), and a last
    one where y holds complex numbers.

    Raises:
        InputError: other last axes.
    """
    own, count = tuple(omega.shape), omega.dim()
    if y.dim() > count and tuple(y.shape[y.dim() - count :]) == own:
        return omega.reshape(*[1] * (y.dim() - count), *own)
    if y.dim() > count + 1 and y.shape[-1] == 2 and tuple(y.shape[-count - 1 : -1]) == own:
        return omega.reshape(*[1] * (y.dim() - count - 1), *own, 1)
    raise InputError(
        "weights",
        given=f"a pattern of shape {own} for measurements of shape {tuple(y.shape)}",
        expected="the last axes of the measurements",
        remedy="Make it for their size: SamplingWeights(shape).",
    )


# --- the penalty ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparsityPenalty:
    """p(theta) = (beta0 sum s + beta1 sum s (1 - s)) / count over the numbers s of a pattern.

    The first part counts measurements, the second one, concave, drives numbers to 0 or 1.

    Args:
        first, count: where the numbers stand in theta; ``of`` finds them.
        beta0, beta1: >= 0.

    Raises:
        InputError: a value out of range.
    """

    first: int
    count: int
    beta0: float = 0.1
    beta1: float = 0.1

    def __post_init__(self) -> None:
        tidy(self)
        check_integer("first", self.first, 0)
        check_integer("count", self.count, 1)
        for name, value in (("beta0", self.beta0), ("beta1", self.beta1)):
            check_number(name, value, lambda v: v >= 0, "a number >= 0")

    @classmethod
    def of(cls, energy: nn.Module, beta0: float = 0.1, beta1: float = 0.1) -> Self:
        """For the pattern of an energy, whose data term is ``SampledL2(SamplingWeights(...))``.

        Raises:
            InputError: no such pattern, or nothing to learn of it.
        """
        patterns = {id(m.numbers) for m in energy.modules() if isinstance(m, SamplingWeights)}
        place = 0
        for _, t in named_trainable(energy):
            if id(t) in patterns:
                return cls(place, t.numel(), beta0, beta1)
            place += t.numel()
        raise InputError(
            "energy",
            given="no SamplingWeights with numbers to learn",
            expected="an Energy with fidelity=SampledL2(SamplingWeights(shape))",
        )

    def __call__(self, theta: Tensor) -> Tensor:
        """theta (d,) -> a scalar."""
        s = _rounded(theta[self.first : self.first + self.count])
        return (self.beta0 * s + self.beta1 * s * (1 - s)).sum() / self.count


# --- what was learned -----------------------------------------------------------------------------


def masked(physics: nn.Module, mask: Tensor) -> nn.Module:
    """A copy of an operator with a mask, of which only what ``mask`` keeps is measured.

    Args:
        physics: ``deepinv.physics.MRI``, ``MultiCoilMRI``, or another one that keeps a tensor
            ``mask`` (zero frequency in the middle, as deepinv has it); it is not changed.
        mask: of its last axes, such as ``SamplingWeights.mask()``.

    Raises:
        InputError: an operator without a mask, or one of another shape.
    """
    own = tensor_named(physics, "mask")
    if own is None:
        raise InputError(
            "physics",
            given=f"{type(physics).__name__} without a mask",
            expected="MRI, MultiCoilMRI or another physics with a mask",
            remedy="Keep all measurements, with the data term SampledL2 of the binary pattern: "
            "its minimizers are those of the measurements that are kept.",
        )
    if own.dim() < mask.dim() or tuple(own.shape[own.dim() - mask.dim() :]) != tuple(mask.shape):
        raise InputError(
            "mask",
            given=f"shape {tuple(mask.shape)}",
            expected=f"the last axes of {tuple(own.shape)}, the mask of the physics",
        )
    # why a cast: an operator with a mask is one of deepinv's, or made like them
    return with_tensors(cast(LinearPhysicsLike, physics), {"mask": own.detach() * mask.to(own)})
