"""Which tensor of a physics is learned, by name: small frozen settings for configuration files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from ..core.errors import InputError
from ..core.ranges import check_choice, check_flag, check_positive, tidy
from .given import own_tensors
from .kernel_parameters import (
    DiscKernel,
    Free,
    GaussianKernel,
    MotionKernel,
    RadialKernel,
    SimplexKernel,
    odd_size,
)
from .learned import LearnedPhysics

Kind: TypeAlias = Literal["gaussian", "anisotropic", "radial", "simplex", "motion", "disc", "free"]
Size: TypeAlias = tuple[int, int]

STARTS: dict[str, float] = {"motion": 2.0}
"""Widths that kernels start from, in pixels, unless the user says one; 1 for all others."""

MAKERS: dict[str, Callable[[Size, int, float], nn.Module]] = {
    "gaussian": lambda size, channels, start: GaussianKernel(size, channels, std=start),
    "anisotropic": lambda size, channels, start: GaussianKernel(
        size, channels, std=start, anisotropic=True
    ),
    "radial": lambda size, channels, start: RadialKernel(size, channels, start=start),
    "simplex": lambda size, channels, start: SimplexKernel(size, channels, start=start),
    "motion": lambda size, channels, start: MotionKernel(size, channels, length=start),
    "disc": lambda size, channels, start: DiscKernel(size, channels, radius=start),
    "free": lambda size, channels, start: Free(size, channels, start=start),
}
"""Kernels of a size, with a number of channels, from a start."""

KEYS = {
    "size": "learn_size",
    **dict.fromkeys(("std", "start", "length", "radius"), "learn_start"),
}
"""What a user wrote, by the name of the argument that it becomes."""


@dataclass(frozen=True)
class KernelLearning:
    """A kernel that is learned together with the regularizer: the kernel of the physics makes
    simulated measurements, and the model does not know it.

    Args:
        learn: what is known of it: its shape up to one number (gaussian, disc), two (motion: length
            and angle) or three (anisotropic gaussian), one number per distance from the middle
            (radial), that it is >= 0 with sum 1 (simplex), nothing (free); fixed when None
        learn_size: height and width of the learned kernel, odd; those of the kernel above when None
        learn_start: where it starts, in pixels: standard deviation, length (motion) or radius
            (disc); 1 when None, 2 for motion
        learn_channels: one kernel for every channel, not one for all
    """

    learn: Kind | None = None
    learn_size: int | None = None
    learn_start: float | None = None
    learn_channels: bool = False

    def __post_init__(self) -> None:
        tidy(self)
        check_flag("learn_channels", self.learn_channels)
        check_positive("learn_start", self.learn_start, optional=True)
        if self.learn is None:
            for name in ("learn_size", "learn_start"):
                if vars(self)[name] is not None or self.learn_channels:
                    raise InputError(
                        name if vars(self)[name] is not None else "learn_channels",
                        given="without learn",
                        expected="the kind of kernel that is learned",
                        remedy='For example learn = "gaussian".',
                    )
            return
        check_choice("learn", self.learn, tuple(MAKERS))
        with _by_key():
            size = odd_size(5 if self.learn_size is None else self.learn_size)
            if self.learn_size is not None or self.learn != "motion":
                MAKERS[self.learn](size, 1, self._start)  # refuses starts

    @property
    def _start(self) -> float:
        own = STARTS.get(self.learn or "", 1.0)
        return own if self.learn_start is None else self.learn_start

    def build(self, physics: nn.Module, channels: int = 1) -> nn.Module:
        """The operator of the model: ``physics`` where nothing is learned, else a
        ``LearnedPhysics`` over it.

        Args:
            physics: has a tensor ``filter``; it is not changed.
            channels: of the images.

        Raises:
            InputError: a kernel that does not fit.
        """
        if self.learn is None:
            return physics
        if self.learn_size is not None:
            size = (self.learn_size, self.learn_size)
        else:
            rows, columns = own_tensors(physics)["filter"].shape[-2:]
            size = (max(3, int(rows) | 1), max(3, int(columns) | 1))
        count = channels if self.learn_channels else 1
        with _by_key():
            kernel = MAKERS[self.learn](size, count, self._start)
        return LearnedPhysics(physics, {"filter": kernel})


@contextmanager
def _by_key() -> Iterator[None]:
    """Name the key in the place of the argument of a kernel."""
    try:
        yield
    except InputError as error:
        key = KEYS.get(error.what, error.what)
        raise InputError(
            key,
            given=error.given,
            expected=error.expected,
            remedy=error.remedy.replace("size=", "learn_size = "),
        ) from error
