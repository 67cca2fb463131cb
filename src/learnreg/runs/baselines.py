"""What a learned method is compared with: what the measurements show without it, and methods that
learn nothing or one number.

``seen_in`` is part of every evaluation. The others are asked for: their results go to
``Report(..., baselines={"tuned TV": tuned_tv(...)})``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.asking import offers
from ..core.errors import InputError
from ..core.measured import Measured, Native, measured
from ..core.params import flatten, trainable
from ..core.ranges import check_integer, check_positive
from ..metrics.quality import qualities
from ..problems.bilevel import WithParams
from ..problems.energy import Energy
from ..regularizers import TV
from ..regularizers.grouped import Channels
from ..solvers.solve import solve

MAKERS = "deepinv"
"""Whose classes are known by name."""

OWN = ("A", "A_adjoint", "V", "U", "V_adjoint", "U_adjoint")
"""Methods that make another operator of a class that overrides them."""

AS_IT_IS = {
    "Blur": "blurred",
    "BlurFFT": "blurred",
    "SpaceVaryingBlur": "blurred",
    "TiledSpaceVaryingBlur": "blurred",
    "Inpainting": "measurement",
    "Demosaicing": "mosaic",
}
"""Measurements that are pictures of the same size."""

ENLARGED = ("Downsampling", "DownsamplingMatlab")
REAL = "RealImages"
"""Our operator of real images inside one of ``ZERO_FILLED``."""

ZERO_FILLED = ("MRI", "DynamicMRI", "SequentialMRI", "MultiCoilMRI", "NonCartesianMRI", REAL)

TV_RANGE, TV_STEPS = 1e4, 12
"""The weights that are searched, largest over smallest, and how many are tried."""

TV_BUDGET = 500
"""Solver steps per image and weight: a baseline may be a little off where solves are hard."""

STILL = 3e-5
"""Gradient norms over curvature and size of the image at which the pictures move no more."""

SMALL = 1e-12
"""The weight of a regularizer that is not there."""

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Seen:
    """A picture made of measurements without any learning.

    Attributes:
        name: "noisy", "blurred", "zero-filled", "filtered back-projection", "bicubic" or
            "adjoint A^T y".
        image: (b, c, ...).
    """

    name: str
    image: Tensor


@dataclass(frozen=True)
class Baseline:
    """Pictures of another method, measured as ``Run.evaluate`` measures them.

    Attributes:
        images: (b, c, ...), of the same held-out images.
        psnr, ssim: one value per image.
        words: what it is, for the page.
    """

    images: Tensor
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    words: str = ""

    @classmethod
    def of(cls, images: Tensor, truth: Tensor, words: str = "") -> Baseline:
        """Measured against the true images.

        Raises:
            InputError: images of another shape.
        """
        if images.shape != truth.shape:
            raise InputError(
                "images",
                given=f"shape {tuple(images.shape)}",
                expected=f"shape {tuple(truth.shape)}, that of the true images",
                remedy="Reconstruct the same held-out images in the same order.",
            )
        images = images.detach()
        return cls(images, *qualities(images, truth), words)


class FBP(Protocol):
    """A tomography that knows its filtered back-projection."""

    def fbp(self, y: Tensor) -> Tensor: ...


class KnowsIdentity(Protocol):
    """An operator that knows whether it is the identity."""

    is_identity: bool


class WithOperator(Protocol):
    """An energy of this library."""

    operator: KnowsIdentity
    physics: nn.Module


class MadeOfParameters(Protocol):
    """A physics whose tensors are learned."""

    def fixed(self) -> nn.Module:
        """The physics at the present parameters."""
        ...


class Levelled(Protocol):
    """A Gaussian noise model."""

    sigma: Tensor | float


class Pictures(Protocol):
    """Pairs with ground truth."""

    @property
    def x(self) -> Tensor: ...
    @property
    def y(self) -> Tensor: ...
    @property
    def physics(self) -> nn.Module: ...


def seen_in(energy: object, data: Native | Measured, start: Tensor, truth: Tensor) -> Seen:
    """What the measurements show before anything is learned, and what that is called.

    Denoising: y, "noisy". Blurs, masks and mosaics that keep the size: y. Super-resolution: y
    enlarged by bicubic interpolation. Tomography: filtered back-projection, as deepinv has it.
    MRI: A^T y, "zero-filled". All else: t A^T y with the t >= 0 that minimizes ||t A A^T y - y||.

    Args:
        energy: knows its physics, or what is not known is called "adjoint A^T y".
        data: measurements of b images.
        start: (b, c, ...), t A^T y with that t, as ``energy.start`` gives it.
        truth: (b, c, ...), true images; only their shape is used.
    """
    if not offers(energy, WithOperator):
        return Seen("start", start)
    if energy.operator.is_identity:
        return Seen("noisy", start)
    kind, y = kind_of(energy.physics), measured(data)
    if isinstance(y.y, Tensor) and not y.params:
        if kind in AS_IT_IS and y.y.shape == truth.shape:
            return Seen(AS_IT_IS[kind], y.y)
        if kind in ENLARGED and y.y.dim() == 4 and y.y.is_floating_point():
            size = tuple(truth.shape[-2:])
            return Seen("bicubic", nn.functional.interpolate(y.y, size=size, mode="bicubic"))
        if (found := _back_projected(energy.physics, y.y, truth)) is not None:
            return Seen("filtered back-projection", found)
    return Seen("zero-filled" if kind in ZERO_FILLED else "adjoint A^T y", start)


def kind_of(physics: nn.Module) -> str:
    """The class of deepinv that a physics is, or our RealImages; "" for an operator of the user's
    own.
    """
    if offers(physics, MadeOfParameters):
        return kind_of(physics.fixed())
    if any(name in vars(physics) for name in OWN):
        return ""
    for kind in type(physics).__mro__:
        ours = kind.__name__ == REAL and kind.__module__.partition(".")[0] == __name__.split(".")[0]
        if ours or kind.__module__.partition(".")[0] == MAKERS:
            return kind.__name__
        if any(name in vars(kind) for name in OWN):
            return ""
    return ""


def _back_projected(physics: nn.Module, y: Tensor, truth: Tensor) -> Tensor | None:
    """Filtered back-projection; None where the physics has none for such measurements."""
    if not offers(physics, FBP):
        return None
    try:
        with torch.no_grad():
            found = physics.fbp(y)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        # why: deepinv has it for some geometries and types only, and A^T y for all
        return None
    fits = isinstance(found, Tensor) and found.shape == truth.shape
    return found if fits and bool(found.isfinite().all()) else None


# --- further methods, on demand -------------------------------------------------------------------


def tuned_tv(
    train: Pictures,
    test: Pictures,
    *,
    fidelity: object | None = None,
    smoothing: float | None = None,
    steps: int = TV_STEPS,
    constraint: object | None = None,
) -> Baseline:
    """Total variation with the one weight that suits the training images best.

    The weight with the smallest mean squared error on ``train``: a golden-section search over its
    logarithm, between 1e-4 and 1 times the curvature of the data term times the largest pixel.

    Args:
        train, test: pairs; nothing of ``test`` is used to choose the weight.
        fidelity: the data term, ``L2()`` when None; that of the learned method makes it fair.
        smoothing: of TV, a hundredth of the largest true pixel when None.
        steps: weights that are tried.
        constraint: bounds of the pixels; again, that of the learned method makes it fair.

    Returns:
        Baseline for ``Report(..., baselines={"tuned TV": ...})``.

    Example:
        >>> import torch, deepinv, learnreg as lr
        >>> from learnreg.runs.baselines import tuned_tv
        >>> physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
        >>> train, test = lr.data.pairs("phantoms", physics, size=16, split=(2, 1), seed=0)
        >>> bool(tuned_tv(train, test, steps=4).psnr[0] > 20)
        True
    """
    check_integer("steps", steps, 2)
    scale = float(train.x.abs().max()) or 1.0
    width = check_positive("smoothing", 0.01 * scale if smoothing is None else smoothing)
    level = _Level.of(train, fidelity, width, constraint)

    def loss(log_weight: float) -> float:
        error = level.restored(log_weight, train).to(train.x.device) - train.x
        mse = float(error.abs().double().square().mean())
        return mse if math.isfinite(mse) else math.inf

    high = math.log(scale * level.curvature)
    best = _least(loss, high - math.log(TV_RANGE), high, steps)
    words = (
        f"total variation with the weight {math.exp(best):.3g}, the best for the training images"
    )
    level.last.clear()
    return Baseline.of(level.restored(best, test), test.x, words)


@dataclass(frozen=True)
class _Level:
    """The lower level of ``tuned_tv``: one energy, so that its operator is probed once.

    Attributes:
        energy: with total variation of any weight.
        smoothing: of it.
        curvature: L of the data term.
        last: the reconstructions before, where the next ones start.
    """

    energy: Energy
    smoothing: float
    curvature: float
    last: list[Tensor]

    @classmethod
    def of(
        cls,
        pairs: Pictures,
        fidelity: object | None,
        smoothing: float,
        constraint: object | None = None,
    ) -> _Level:
        channels: Channels = "joint" if pairs.x.is_complex() else "separate"
        tv = TV(SMALL, smoothing, channels=channels)
        energy = _fixed(Energy(pairs.physics, tv, fidelity, constraint)).to(_real(pairs.x))
        found = energy.at(_data(pairs)).bounds().L.value
        return cls(energy, smoothing, found if 0 < found < math.inf else 1.0, [])

    def restored(self, log_weight: float, pairs: Pictures) -> Tensor:
        """The reconstructions of TV with this weight."""
        theta = torch.tensor([log_weight, math.log(self.smoothing)], dtype=_real(pairs.x))
        size = float(pairs.x.abs().max()) * math.sqrt(pairs.x[0].numel())
        found = solve(
            self.energy.with_theta(theta.to(pairs.x.device)),
            _data(pairs),
            stationarity=STILL * self.curvature * (size or 1.0),
            x0=self.last[-1] if self.last else None,
            budget=TV_BUDGET,
            throw=False,
        ).value
        if not found.is_complex():
            self.last[:] = [found]
        return found


def _fixed(energy: Energy) -> Energy:
    """With nothing to learn in data term and physics, which are copied for that."""
    if not energy.learns_data:
        return energy
    copied = energy.with_theta(flatten(trainable(energy))).untrusted()
    for part in (copied.physics, copied.fidelity):
        for t in trainable(part) if isinstance(part, nn.Module) else ():
            t.requires_grad_(False)
    return copied


def _data(pairs: Pictures) -> Native | Measured:
    params = pairs.params if offers(pairs, WithParams) else None
    return Measured(pairs.y, params) if params else pairs.y


def _real(x: Tensor) -> torch.dtype:
    return x.dtype.to_real() if x.is_complex() else x.dtype


def denoised(denoiser: Callable[[Tensor, float], Tensor], test: Pictures, words: str) -> Baseline:
    """A denoiser of your own, or one of deepinv with its weights at hand; nothing is downloaded.

    Args:
        denoiser: (y, sigma) -> images, as the models of deepinv.
        test: pairs of denoising with Gaussian noise.
        words: what it is, for the page.

    Raises:
        InputError: another physics, or images of another shape.
    """
    sigma = _noise_level(test.physics)
    with torch.no_grad():
        return Baseline.of(denoiser(test.y, sigma), test.x, words)


def bm3d(test: Pictures) -> Baseline:
    """BM3D, told the noise level, with the package ``bm3d`` if that is installed.

    Raises:
        InputError: the package is missing, or another physics than Gaussian denoising.
    """
    sigma = _noise_level(test.physics)
    try:
        package = importlib.import_module("bm3d")
    except ImportError as error:
        raise InputError(
            "bm3d",
            given="no such package",
            expected="the package bm3d",
            remedy="Install it (pip install bm3d; mind its licence), or leave this baseline out.",
        ) from error
    pictures = [
        torch.as_tensor(package.bm3d(y.movedim(0, -1).cpu().double().numpy(), sigma))
        .reshape(*y.shape[1:], y.shape[0])
        .movedim(-1, 0)
        for y in test.y
    ]
    images = torch.stack(pictures).to(test.x.dtype)
    return Baseline.of(images, test.x, f"BM3D, told the noise level {sigma:g}")


def _noise_level(physics: nn.Module) -> float:
    noise = dict(physics.named_children()).get("noise_model")
    level = noise.sigma if kind_of(physics) == "Denoising" and offers(noise, Levelled) else None
    if level is None or (isinstance(level, Tensor) and level.numel() != 1):
        raise InputError(
            "physics",
            given=type(physics).__name__,
            expected="denoising with Gaussian noise of one level",
            remedy="Leave this baseline out.",
        )
    return float(level)


def _least(function: Callable[[float], float], low: float, high: float, steps: int) -> float:
    """Where a function of one number is least, by golden sections: the best of what was tried."""
    seen: dict[float, float] = {}

    def at(point: float) -> float:
        if point not in seen:
            seen[point] = function(point)
        return seen[point]

    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    while len(seen) < steps:
        if at(left) <= at(right):
            low, high, left, right = low, right, right - GOLDEN * (right - low), left
        else:
            low, high, left, right = left, high, right, left + GOLDEN * (high - left)
    return min(seen, key=lambda point: seen[point])
