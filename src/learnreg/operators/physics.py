"""The door to deepinv: A and its adjoint for real tensors, checked before the first use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from ..core.bounds import Constants, Curvature
from ..core.cost import Cost
from ..core.curvature import MeanCurvature
from ..core.errors import AdjointError, InputError, MissingPropertyError
from ..core.measured import Native, tensors_of
from ..core.params import trainable
from .apart import names_per_image
from .checks import REMEDIES, probe
from .foreign import LinearPhysicsLike
from .layout import Layout, layout_of
from .private import (
    aligned,
    check_slices,
    is_narrow,
    named_tensors,
    of_images,
    physics_parts,
    registered,
    same,
    snapshot,
    widened,
    with_tensors,
)
from .spectrum import (
    Near,
    averages,
    convolution_defect,
    largest_eigenvalue,
    majorant_symbol,
    singular_values,
)

WIDE_TOLERANCE = 1e-9
"""Defects of an operator in float64; genuine ones show at most 1e-12 (52 set-ups of deepinv)."""

NARROW_TOLERANCE = 1e-4
"""The same in float32, where 4e-7 was seen; float32 steers, certificates are closed in float64."""

LIKE_A_CONVOLUTION = 0.8
"""Relative distance of A^T A from its mean symbol, at white noise, up to which preconditioners use
the symbol: 0.2 to 0.7 were seen for blurs, MRI and CT, about 1 for dense random matrices.
"""

MOST_VARIANTS = 8
"""Sets of parameters per image that are remembered with what was found out about them."""


class LinearMap:
    """A linear deepinv physics, what is known of it, and what finding that out has cost.

    Adjoint, linearity and determinism are probed at the first use of each image shape, in float64
    and in the type of the images, and again when an attribute of the physics has changed. The
    spectrum is exact for physics that know their singular values, otherwise ||A||^2 is a
    power-iteration *estimate* and the lower bound is 0.

    Args:
        physics: a ``deepinv.physics.LinearPhysics`` (Denoising, Blur, MRI, Tomography, ...).
        trusted: the operator is a variant of one that has been probed (other parameters).
        near: that one, where it has the same tensors with other values of what is learned: what was
            found out about it is not found out again, and the norm costs a few products at most.

    Raises:
        InputError: not a deepinv physics.
        MissingPropertyError: a physics without an adjoint (not linear).
    """

    def __init__(
        self, physics: torch.nn.Module, *, trusted: bool = False, near: LinearMap | None = None
    ) -> None:
        from deepinv.physics import Denoising, Inpainting, LinearPhysics, Physics

        if not isinstance(physics, Physics):
            kind = type(physics).__name__
            given = f"the class {physics.__name__}" if isinstance(physics, type) else kind
            raise InputError(
                "physics",
                given=given,
                expected="a deepinv.physics object",
                remedy="For denoising use "
                "deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1)).",
            )
        if not isinstance(physics, LinearPhysics):
            raise MissingPropertyError(
                "physics",
                given=f"{type(physics).__name__}, which offers no adjoint",
                expected="a LinearPhysics",
                remedy="Gradients of ||A x - y||^2 need A^T; derive your operator from "
                "deepinv.physics.LinearPhysics.",
            )
        self.physics = registered(cast(LinearPhysicsLike, physics))
        self.trusted, self.near = trusted, near
        # an adjoint that deepinv makes by autograd is one of float32 only: we make our own
        missing = vars(physics).get("A_adj", True) is None
        self.by_autograd = missing and type(physics).A_adjoint is LinearPhysics.A_adjoint
        # a subclass may override A, and an instance may carry an A of its own
        own = vars(physics)
        self.is_identity = type(physics) is Denoising and "A" not in own and "A_adjoint" not in own
        self.is_mask = type(physics) is Inpainting and "A" not in own and "A_adjoint" not in own
        self.cost = Cost()
        self._seen: tuple[object, ...] = ()
        self._forget()

    def _forget(self) -> None:
        self._checked: dict[tuple[object, ...], frozenset[str]] = {}
        self._spectrum: dict[tuple[object, ...], Constants] = {}
        self._mean: dict[tuple[object, ...], MeanCurvature | None] = {}
        self._majorants: dict[tuple[object, ...], Tensor] = {}
        self._layouts: dict[tuple[object, ...], tuple[Layout, torch.Size, torch.dtype]] = {}
        self._tops: dict[tuple[object, ...], Tensor] = {}
        self._parts: dict[int, LinearMap] = {}
        self._norms: dict[tuple[object, ...], Constants] = {}
        self._double: LinearMap | None = None
        self._variants: dict[object, tuple[LinearMap, dict[str, Tensor]]] = {}

    def refresh(self) -> None:
        """Forget what was found out about the physics if it does not look the same any more."""
        now = snapshot(self.physics)
        if not same(now, self._seen):
            self._forget()
            self._seen = now

    @property
    def probed(self) -> bool:
        """Whether the operator has passed its probes, or is a variant of one that has."""
        others = [other for other, _ in self._variants.values()]
        others += [] if self._double is None else [self._double]
        return self.trusted or bool(self._checked) or any(o.probed for o in others)

    def double(self) -> LinearMap:
        """The same operator in float64 (kept, so the copy is made once)."""
        if self.is_identity:
            return self
        self.refresh()
        if self._double is None:
            try:
                wide = widened(self.physics)
                self._double = LinearMap(wide, trusted=self.trusted, near=self.near)
                self._double.refresh()
                self._double._spectrum = self._spectrum  # one operator, one spectrum
                self._double._tops = self._tops
            except RuntimeError as error:  # deepcopy refuses tensors with a graph
                raise InputError(
                    f"physics {type(self.physics).__name__}",
                    given=f"tensors that cannot be copied ({error})",
                    expected="leaf tensors",
                    remedy="Hold parameters as nn.Parameter, and compute from them inside A.",
                ) from error
        return self._double

    def image(self, y: Native) -> Tensor:
        """A^T y as the physics gives it, for measurements as it makes them.

        Raises:
            InputError: measurements that the physics does not take.
        """
        if self.is_identity:
            return tensors_of(y)[0]
        try:
            with torch.no_grad():
                return self.transpose(self.physics, y)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors_of(y))
            raise InputError(
                "y",
                given=f"measurements of shape {shapes}, {tensors_of(y)[0].dtype}, "
                f"{tensors_of(y)[0].device}",
                expected=f"measurements that the adjoint of {type(self.physics).__name__} takes "
                f"(it says: {error})",
                remedy="Measure with the physics of the energy: y = physics(x), on its device; "
                "or pass the parameters of the operator, params={...}.",
            ) from error

    def transpose(self, physics: LinearPhysicsLike, y: Native) -> Tensor:
        """A^T y by the adjoint of the physics, or by autograd where it has none of its own."""
        if not (self.by_autograd and isinstance(y, Tensor)):
            return physics.A_adjoint(y)
        if physics.img_size is None:
            raise ValueError("img_size must be set where the adjoint is made by autograd")
        with torch.enable_grad():
            x = torch.zeros((y.shape[0], *physics.img_size), dtype=y.dtype, device=y.device)
            x.requires_grad_()
            (found,) = torch.autograd.grad(physics.A(x), x, y)
        return found.detach()

    def with_params(self, params: Mapping[str, Tensor]) -> LinearMap:
        """The same operator with other tensors, as deepinv's ``physics(x, **params)``.

        Their first axis counts the images; axes of length one that they lack after it, compared
        with the tensors that they replace, are put in: masks (b, h, w) become (b, 1, h, w).

        Raises:
            InputError: a name that the physics does not know, or a tensor that it does not keep
                with one slice per image.
        """
        self.refresh()
        known = {name for name, _ in named_tensors(self.physics)}
        # those of parts as well; names of the noise model (sigma, gain) say nothing of A
        inside = {name.rsplit(".", 1)[-1] for name in known}
        of_parts = {name for _, part in physics_parts(self.physics) for name in dir(part)}
        unknown = sorted(set(params) - known.union(inside, of_parts))
        if unknown:
            raise InputError(
                "params",
                given=", ".join(unknown),
                expected=f"tensors of {type(self.physics).__name__}: {', '.join(sorted(known))}",
                remedy="Use the names that physics.update(...) takes.",
            )
        # the same tensors come again at every step of a learner
        key = tuple(sorted((name, id(t), t._version) for name, t in params.items()))
        if key not in self._variants:
            if len(self._variants) >= MOST_VARIANTS:
                self._variants.clear()
            physics = with_tensors(self.physics, aligned(self.physics, params))
            check_slices(physics, params)
            first = [m._variants[key][0] for m in self._family()[1:] if key in m._variants]
            other = LinearMap(physics, trusted=self.trusted, near=first[0] if first else None)
            self._variants[key] = other, dict(params)  # held, so that no identity is used again
        return self._variants[key][0]

    def for_dtype(self, dtype: torch.dtype) -> LinearMap:
        """The operator for images of this type: float64 images need a physics in float64."""
        if dtype == torch.float64 and not self.is_identity and is_narrow(self.physics):
            return self.double()
        return self

    def tied(
        self, y: Native, x: Tensor | None = None, lazy: bool = False
    ) -> tuple[TiedMap, Tensor, Tensor]:
        """The operator for a batch of measurements, checked; real measurements; the image A^T y.

        Args:
            y: as the physics makes them, (b, ...).
            x: images of the shape to be reconstructed, real (b, c, ...); A^T y when None.
            lazy: x itself will do in the place of A^T y.

        Raises:
            AdjointError: the adjoint does not belong to A.
            InputError: a map that is not linear or not the same twice, images that influence each
                other, tensors per image that cannot be told apart, or a float64 copy, which closes
                every certificate, that is another operator.
        """
        self.refresh()
        if self.is_identity:
            tensor = tensors_of(y)[0]
            layout = layout_of(tensor, tensor, same=True)
            data = layout.data_in(tensor)
            return TiedMap(self, layout, data.shape[0]), data, data

        kind = tuple((t.shape[1:], t.dtype) for t in tensors_of(y))
        seen = self._layout_seen(kind) if lazy and x is not None else None
        if seen is not None and x is not None and (x.shape[1:], x.dtype) == seen[1:]:
            layout, image = seen[0], x
        else:
            back = self.image(y)
            layout = layout_of(y, back)
            image = layout.image_in(back)
            # A^T is half an evaluation of the energy, as is the look at one image that follows
            self.cost += Cost(hessian_products=image.shape[0] // 2 + 1)
            self._layouts[kind] = (layout, image.shape[1:], image.dtype)
        data = layout.data_in(y)
        like = image if x is None else x
        names = self._check(like, layout)
        return TiedMap(self, layout, like.shape[0], names), data, image

    def _layout_seen(
        self, kind: tuple[object, ...]
    ) -> tuple[Layout, torch.Size, torch.dtype] | None:
        """What measurements of a kind were seen to be, here or at other parameters."""
        return next((m._layouts[kind] for m in self._family() if kind in m._layouts), None)

    def _family(self) -> list[LinearMap]:
        """This map, the one it is a variant of, and what that is in float64."""
        near = self.near
        others = () if near is None else (near, near._double)
        return [self, *(m for m in others if m is not None)]

    def on(self, x: Tensor) -> TiedMap:
        """The operator for real images like x (b, c, ...), checked; see ``tied``."""
        if self.is_identity:
            return self.tied(x)[0]
        with torch.no_grad():
            return self.tied(self.physics.A(x), x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """A x of real images with real measurements."""
        return x if self.is_identity else self.physics.A(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y of real measurements and real images."""
        return y if self.is_identity else self.transpose(self.physics, y)

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return x if self.is_identity else self.adjoint(self.forward(x))

    def check(self, x: Tensor) -> None:
        """Probe the operator on images like x, once per shape; raises what ``tied`` raises."""
        self.on(x)

    def spectrum(self, x: Tensor) -> Curvature:
        """Bounds of A^T A on images like x: mu from below, L = ||A||^2 from above."""
        return self.on(x).spectrum(x).curvature

    def mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        """See ``TiedMap.mean_curvature``."""
        return self.on(x).mean_curvature(x)

    def majorant(self, x: Tensor) -> Tensor | None:
        """See ``TiedMap.majorant``."""
        return self.on(x).majorant(x)

    # --- checks -----------------------------------------------------------------------------------
    def _check(self, x: Tensor, layout: Layout) -> frozenset[str]:
        """Names of the tensors per image; refuses operators that are not what they should be."""
        key = (tuple(x.shape[1:]), x.dtype, layout)
        many = (*key, x.shape[0])
        looked = self._family() if self.trusted else [self]
        for known in (key, many):
            for other in looked:
                if known in other._checked:
                    return other._checked[known]

        names, spent = names_per_image(TiedMap(self, layout, 1), x)
        self.cost += spent
        if not self.trusted:
            tied = TiedMap(self, layout, x.shape[0], names)
            one = tied.select(torch.zeros(1, dtype=torch.int64)) if names else tied
            self._probe(one, x[:1].detach(), alone=not names)
        self._checked[many if names else key] = names
        return names

    def _probe(self, tied: TiedMap, x: Tensor, alone: bool) -> None:
        """Probe A in float64, and in the type of x if that is another one.

        Raises:
            AdjointError, InputError: as ``tied``.
        """
        looks = [(tied, x, WIDE_TOLERANCE)]
        if x.dtype != torch.float64:
            self._same_in_double(tied, x)
            looks = [(tied, x, NARROW_TOLERANCE), (tied.double(), x.double(), WIDE_TOLERANCE)]

        for operator, like, tolerance in looks:
            found = probe(operator.forward, operator.adjoint, like, alone=alone)
            # A and A^T are half an evaluation of the energy each
            self.cost += Cost(hessian_products=-(-found.evaluations // 2))
            words, size = found.worst()
            if size <= tolerance:
                continue
            of_adjoint = "adjoint" in words
            raise (AdjointError if of_adjoint else InputError)(
                f"physics {type(self.physics).__name__}",
                given=f"{words} with relative mismatch {size:.2e} in {like.dtype}",
                expected=f"at most {tolerance:.0e}",
                remedy=REMEDIES["adjoint" if of_adjoint else "map"],
            )

    @torch.no_grad()
    def _same_in_double(self, tied: TiedMap, x: Tensor) -> None:
        """Compare A u and A^T w in the precision of x with the float64 copy."""
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        try:
            wide = tied.double()
            narrow = tied.forward(u)
            exact = wide.forward(u.double())
            back = tied.adjoint(narrow)
            for value, reference in ((narrow, exact), (back, wide.adjoint(narrow.double()))):
                if reference.dtype != torch.float64:
                    raise RuntimeError(f"it gives {reference.dtype}")
                size = reference.norm().clamp_min(1e-300)
                difference = float((value.double() - reference).norm() / size)
                given = f"a float64 copy that differs by {difference:.2e} (relative)"
                if not difference <= NARROW_TOLERANCE:
                    break
        except (RuntimeError, InputError) as error:  # torch refuses to mix precisions
            difference = float("inf")
            given = f"a float64 copy that cannot be applied ({error})"
        self.cost += Cost(hessian_products=2)
        if not difference <= NARROW_TOLERANCE:
            raise InputError(
                f"physics {type(self.physics).__name__}",
                given=given,
                expected=f"at most {NARROW_TOLERANCE:.0e}",
                remedy="Hold its tensors in buffers or parameters (register_buffer), so that a "
                "copy can be promoted, or work in float64.",
            )

    # --- what is known of it ----------------------------------------------------------------------
    @property
    def effort(self) -> float:
        """What A and A^T cost, in operations on one vector of pixels; rough (that of an FFT or a
        blur if not known).
        """
        return 2.0 if self.is_identity else 4.0 if self.is_mask else 30.0

    def __getstate__(self) -> tuple[LinearPhysicsLike, bool]:
        """The physics alone: what was found out is found out again."""
        return self.physics, self.trusted

    def __setstate__(self, state: tuple[LinearPhysicsLike, bool]) -> None:
        self.__init__(state[0], trusted=state[1])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"LinearMap({type(self.physics).__name__})"


class TiedMap:
    """A and A^T for real tensors, on a batch of images; an operator per image follows the batch.

    Args:
        map: the physics and what is known of it.
        layout: what the physics calls images and measurements.
        count: images of the batch that the tensors per image were made for.
        names: tensors of the physics with one slice per image.
        index: images of that batch, all when None.
    """

    def __init__(
        self,
        map: LinearMap,
        layout: Layout,
        count: int,
        names: frozenset[str] = frozenset(),
        index: Tensor | None = None,
    ) -> None:
        self.map, self.layout, self.count = map, layout, count
        self.names, self.index = names, index
        self.physics = map.physics
        if names and index is not None:
            self.physics = of_images(map.physics, index, count, names)
        self._plain = layout.plain

    @property
    def is_identity(self) -> bool:
        return self.map.is_identity

    @property
    def is_mask(self) -> bool:
        """Whether A multiplies every pixel by a number of its own."""
        return self.map.is_mask and self._plain

    @property
    def effort(self) -> float:
        return self.map.effort

    def forward(self, x: Tensor) -> Tensor:
        """A x: (b, c, ...) -> (b, ...)."""
        if self.map.is_identity:
            return x
        if self._plain:
            return self.physics.A(x)
        return self.layout.data_in(self.physics.A(self.layout.image_out(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: (b, ...) -> (b, c, ...)."""
        if self.map.is_identity:
            return y
        if self._plain:
            return self.map.transpose(self.physics, y.contiguous())  # some use views
        return self.layout.image_in(self.map.transpose(self.physics, self.layout.data_out(y)))

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return x if self.map.is_identity else self.adjoint(self.forward(x))

    def select(self, index: Tensor) -> TiedMap:
        """The operators of the images ``index`` of this batch."""
        if not self.names:
            return self
        chosen = index if self.index is None else self.index.to(index.device)[index]
        return TiedMap(self.map, self.layout, self.count, self.names, chosen)

    def of_each(self, count: int, names: frozenset[str]) -> TiedMap:
        """The same map for a batch whose images have slices of the tensors ``names``."""
        return TiedMap(self.map, self.layout, count, names)

    def double(self) -> TiedMap:
        """The same in float64."""
        if self.map.is_identity:
            return self
        wide = self.map.double()
        if wide is self.map:
            return self
        return TiedMap(wide, self.layout, self.count, self.names, self.index)

    # --- constants --------------------------------------------------------------------------------
    def _key(self, x: Tensor) -> tuple[object, ...]:
        who = None if self.index is None else tuple(self.index.tolist())
        return (tuple(x.shape[1:]), self.layout, self.names and (x.shape[0], who))

    def _like(self, x: Tensor) -> Tensor:
        """One image, or all of them where each has an operator of its own."""
        return (x if self.names else x[:1]).detach()

    def spectrum(self, x: Tensor) -> Constants:
        """Bounds of A^T A on images like ``x``: mu from below, L = ||A||^2 from above."""
        key = self._key(x)
        if key not in self.map._spectrum:
            found = singular_values(self, x)
            if found is None:
                norm = largest_eigenvalue(self, self._like(x), self._part, self._near(key))
                found = norm.constants
                self.map.cost += norm.cost
                if norm.top is not None:
                    self.map._tops[key] = norm.top
            self.map._spectrum[key] = found
        return self.map._spectrum[key]

    def _near(self, key: tuple[object, ...]) -> Near | None:
        """The operator of which this one is a variant."""
        first = self.map.near
        if first is None:
            return None
        known = None if self.names else first._spectrum.get(key)
        return Near(first.physics, known, first._tops.get(key))

    def _part(self, number: int, physics: LinearPhysicsLike, x: Tensor) -> tuple[Constants, Cost]:
        """The spectrum of a part, see ``norms.OfPart``; one that is not learned is looked at once
        for all theta.
        """
        key, family = (number, tuple(x.shape[1:])), self.map._family()
        fixed = number >= 0 and not self.names and not trainable(physics)
        for known in family if fixed else ():
            if key in known._norms:
                return known._norms[key], Cost()

        near = self.map.near if not self.names else None
        first = None if near is None else near._parts.get(number)
        part = LinearMap(physics, trusted=True, near=first)
        self.map._parts[number] = part
        found = part.on(x).spectrum(x)
        if fixed:
            self.map._norms[key] = found
        return found, part.cost

    def mean_curvature(self, x: Tensor) -> MeanCurvature | None:
        """Averages of A^T A for images like ``x``, as one image (1, ...) that broadcasts.

        Exact for the identity, for masks of pixels, and where A^T A is a periodic convolution;
        otherwise the response to one pixel in the middle stands for all of them (good for
        tomography, whose A^T A is nearly a convolution). None where A^T A is far from a convolution
        (measured), or differs from image to image.
        """
        if self.names:
            return None
        key = (*self._key(x), x.dtype, x.device)
        if key not in self.map._mean:
            like = self._like(x)
            found: MeanCurvature | None = averages(self, like)
            simple = self.is_identity or self.is_mask
            if not simple:
                self.map.cost += Cost(hessian_products=x.shape[1] + 1)
                if found and convolution_defect(self, found, like) > LIKE_A_CONVOLUTION:
                    found = None
            self.map._mean[key] = found
        return self.map._mean[key]

    def majorant(self, x: Tensor) -> Tensor | None:
        """The symbol of a circulant C >= A^T A (an estimate); None as ``mean_curvature``."""
        mean = self.mean_curvature(x)
        if mean is None:
            return None
        key = (*self._key(x), x.dtype, x.device)
        if key not in self.map._majorants:
            flat = float(self.spectrum(x).L.max())
            self.map._majorants[key], cost = majorant_symbol(self, mean, self._like(x), flat)
            self.map.cost += cost
        return self.map._majorants[key]

    def fitted(self, image: Tensor, data: Tensor) -> Tensor:
        """t A^T y, made from the image A^T y and the data y, with the t >= 0 that fits best, per
        image: a start of the right size.
        """
        if self.is_identity:
            return image
        with torch.no_grad():
            again = self.forward(image)
            size = again.flatten(1).square().sum(dim=1)
            t = image.flatten(1).square().sum(dim=1) / size
        self.map.cost += Cost(hessian_products=image.shape[0])
        t = torch.where(torch.isfinite(t), t, 1.0)
        return image * t.view(-1, *[1] * (image.dim() - 1))
