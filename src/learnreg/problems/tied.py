"""What all lower levels share: a physics, a regularizer, a data term, copies at other theta."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from ..core.constraints import Between, Interval, as_constraint
from ..core.errors import InputError
from ..core.measured import Measured, Native, measured
from ..core.noise import DIRECT, INDIRECT, factor, same_level
from ..core.params import check_theta, keeping_learned, set_theta, trainable
from ..core.words import named
from ..operators.layout import Layout
from ..operators.physics import LinearMap, TiedMap
from ..operators.pickling import picklable
from ..operators.private import clone, of_tensors, promoted, same
from .noise_level import data_term_at, noise_level, other_noise
from .per_image import KNOWN, names_of, started, with_tensors


class ModuleLike(nn.Module):
    """A regularizer as type checkers see it: nothing is made of this class or of those derived from
    it, since any ``nn.Module`` with the methods will do.
    """

    def spec(self) -> dict[str, object]:
        # why here, where it is an offer: the command line reads that of loaded models
        raise NotImplementedError


R = TypeVar("R", bound=ModuleLike)
"""The regularizer of an energy: an ``nn.Module`` with the methods that this energy needs."""

D = TypeVar("D")
"""Its data term."""


class Tied(nn.Module, Generic[R, D]):
    """A physics tied to a regularizer and a data term; theta is all that requires a gradient.

    The three are submodules: ``to(device)`` moves all of them, and theta lists the parameters of
    the regularizer, of the data term and of the physics in this order.

    Args:
        physics: a linear ``deepinv`` physics A.
        regularizer: R.
        fidelity: the data term.
        constraint: bounds of pixels, or None.

    Raises:
        InputError: a class in the place of an object, a constraint that is none.
    """

    saddle: ClassVar[bool] = False
    """Whether the lower level is a saddle point; nobody else has to look into the regularizer."""

    regularizer: R
    fidelity: D
    physics: nn.Module
    constraint: Between | None = None

    def __init__(
        self,
        physics: nn.Module,
        regularizer: nn.Module,
        fidelity: D,
        constraint: object | None = None,
    ) -> None:
        super().__init__()
        if isinstance(regularizer, type) or not isinstance(regularizer, nn.Module):
            given = regularizer if isinstance(regularizer, type) else type(regularizer)
            raise InputError(
                "regularizer",
                given=f"the class {given.__name__}"
                if isinstance(regularizer, type)
                else given.__name__,
                expected="an object, derived from nn.Module",
                remedy="For example lr.regularizers.TV().",
            )
        self._operator = LinearMap(physics)
        # why a cast: a module that also has the methods of R, which a subclass has checked
        self.regularizer = cast(R, regularizer)
        self.fidelity = fidelity
        self.physics = self._operator.physics
        self._bound_by(as_constraint(constraint))

    def _bound_by(self, constraint: Between | None) -> None:
        # why no None: an energy without bounds keeps the digest that it had before there were any
        if constraint is not None:
            self.constraint = constraint

    @property
    def operator(self) -> LinearMap:
        """The door to the physics, with what has been found out about it."""
        if self._operator.physics is not self.physics:  # replaced by an assignment
            self._operator = LinearMap(self.physics)
        return self._operator

    def use_operator(self, operator: object) -> None:
        """Take over what was found out about the same physics."""
        if isinstance(operator, LinearMap) and operator.physics is self.physics:
            self._operator = operator

    def __getstate__(self) -> dict[str, object]:
        """For pickle and deep copies: what was found out about the physics is found out again."""
        state = {key: value for key, value in vars(self).items() if key != "_operator"}
        modules = vars(self)["_modules"]
        state["_modules"] = modules | {"physics": picklable(self.physics)}
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types here
        self._operator = LinearMap(self.physics)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What torch does for ``to``, ``double`` and the like; learned buffers stay learned."""
        with keeping_learned(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        return self

    def look(self) -> tuple[object, ...]:
        """What A is made of now, for ``unchanged``."""
        return of_tensors(self.physics)

    def unchanged(self, look: tuple[object, ...]) -> bool:
        """Whether A is made of the same tensors, and their values are what they were."""
        return same(self.look(), look)

    @property
    def learns_data(self) -> bool:
        """Whether theta reaches into the physics or the data term."""
        return bool(trainable(self.physics)) or self.learns_fidelity

    @property
    def learns_fidelity(self) -> bool:
        """Whether theta reaches into the data term."""
        return isinstance(self.fidelity, nn.Module) and bool(trainable(self.fidelity))

    def with_theta(self, theta: Tensor) -> Self:
        """The same at theta (d,), in theta's dtype and device; this one is not touched.

        What holds no part of theta is shared, but for the regularizer.
        """
        check_theta(self, theta)
        memo: dict[int, object] = {}
        fixed = not trainable(self.physics)
        regularizer = copy.deepcopy(self.regularizer, memo)
        regularizer = regularizer.to(dtype=theta.dtype, device=theta.device)
        fidelity = self.fidelity
        if isinstance(fidelity, nn.Module) and self.learns_fidelity:
            fidelity = copy.deepcopy(fidelity, memo).to(dtype=theta.dtype, device=theta.device)
        if fixed:
            other = self._like(regularizer, self.operator, fidelity)
        else:
            physics = clone(self.physics)
            if theta.dtype == torch.float64:
                with keeping_learned(physics):
                    physics._apply(promoted)
            # probed at the first theta and at that of a Run; steps between are trusted
            trusted = self.operator.probed
            # one ancestor for all, so that bounds do not depend on the way that led here
            near = (self.operator.near or self.operator) if trusted else None
            operator = LinearMap(physics, trusted=trusted, near=near)
            other = self._like(regularizer, operator, fidelity)
        try:
            check_theta(other, theta)
        except InputError as error:
            raise InputError(
                "energy",
                given="a parameter that regularizer, data term and physics share",
                expected="parameters of their own",
                remedy="Learn two parameters, or compute one part from the other.",
            ) from error
        set_theta(other, theta)
        return other

    def untrusted(self) -> Self:
        """This one, with an operator that is probed at its next use."""
        self._operator.trusted, self._operator.near = False, None
        return self

    def with_physics(self, physics: nn.Module) -> Self:
        """The same regularizer (shared, not copied) with another physics."""
        if physics is self.physics:
            return self
        return self._like(self.regularizer, LinearMap(physics), self.fidelity)

    @property
    def noise_level(self) -> Tensor | None:
        """The standard deviation of the Gaussian noise of the physics, float64, (1,) or (b,); None
        where it is not known, or noise of another kind.
        """
        return noise_level(self.physics)

    @property
    def other_noise(self) -> str | None:
        """The kind of noise of the physics, where it is known and has no such level."""
        return other_noise(self.physics)

    def regularizer_factor(
        self, learned: float, sigma: Tensor, exponent: float | None = None
    ) -> Tensor:
        """k: what R is multiplied by at the noise levels sigma, (b,) like them.

        Args:
            learned, sigma, exponent: as for ``problems.at_noise_level``.
        """
        direct = self.operator.is_identity or self.operator.is_mask
        usual = DIRECT if direct else INDIRECT
        return factor(sigma, learned, usual if exponent is None else exponent)

    def following(
        self, learned: float, sigma: Tensor | None = None, exponent: float | None = None
    ) -> Self:
        """This energy, whose theta was learned at another noise level, at that of its physics.

        The rule is that of ``problems.at_noise_level``, which has the words for it.

        Args:
            learned: the level of the training data.
            sigma: (1,) or (b,), the level in the place of that of the physics.
            exponent: p of the rule; one that suits the operator when None.

        Returns:
            Itself where the levels are the same, or the one of the physics is not known.

        Raises:
            MissingPropertyError: a data term without a rule.
        """
        levels = self.noise_level if sigma is None else sigma
        if levels is None or same_level(levels, learned):
            return self
        factors = self.regularizer_factor(learned, levels, exponent)
        scaled = data_term_at(self.fidelity, factors, levels / learned)
        # why a cast: a data term of the same kind
        return self._like(self.regularizer, self.operator, cast(D, scaled))

    def widened(self) -> Self:
        """A float64 copy; unlike ``nn.Module.double`` it leaves this one as it is."""
        regularizer = copy.deepcopy(self.regularizer).to(torch.float64)
        fidelity = self.fidelity
        if isinstance(fidelity, nn.Module):
            fidelity = copy.deepcopy(fidelity).to(torch.float64)
        return self._like(regularizer, self.operator.double(), fidelity)

    def _like(self, regularizer: R, operator: LinearMap, fidelity: D) -> Self:
        other = type(self).__new__(type(self))
        nn.Module.__init__(other)
        other._operator, other.regularizer, other.fidelity = operator, regularizer, fidelity
        other.physics = operator.physics
        other._bound_by(self.constraint)
        return other

    # --- measurements -----------------------------------------------------------------------------
    def tie(
        self, y: Native | Measured, x: Tensor | None, lazy: bool = False
    ) -> tuple[TiedMap, Tensor, Tensor]:
        """The operator of a batch, its real measurements and the image A^T y; see
        ``LinearMap.tied``.
        """
        data = measured(y)
        operator = self.operator.for_dtype(data.dtype)
        own = self._params(data)[0]
        if own:
            operator = operator.with_params(own)
        return operator.tied(data.y, x, lazy)

    def data_term(self, y: Native | Measured) -> D:
        """The data term, with its own parameters per image where the measurements bring them.

        Raises:
            InputError: those of another data term.
        """
        return with_tensors(self.fidelity, self._params(measured(y))[1])

    def _params(self, data: Measured) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters per image of the operator, and those of the data term: a name that both
        have belongs to the data term.

        Raises:
            InputError: those of another data term.
        """
        params, taken = data.params, names_of(self.fidelity)
        others = sorted((set(params) & set(KNOWN)) - taken)
        known = {name.rsplit(".", 1)[-1] for name, _ in self.physics.named_buffers()}
        wrong = [name for name in others if name not in known]
        if wrong:
            kind = KNOWN[wrong[0]]
            made = "lr.WeightedL2(torch.ones(1, 1))" if kind == "WeightedL2" else "lr.KL()"
            raise InputError(
                "params",
                given=f"{', '.join(wrong)} with {type(self.fidelity).__name__}",
                expected=f"the data term {kind}",
                remedy=f"Make the energy with fidelity={made}.",
            )
        of_term = {name: t for name, t in params.items() if name in taken}
        elsewhere = taken | LIMITS
        return {name: t for name, t in params.items() if name not in elsewhere}, of_term

    def domain(self, y: Native | Measured, operator: TiedMap, like: Tensor) -> Interval | None:
        """The bounds of images like ``like`` (b, c, ...), with those per image that come with the
        measurements; None where nothing is bounded.

        Raises:
            InputError: complex images, bounds of another shape.
        """
        constraint = self.constraint
        given = {k: t for k, t in measured(y).params.items() if k in LIMITS}
        if given:
            whole = constraint or Between(None, None)
            ends = {"lower": whole.lower, "upper": whole.upper} | given
            constraint = Between(ends["lower"], ends["upper"])
        if constraint is None:
            return None
        if operator.layout.complex_image:
            raise InputError(
                "constraint",
                given=f"{constraint.words}, and complex images",
                expected="real images, which have an order",
                remedy="Leave constraint out, or use a physics whose images are real.",
            )
        return constraint.tied(like)

    def layout(self, y: Native | Measured) -> Layout:
        """What the physics calls an image and its measurements."""
        return self.tie(y, None)[0].layout

    def start(self, y: Native | Measured) -> Tensor:
        """The picture a solve starts from when nothing better is known, (b, c, ...), real.

        y itself for denoising; otherwise t A^T y with the t that fits the data best, so that the
        norm of A does not matter; of counts, of what they are without gain and background. Kept
        within the bounds where there are any.
        """
        operator, data, image = self.tie(y, None)
        first = started(operator, self.data_term(y), data, image)
        domain = self.domain(y, operator, first)
        return first if domain is None else domain.project(first)

    def describe(self) -> str:
        """One line for records."""
        bounds = "" if self.constraint is None else f", {self.constraint.words}"
        return f"{named(self.regularizer)} with {type(self.physics).__name__}{bounds}"


LIMITS = frozenset({"lower", "upper"})
"""Parameters per image that bound its pixels."""

AnyTied: TypeAlias = Tied[Any, Any]
"""Where an energy is one of either kind."""
