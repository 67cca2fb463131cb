"""A physics whose tensors are made of parameters to learn: a blur with an unknown kernel, say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from ..core.errors import InputError, MissingPropertyError
from ..core.measured import Native, tensors_of
from ..core.params import named_trainable
from ..core.ranges import shown
from ..operators.foreign import LinearPhysicsLike
from ..operators.private import clone, registered, shallow, tensor_named, widened
from .kernel_parameters import in_words, units_of

STEP, TOLERANCE = 1e-4, 1e-4
"""Relative step of the central differences that the derivative is held against, and what may lie
between the two: 1e-9 is seen for operators that are smooth in their tensors.
"""

MOVES = 1e-7
"""Relative change of a tensor by its parameters at least: below, no gradient leads away."""

LARGEST_KERNEL = 64
"""Pixels along a side: a larger tensor is a mask or an image, not a kernel."""

PROBE = 32
"""Pixels of the images on which operators of any size are looked at."""


class LearnedPhysics(LinearPhysics):
    """A physics A(theta) = base(tensors of theta), as ``base.A(x, filter=k(theta))`` in deepinv.

    Its trainable parameters are those of the parametrizations, and of the base where it has some of
    its own. The base is lent: it is applied through copies that share its tensors, and stays as it
    is bit for bit. Images and measurements are those of the base.

    Args:
        base: a linear deepinv physics that takes the tensors as arguments: ``Blur``, ``BlurFFT``,
            ``Downsampling`` (``filter``), ``SpaceVaryingBlur`` (``filters``, ``multipliers``),
            ``MRI``, ``Inpainting`` (``mask``), ``MultiCoilMRI`` (``mask``, ``coil_maps``), products
            of them, your own.
        parametrizations: by the name of the tensor, a module whose ``forward()`` makes it.
        image: shape (c, h, w) of an image that the base takes, on which derivatives are compared
            with central differences; found out when None.

    Raises:
        InputError: a tensor that the base does not have or use, or of which A x has no derivative
            (the angles of ``Tomography``); a parametrization whose parameters do not move it; no
            image was found that the base takes.
        MissingPropertyError: a base without an adjoint.

    >>> import deepinv, torch
    >>> from learnreg.physics import GaussianKernel
    >>> blur = deepinv.physics.Blur(torch.ones(1, 1, 1, 1), padding="reflect")
    >>> learned = LearnedPhysics(blur, {"filter": GaussianKernel(5, std=0.5)})
    >>> learned.A(torch.zeros(1, 1, 8, 8)).shape, learned.learned().filter.shape
    (torch.Size([1, 1, 8, 8]), torch.Size([1, 1, 5, 5]))
    """

    base: LinearPhysicsLike
    parametrizations: nn.ModuleDict

    def __init__(
        self,
        base: nn.Module,
        parametrizations: Mapping[str, nn.Module],
        image: tuple[int, ...] | None = None,
    ) -> None:
        lent = _checked_base(base)
        children, plain = dict(lent.named_children()), vars(lent)
        noise = children.get("noise_model", plain.get("noise_model"))
        noise = shallow(noise) if isinstance(noise, nn.Module) else noise
        super().__init__(A=_unused, noise_model=noise, sensor_model=_unused)
        self.base = lent
        self.parametrizations = nn.ModuleDict(_checked_modules(lent, parametrizations))
        with torch.inference_mode(False):  # which would leave autograd nothing to do
            _look(self, image)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the base at the present parameters, by name; differentiable."""
        made = {}
        for name, module in self.parametrizations.items():
            made[name] = module()
            if not isinstance(made[name], Tensor):
                raise InputError(
                    f"parametrizations[{name!r}]",
                    given=f"{type(module).__name__}, which gives {type(made[name]).__name__}",
                    expected="a module whose forward() gives a tensor",
                )
        return made

    def A(self, x: Tensor, **kwargs: object) -> Tensor:
        """A(theta) x; other parameters of the base pass as in deepinv.

        Raises:
            InputError: images that the base does not take, a parameter that is learned.
        """
        tensors = self.tensors()
        _check_windows(tensors, x)
        try:
            return shallow(self.base).A(x, **tensors, **self._others(kwargs))
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            raise self._refused("images", x, tensors, error) from error

    def A_adjoint(self, y: Native, **kwargs: object) -> Tensor:
        """A(theta)^T y, by autograd where the base has no adjoint of its own.

        Raises:
            InputError: measurements that the base does not take.
        """
        tensors = self.tensors()
        others, like = self._others(kwargs), tensors_of(y)[0]
        copied = shallow(self.base)
        try:
            if self._by_autograd():
                return _transposed(copied, like, {**tensors, **others})
            return copied.A_adjoint(y, **tensors, **others)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            raise self._refused("measurements", like, tensors, error) from error

    def noise(self, x: Native, **kwargs: object) -> Native:
        """As the base adds it: masked where it masks."""
        return self.fixed().noise(x, **kwargs)

    def sensor(self, x: Native) -> Native:
        """That of the base."""
        return self.base.sensor(x)

    def update_parameters(self, **kwargs: object) -> None:
        """New values for tensors of the base that are not learned; in a copy of it."""
        given = {name: value for name, value in kwargs.items() if value is not None}
        others = self._others(given)
        if others:
            copied = shallow(self.base)
            copied.update_parameters(**others)
            self.base = copied

    def fixed(self) -> LinearPhysicsLike:
        """The physics at the present parameters: of the class of the base, sharing its tensors."""
        with torch.no_grad():
            copied = shallow(self.base)
            copied.update_parameters(**{name: t.detach() for name, t in self.tensors().items()})
        copied.noise_model = self.noise_model
        return copied

    def learned(self) -> LinearPhysicsLike:
        """What was learned as a plain deepinv physics of the class of the base, a deep copy."""
        return clone(self.fixed())

    def kernels(self) -> dict[str, Tensor]:
        """The learned tensors that are pictures of kernels, (k, 1, h, w), for reports."""
        with torch.no_grad():
            found = {name: t.detach().clone() for name, t in self.tensors().items()}
        return {
            name: t.reshape(-1, 1, *t.shape[-2:])
            for name, t in found.items()
            if not t.is_complex() and t.dim() == 4 and max(t.shape[-2:]) <= LARGEST_KERNEL
        }

    def words(self) -> str:
        """What was learned, in one line: sizes and widths of kernels, ranges of other tensors."""
        with torch.no_grad():
            return "; ".join(f"{name}: {in_words(t)}" for name, t in self.tensors().items())

    def units(self) -> Tensor:
        """A natural step of every entry of theta (d,), in its order."""
        steps = {
            f"parametrizations.{name}.{key}": step
            for name, module in self.parametrizations.items()
            for key, step in units_of(module).items()
        }
        own = [torch.full((p.numel(),), steps.get(name, 1.0)) for name, p in named_trainable(self)]
        return torch.cat(own or [torch.zeros(0)])

    def __dir__(self) -> list[str]:
        """With the tensors of the base, which ``update`` takes."""
        named = (*self.base.named_buffers(), *self.base.named_parameters())
        own = {name.rpartition(".")[2] for name, _ in named} - set(self.parametrizations)
        return sorted({*super().__dir__(), *own})

    def _others(self, given: Mapping[str, object]) -> dict[str, object]:
        """Parameters that are not learned.

        Raises:
            InputError: one that is.
        """
        learned = sorted(set(given) & set(self.parametrizations))
        if learned:
            raise InputError(
                ", ".join(learned),
                given="a tensor for it",
                expected="none: it is made of the parameters of this physics",
                remedy="Use the physics inside, physics.base.",
            )
        return dict(given)

    def _by_autograd(self) -> bool:
        """Whether the base has no adjoint of its own; that of deepinv by autograd is in float32."""
        missing = vars(self.base).get("A_adj", True) is None
        return missing and type(self.base).A_adjoint is LinearPhysics.A_adjoint

    def _refused(
        self, what: str, like: Tensor, tensors: Mapping[str, Tensor], error: Exception
    ) -> InputError:
        shapes = ", ".join(f"{name} of shape {tuple(t.shape)}" for name, t in tensors.items())
        return InputError(
            f"physics {type(self.base).__name__}",
            given=f"{what} of shape {tuple(like.shape)} with {shapes}",
            expected=f"shapes that go together (it says: {error})",
            remedy="A kernel has one channel or as many as the images, one slice or as many as "
            "there are images, and fits into them.",
        )


def _unused(x: Tensor, **kwargs: object) -> Tensor:
    """In the place of functions that are overridden; one with a name, which pickle finds."""
    return x


def _check_windows(tensors: Mapping[str, Tensor], x: Tensor) -> None:
    """Refuse kernels that are larger than the images: deepinv wraps or mirrors them in silence.

    Raises:
        InputError: says both sizes.
    """
    for name in ("filter", "filters"):
        t = tensors.get(name)
        if t is None or x.dim() < 3:
            continue
        axes = min(t.dim(), x.dim()) - 2 if name == "filter" else 2
        if any(k > n for k, n in zip(t.shape[-axes:], x.shape[-axes:], strict=True)):
            raise InputError(
                name,
                given=f"a kernel of {_by(t.shape[-axes:])} pixels for images of "
                f"{_by(x.shape[-axes:])}",
                expected="a kernel that fits into the images",
                remedy="Choose a smaller kernel or larger images.",
            )


def _by(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))


def _transposed(physics: LinearPhysicsLike, y: Tensor, tensors: Mapping[str, object]) -> Tensor:
    """A^T y of a linear A, by autograd, differentiable in the tensors.

    Raises:
        ValueError: the physics does not know the shape of its images.
    """
    if physics.img_size is None:
        raise ValueError("img_size must be set where the adjoint is made by autograd")
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        x = torch.zeros((y.shape[0], *physics.img_size), dtype=y.dtype, device=y.device)
        x.requires_grad_()
        (found,) = torch.autograd.grad(physics.A(x, **tensors), x, y, create_graph=further)
    return found if further else found.detach()


# --- what is lent ---------------------------------------------------------------------------------


def _checked_base(base: object) -> LinearPhysicsLike:
    """The base as what it is.

    Raises:
        InputError: no physics, or one that learns already.
        MissingPropertyError: one without an adjoint.
    """
    from deepinv.physics import Physics

    if not isinstance(base, Physics):
        raise InputError(
            "base",
            given=shown(base),
            expected="a deepinv.physics object",
            remedy='For example deepinv.physics.Blur(kernel, padding="reflect").',
        )
    if not isinstance(base, LinearPhysics):
        raise MissingPropertyError(
            "base",
            given=f"{type(base).__name__}, which offers no adjoint",
            expected="a LinearPhysics",
        )
    if isinstance(base, LearnedPhysics):
        raise InputError(
            "base",
            given="a LearnedPhysics",
            expected="the physics inside",
            remedy="Give all parametrizations to one LearnedPhysics, over physics.base.",
        )
    return registered(cast(LinearPhysicsLike, base))


def _checked_modules(
    base: LinearPhysicsLike, given: Mapping[str, nn.Module]
) -> dict[str, nn.Module]:
    """The parametrizations.

    Raises:
        InputError: none, no modules, names of no tensor, a tensor that is learned by itself.
    """
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            "parametrizations",
            given=shown(given),
            expected="modules by the names of tensors",
            remedy='For example {"filter": lr.physics.GaussianKernel(5)}.',
        )
    keeps = sorted(_names(base))
    for name, module in given.items():
        if not isinstance(module, nn.Module):
            raise InputError(
                f"parametrizations[{name!r}]",
                given=shown(module),
                expected="a module whose forward() makes the tensor",
                remedy="For example lr.physics.GaussianKernel(5) or lr.physics.Free(start=mask).",
            )
        if name not in keeps:
            raise InputError(
                "parametrizations",
                given=f"{name!r} for {type(base).__name__}",
                expected=f"names of its tensors: {', '.join(keeps) or 'it has none'}",
                remedy="Hold the tensor in a buffer (register_buffer), and take it as an argument "
                "of A and A_adjoint.",
            )
        kept = tensor_named(base, name)
        if kept is not None and kept.requires_grad:
            raise InputError(
                "parametrizations",
                given=f"{name!r}, which requires a gradient in {type(base).__name__} already",
                expected="one way to learn it",
                remedy=f"Call base.{name}.requires_grad_(False), or leave the parametrization out.",
            )
    return dict(given)


def _names(base: LinearPhysicsLike) -> set[str]:
    """Of the tensors of a physics and its parts, also of those that are None so far."""
    modules = [base, *_inside(base)]
    return {
        name
        for module in modules
        for table in (vars(module)["_buffers"], vars(module)["_parameters"])
        for name in table
        if not name.startswith("_")
    }


def _inside(base: nn.Module) -> Iterator[nn.Module]:
    """All operators inside a physics, its noise left out."""
    for name, child in base.named_children():
        if name != "noise_model":
            yield child
            yield from _inside(child)


# --- does A depend on it, and does autograd know how? ---------------------------------------------


def _look(physics: LearnedPhysics, image: tuple[int, ...] | None) -> None:
    """Compare derivatives of A x by the tensors with central differences, in float64.

    Raises:
        InputError: says which tensor, and what is wrong with it.
    """
    wide = widened(physics)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tensors = wide.tensors()
    x = _image(wide, tensors, image, generator)
    for name, module in wide.parametrizations.items():
        _check_derivative(wide, name, tensors, x, generator)
        _check_moves(name, module, generator)


def _image(
    wide: LearnedPhysics,
    tensors: Mapping[str, Tensor],
    image: tuple[int, ...] | None,
    generator: torch.Generator,
) -> Tensor:
    """Random images that the base takes.

    Raises:
        InputError: none was found.
    """
    count = max((t.shape[0] for t in tensors.values() if t.dim() >= 4), default=1)
    shapes = list(_shapes(wide.base, tensors)) if image is None else [tuple(image)]
    said: Exception | None = None
    for shape in shapes:
        x = torch.randn((count, *shape), generator=generator, dtype=torch.float64)
        x = x.to(next(iter(tensors.values())).device)
        try:
            with torch.no_grad():
                wide.A(x)
            return x
        except InputError as error:
            said = said or error
    _refuse_missing(wide.base, tensors)
    raise InputError(
        "image",
        given=f"images of shape {' or '.join(map(str, shapes))}, which {type(wide.base).__name__} "
        f"does not take with these tensors ({said})",
        expected="the shape (c, h, w) of images that it takes",
        remedy="Pass image=(channels, height, width), or tensors of other shapes.",
    )


def _refuse_missing(base: LinearPhysicsLike, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a base that waits for tensors, such as a mask for every image.

    Raises:
        InputError: names them.
    """
    missing = sorted(
        name for name in _names(base) - set(tensors) if tensor_named(base, name) is None
    )
    if missing:
        raise InputError(
            "base",
            given=f"{type(base).__name__}, whose {', '.join(missing)} is None",
            expected="a physics with all its tensors",
            remedy=f"Make it with ones, for example {missing[0]}=torch.ones(1, h, w); "
            f"params={{{missing[0]!r}: ...}} replace them for every image.",
        )


def _shapes(base: LinearPhysicsLike, tensors: Mapping[str, Tensor]) -> Iterator[tuple[int, ...]]:
    """Shapes of images that a physics may take, the likeliest first."""
    side, channels, factor, spatial = PROBE, 1, 1, 2
    for module in (base, *_inside(base)):
        plain = vars(module)
        for key in ("img_size", "imsize"):
            size = plain.get(key)
            if isinstance(size, tuple | list | torch.Size) and len(size) > 1:
                yield tuple(int(n) for n in size)
                if int(size[0]) == 2:  # real images of a complex operator
                    yield (1, *(int(n) for n in size[1:]))
        maps = tensors.get("multipliers", dict(module.named_buffers()).get("multipliers"))
        if maps is not None and maps.dim() == 5:
            yield (maps.shape[1], *maps.shape[-2:])
        width = plain.get("img_width")
        if isinstance(width, int):
            yield (1, width, width)
        if isinstance(plain.get("factor"), int):
            factor *= int(str(plain["factor"]))
    for name, t in tensors.items():
        if name in ("filter", "filters") and t.dim() >= 4:
            side, channels = max(side, 2 * max(t.shape[-2:])), max(channels, t.shape[1])
            spatial = t.dim() - 2 if name == "filter" else 2
    yield (channels, *[-(-side // factor) * factor] * spatial)


def _check_derivative(
    wide: LearnedPhysics,
    name: str,
    tensors: Mapping[str, Tensor],
    x: Tensor,
    generator: torch.Generator,
) -> None:
    """Hold the derivative of <w, A x> along a random direction against a central difference.

    Raises:
        InputError: A x does not depend on the tensor, or has no derivative, or another one.
    """
    t = tensors[name].detach()
    direction = _random_like(t, generator) * (float(t.abs().amax()) or 1.0)
    kind = type(wide.base).__name__

    def applied(value: Tensor) -> tuple[Tensor, ...]:
        return tensors_of(shallow(wide.base).A(x, **{**tensors, name: value}))

    with torch.no_grad():
        middle = applied(t)
        weights = [_random_like(part, generator) for part in middle]
        ahead, behind = applied(t + STEP * direction), applied(t - STEP * direction)
        moved = [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]
    size = math.sqrt(sum(float(m.abs().square().sum()) for m in moved))
    if size <= 1e-10 * math.sqrt(sum(float(m.abs().square().sum()) for m in middle)):
        raise InputError(
            f"parametrizations[{name!r}]",
            given=f"{kind}, whose A x is the same for every {name}",
            expected=f"an operator that takes it as an argument, base.A(x, {name}=...)",
            remedy="Let A and A_adjoint take it, or learn it inside a physics of your own "
            "(see docs/learned_operators.md).",
        )

    with torch.enable_grad():
        value = t.clone().requires_grad_()
        scalar = _inner(weights, applied(value))
        exact = 0.0
        if scalar.requires_grad:
            (slope,) = torch.autograd.grad(scalar, value, allow_unused=True)
            exact = 0.0 if slope is None else float(_inner([slope], (direction,)))
    difference = abs(exact - float(_inner(weights, tuple(moved))))
    scale = size * math.sqrt(sum(float(w.abs().square().sum()) for w in weights))
    if not difference <= TOLERANCE * scale:
        raise InputError(
            f"parametrizations[{name!r}]",
            given=f"{kind}, whose A x has the derivative {exact:.3g} by autograd in a direction in "
            f"which it changes by {float(_inner(weights, tuple(moved))):.3g}",
            expected=f"an operator that autograd can differentiate in {name}",
            remedy="Such a parameter can be searched (lr.GridSearch, lr.DFO) over energies of your "
            "own, or A written with differentiable operations.",
        )


def _random_like(t: Tensor, generator: torch.Generator) -> Tensor:
    made = torch.randn(t.shape, generator=generator, dtype=t.dtype)
    return made.to(t.device)


def _inner(a: list[Tensor], b: tuple[Tensor, ...]) -> Tensor:
    """Re <a, b>, summed over the parts."""
    parts = [(u.conj() * v).real.sum() for u, v in zip(a, b, strict=True)]
    return torch.stack(parts).sum()


def _check_moves(name: str, module: nn.Module, generator: torch.Generator) -> None:
    """Refuse parameters in a vanishing gradient.

    Raises:
        InputError: names the parameter.
    """
    with torch.enable_grad():
        tensor = module()
        learned = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
        if not learned:
            return
        weights = _random_like(tensor.detach(), generator)
        scalar = _inner([weights], (tensor,))
        slopes = torch.autograd.grad(scalar, [p for _, p in learned], allow_unused=True)
    size = float(tensor.detach().abs().square().sum().sqrt())
    for (key, p), slope in zip(learned, slopes, strict=True):
        change = 0.0 if slope is None else float(slope.norm())
        if not change * max(1.0, float(p.detach().abs().amax())) > MOVES * size:
            raise InputError(
                f"parametrizations[{name!r}]",
                given=f"{type(module).__name__}, of which {key} does not move the tensor "
                f"(derivative {change:.1e})",
                expected="parameters from whose start a gradient leads away",
                remedy="Start elsewhere: kernels wider than half a pixel, masks not at zero.",
            )
        _check_slope(name, module, (key, p), slope, weights, generator)


@torch.no_grad()
def _check_slope(
    name: str,
    module: nn.Module,
    learned: tuple[str, Tensor],
    slope: Tensor | None,
    weights: Tensor,
    generator: torch.Generator,
) -> None:
    """Hold the derivative of <weights, tensor> along a random direction of one parameter against a
    central difference.

    Raises:
        InputError: autograd says something else, as where a parameter is detached halfway.
    """
    key, p = learned
    start = p.clone()
    direction = _random_like(p, generator) * (float(p.abs().amax()) or 1.0)
    ends = []
    for sign in (1, -1):
        p.copy_(start + sign * STEP * direction)
        ends.append(module().clone())  # which may be the parameter itself
    p.copy_(start)

    moved = (ends[0] - ends[1]) / (2 * STEP)
    exact = 0.0 if slope is None else float(_inner([slope], (direction,)))
    seen = float(_inner([weights], (moved,)))
    scale = float(moved.abs().square().sum().sqrt() * weights.abs().square().sum().sqrt())
    if not abs(exact - seen) <= TOLERANCE * scale:
        raise InputError(
            f"parametrizations[{name!r}]",
            given=f"{type(module).__name__}, whose tensor has the derivative {exact:.3g} by "
            f"autograd in a direction of {key} in which it changes by {seen:.3g}",
            expected="a module that autograd can differentiate in its parameters",
            remedy="Compute the tensor without detach, .data, NumPy, rounding or random numbers, "
            "and start where it has no kink.",
        )
