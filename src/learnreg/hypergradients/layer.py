"""Reconstructor: a deepinv model, forward a solution map, backward its pullback."""

from __future__ import annotations

import operator
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Protocol, cast, get_args

import torch
from deepinv.models import Reconstructor as DeepinvReconstructor
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from ..core.asking import offers
from ..core.batch import norm, per_image
from ..core.errors import DataWarning, MissingPropertyError, SolveError
from ..core.grants import Grants, check_needs
from ..core.guards import check_energy, check_strategy, isolated
from ..core.maps import Ask, Cotangent, Level, Limits, Posed, Pullback, SolutionMap
from ..core.measured import Measured, Native, measured
from ..core.noise import FollowsNoise, followed, learned_level
from ..core.params import trainable
from ..core.ranges import check_choice
from ..core.results import Solution
from ..core.status import Status, summarize
from ..solvers.select import check_solver
from ..solvers.solve import as_data
from .choose import check_map, natural_map
from .evaluate import checked_pull
from .once import once
from .unrolled import Unrolled

Noise = Literal["follow", "as_learned"]

REMEMBERED = 4
"""Of so many physics handed to ``forward`` what was found out about them is kept: their spectra and
checks.
"""


class Reconstructor(DeepinvReconstructor):
    """x~(y) = argmin_x h(x; theta, y) up to eps, differentiable in theta and y, once.

    Forward: the solution map, a solve to the certified distance eps unless another is chosen.
    Backward: its pullback; with ``Implicit`` the implicit function theorem, one CG solve per image
    to a relative residual, memory independent of the number of iterations. ``Unrolled(K,
    step=tau)`` makes it a network of K steps, ``JacobianFree()`` one with a cheap backward pass.
    These are what they are called: without ``step`` an unrolled network changes its step sizes with
    theta and is differentiated at frozen ones, the gradients of ``JacobianFree`` are cut off, and
    those of ``JointPiggyback`` are as far as its steps have come. Only ``Implicit`` and
    ``Piggyback`` give the derivative of the minimizer to an accuracy.
    Parameters are those of the energy (regularizer, data term and physics), so torch.optim,
    Lightning and deepinv.Trainer work. A derivative of the derivative is refused.

    Measurements at another noise level than the one that the physics of the energy had when this
    layer was made want another amount of regularization: where the physics of a call has Gaussian
    noise of known size, the regularizer is weighed by the rule of ``problems.at_noise_level``.

    Args:
        energy: the lower level.
        eps: distance per image; maps of a fixed number of steps have no use for it.
        solver: as in ``solve``.
        hypergradient: the solution map; ``Implicit()`` or, for a SaddleEnergy, ``Piggyback()`` when
            None.
        relative_delta: residual of the backward system relative to the incoming gradient.
        noise: ``follow`` is the above; ``as_learned`` leaves the regularizer as it is at every
            noise level.

    Warns:
        DataWarning: in ``forward``, another physics in the place of one with learned parameters,
            which then are not used; a noise level that is far from the learned one where no rule
            is known (a data term such as KL or L1), or noise that is not Gaussian.

    Raises:
        MissingPropertyError: a solution map that does not belong to the energy.
        InputError: eps or relative_delta not positive, noise neither of the words; in ``forward``
            also bad measurements.
        SolveError: in ``forward``, when an image misses eps.
    """

    def __init__(
        self,
        energy: nn.Module,
        eps: float = 1e-2,
        *,
        solver: str = "auto",
        hypergradient: SolutionMap | None = None,
        relative_delta: float = 1e-3,
        noise: Noise = "follow",
    ) -> None:
        super().__init__()
        check_energy(energy)
        check_choice("noise", noise, get_args(Noise))
        check_solver(solver)
        check_strategy(hypergradient, "hypergradient")
        per_image(eps, torch.zeros(1, 1))
        per_image(relative_delta, torch.zeros(1, 1), "relative_delta")
        if hypergradient is not None:
            check_map(hypergradient, energy)
        self.energy, self.eps, self.solver = energy, eps, solver
        self.strategy: SolutionMap = hypergradient or natural_map(energy)
        self.relative_delta, self.noise = relative_delta, noise
        self._learned = learned_level(energy)
        self._recent = Recent()

    @isolated
    def forward(
        self,
        y: Native | Measured,
        physics: nn.Module | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """(b, ...) -> (b, c, h, w). Mixed precision is off in here, forwards and backwards.

        Args:
            y: measurements, real or complex, or a TensorList.
            physics: replaces the one of the energy when given, as ``deepinv.Trainer`` does; its
                tensors may hold one slice per image, its noise level too.
            params: tensors of the operator per image, as in ``solve``; they are not differentiated.
                ``sigma`` is the noise level.

        Raises:
            MissingPropertyError: a gradient asked for that the solution map does not grant, or with
                respect to ``params``.
        """
        if isinstance(y, Tensor) and y.dtype in (torch.float16, torch.bfloat16):
            y = y.float()  # what layers before this one make under autocast
        energy = self._energy(physics)
        data = as_data(y, params, energy)
        self._check_gradients(data)
        energy, strategy = self._at_noise(energy, measured(data).params.get("sigma"))
        learned = trainable(energy)
        if isinstance(data, Tensor):
            return _Solve.apply(data, _Layer(self, energy, strategy), *learned)

        # complex numbers and lists become one real tensor, whose gradient autograd takes back
        layout = cast(WithLayout, energy).layout(data)
        call = _Layer(self, energy, strategy, data.params, layout)
        real = _Solve.apply(layout.data_in(data.y), call, *learned)
        return layout.image_out(real)

    def _check_gradients(self, data: Tensor | Measured) -> None:
        """Refuse derivatives that would silently be missing.

        Raises:
            MissingPropertyError: says of what.
        """
        given = measured(data)
        if not torch.is_grad_enabled():
            return
        lost = [name for name, t in given.params.items() if t.requires_grad]
        if lost:
            raise MissingPropertyError(
                "params",
                given=f"{', '.join(lost)} that require a gradient",
                expected="tensors without one: they are data",
                remedy="Hold what is learned as a parameter of the physics.",
            )
        if any(t.requires_grad for t in given.tensors):
            who, words = type(self).__name__, repr(self.strategy)
            check_needs(who, Grants.DATA, self.strategy.grants, words)

    def _energy(self, physics: nn.Module | None) -> nn.Module:
        """The energy with another physics, or the one of an earlier call with that physics."""
        if physics is None:
            return self.energy
        own: object = self.energy
        if offers(own, WithPhysics) and physics is not own.physics:
            _warn_of_unused(own.physics, physics)
        return self._recent.of(self.energy, physics)

    def _at_noise(self, energy: nn.Module, given: Tensor | None) -> tuple[nn.Module, SolutionMap]:
        """Energy and solution map for the noise of this call.

        Args:
            energy: with the physics of the call.
            given: noise levels of its images, in the place of that of the physics.
        """
        learned = None if self.noise == "as_learned" else self._learned
        levels = given if given is None else given.detach().double().flatten()
        other = followed(energy, learned, levels, stacklevel=7)
        if other is energy or learned is None or not offers(energy, FollowsNoise):
            return energy, self.strategy

        at = energy.noise_level if levels is None else levels
        if at is None:
            return other, self.strategy
        return other, _scaled_steps(self.strategy, energy.regularizer_factor(learned, at))


def _warn_of_unused(own: nn.Module, given: nn.Module) -> None:
    """Say when parameters of the operator are neither used nor learned, because another one is
    handed in.
    """
    used = {id(t) for t in trainable(given)}
    if all(id(t) in used for t in trainable(own)):
        return
    warnings.warn(
        f"physics: given {type(given).__name__} in the place of {type(own).__name__}, whose "
        "learned parameters are not used in this call and get no gradient; expected the physics of "
        "the energy. deepinv.Trainer hands its physics to the model: give it this one, or wrap the "
        "model in a module whose forward(y, physics) calls it without physics.",
        DataWarning,
        stacklevel=7,
    )


def _scaled_steps(strategy: SolutionMap, factors: Tensor) -> SolutionMap:
    """The solution map for D / k + R in the place of D + k R, whose slopes are those times k.

    Raises:
        MissingPropertyError: a given step, and one noise level per image.
    """
    if not isinstance(strategy, Unrolled) or strategy.step is None:
        return strategy
    if bool((factors != factors[0]).any()):
        raise MissingPropertyError(
            "hypergradient",
            given=f"{strategy!r} and one noise level per image",
            expected="steps that are chosen per image, or one noise level",
            remedy="Leave step out, or pass images of one noise level at a time.",
        )
    return replace(strategy, step=strategy.step * float(factors[0]))


class Recent:
    """The latest physics handed in, with what was found out about them: spectra and checks.

    That is compared with their present values before every use, so a physics that changes between
    calls is looked at again.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[nn.Module, object]] = OrderedDict()

    def of(self, energy: nn.Module, physics: nn.Module) -> nn.Module:
        """``energy.with_physics(physics)``, which knows what an earlier one has found out."""
        other = cast(WithPhysics, energy).with_physics(physics)
        found = self._kept.pop(id(physics), None)
        if found is not None and offers(other, WithOperator):
            other.use_operator(found[1])
        operator = other.operator if offers(other, WithOperator) else None
        self._kept[id(physics)] = physics, operator
        while len(self._kept) > REMEMBERED:
            self._kept.popitem(last=False)
        return other

    def __deepcopy__(self, memo: dict[int, object]) -> Recent:
        return Recent()

    def __reduce__(self) -> tuple[type[Recent], tuple[()]]:
        return Recent, ()


class WithOperator(Protocol):
    """An energy with a door to its physics that others may use."""

    @property
    def operator(self) -> object: ...

    def use_operator(self, operator: object) -> None: ...


class Watched(Protocol):
    """An energy that says whether its physics has changed."""

    def look(self) -> tuple[object, ...]: ...

    def unchanged(self, look: tuple[object, ...]) -> bool: ...


class WithPhysics(Protocol):
    """An energy whose physics can be replaced."""

    @property
    def physics(self) -> nn.Module: ...

    def with_physics(self, physics: nn.Module) -> nn.Module: ...


class Layout(Protocol):
    """How a physics' measurements and images become real tensors, and back."""

    def data_in(self, y: Native) -> Tensor: ...

    def data_out(self, y: Tensor) -> Native: ...

    def image_out(self, x: Tensor) -> Tensor: ...


class WithLayout(Protocol):
    """An energy that knows the layout of its measurements."""

    def layout(self, y: Native | Measured) -> Layout: ...


class _Layer:
    """One call of a Reconstructor: its settings, and how real measurements become those that the
    energy takes.
    """

    def __init__(
        self,
        model: Reconstructor,
        energy: nn.Module,
        strategy: SolutionMap,
        params: Mapping[str, Tensor] | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.energy, self.params, self.layout = energy, dict(params or {}), layout
        self.eps, self.solver, self.relative = model.eps, model.solver, model.relative_delta
        self.strategy = strategy
        self.learned, self.look = trainable(energy), _look_of(energy)

    def check_same(self) -> None:
        """Refuse a backward pass through another energy than that of the forward pass.

        Raises:
            MissingPropertyError: parameters or the physics were exchanged in between.
        """
        now = trainable(self.energy)
        # another number of them is refused with words of its own by what comes next
        kept = len(now) != len(self.learned) or all(map(operator.is_, now, self.learned))
        if kept and _unchanged(self.energy, self.look):
            return
        raise MissingPropertyError(
            "Reconstructor",
            given="a physics that has changed since the forward pass"
            if kept
            else "other parameters than in the forward pass (torch.func.functional_call?)",
            expected="the energy of the forward pass, which the derivative is one of",
            remedy="Call backward before physics.update, or pass a copy of the physics to every "
            "call."
            if kept
            else "Load parameters into a copy of the model (copy.deepcopy, load_state_dict).",
        )

    def posed(self, y: Tensor) -> Posed:
        """The lower level for real measurements."""
        native = y if self.layout is None else Measured(self.layout.data_out(y), self.params)
        return Posed(cast(Level, self.energy), native)

    def solve(self, y: Tensor) -> Solution:
        """The reconstructions; an image that missed eps is an error."""
        posed, limits = self.posed(y.detach()), Limits(self.solver)
        return self.strategy.solve(posed, self.eps, None, limits).raise_if_failed()


def _look_of(energy: object) -> tuple[object, ...]:
    return energy.look() if offers(energy, Watched) else ()


def _unchanged(energy: object, look: tuple[object, ...]) -> bool:
    return energy.unchanged(look) if offers(energy, Watched) else True


class _Solve(torch.autograd.Function):
    """x~ with the derivative of the solution map, evaluated at x~."""

    @staticmethod
    def forward(ctx: FunctionCtx, y: Tensor, layer: _Layer, *params: Tensor) -> Tensor:
        solution = layer.solve(y)
        # saved parameters make autograd refuse a backward pass after they have changed in place
        ctx.save_for_backward(y, *params)
        ctx.layer, ctx.solution = layer, solution  # type: ignore[attr-defined]
        return solution.value.clone()

    @staticmethod
    @isolated
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given, *params = ctx.saved_tensors  # type: ignore[attr-defined]
        layer, solution = ctx.layer, ctx.solution  # type: ignore[attr-defined]
        layer.check_same()
        for_data, _, *needs = ctx.needs_input_grad  # type: ignore[attr-defined]
        sources = (grads[0], given, *params)
        upstream = grads[0].detach()

        tiny = torch.finfo(upstream.dtype).tiny
        delta = (layer.relative * norm(upstream)).clamp_min(tiny)
        posed, ask = layer.posed(given.detach()), Ask(delta, error="none", data=for_data)
        count = sum(p.numel() for p in params)
        pull = checked_pull(layer.strategy, posed, solution, Cotangent(upstream), ask, count)
        _check_exact(layer.strategy, pull)

        pieces = pull.theta.split([p.numel() for p in params])
        to_theta = [
            g.view_as(p) if need else None for g, p, need in zip(pieces, params, needs, strict=True)
        ]
        return once((pull.data, None, *to_theta), sources)


def _check_exact(strategy: SolutionMap, pull: Pullback) -> None:
    """Refuse a derivative that is not what was asked for.

    Raises:
        SolveError: an image with NaN or, of maps that solve a linear system, one that missed delta.
    """
    exact = Grants.BOUND in strategy.grants
    bad = [s for s in pull.status if s is Status.NOT_FINITE or (exact and not s.ok)]
    if bad:
        raise SolveError(f"backward pass: {summarize(pull.status)}", pull)
