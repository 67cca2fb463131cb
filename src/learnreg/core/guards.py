"""Front doors: computations run in a mode of their own, and what cannot be computed with is refused
there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from .asking import offers
from .errors import InputError, MissingPropertyError
from .measured import Measured, Native, tensors_of
from .offers import OfPictures
from .ranges import check_object, shown

P = ParamSpec("P")
T = TypeVar("T")


class _Pairs(Protocol):
    """Images and what was measured of them."""

    @property
    def x(self) -> Tensor: ...
    @property
    def y(self) -> Native | Measured: ...


AUTOCAST = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices with a mixed-precision mode of their own."""

MAP = ("solve", "pull", "view", "grants")
"""What makes a solution map."""

ROWS = 8
"""A measurement (k, h, w) with so many rows is a picture rather than k signals with h channels."""


def isolated(function: Callable[P, T]) -> Callable[P, T]:
    """Run ``function`` in ordinary arithmetic, whatever mode it is called in.

    Mixed precision (``torch.autocast``) is switched off: gradients in bfloat16 never reach the
    accuracies that certificates are about. In ``torch.inference_mode`` the computation leaves that
    mode, without recording gradients, and its tensors are ordinary ones. ``torch.compile`` leaves
    it alone.

    Raises:
        MissingPropertyError: inside a transformation of ``torch.func``, or while a graph is
            recorded (``torch.jit.trace``, ``torch.export``, ``torch.onnx.export``).
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        refuse_transforms(function.__qualname__)
        run = function
        if torch.compiler.is_dynamo_compiling():
            # why here: the branch is taken while torch.compile reads this frame, and what it makes
            # of solvers is wrong (views of tensors that it has changed)
            run = cast(Callable[P, T], torch.compiler.disable(function))
        if not (torch.is_inference_mode_enabled() or _lent(args) or _lent(kwargs.values())):
            with without_autocast():
                return run(*args, **kwargs)

        with _out_of_inference(), without_autocast():
            own = {k: _own(v) for k, v in kwargs.items()}
            # why a cast: a list of arguments that were changed has no types of their own
            return cast(Callable[..., T], run)(*map(_own, args), **own)

    return call


@contextmanager
def without_autocast() -> Iterator[None]:
    """Mixed precision off on every kind of device where it is on."""
    with ExitStack() as stack:
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _out_of_inference() -> Iterator[None]:
    """Ordinary tensors, without gradients if the caller was in inference mode."""
    recording = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(recording):
        yield


def _lent(values: Iterable[object]) -> bool:
    return any(isinstance(v, Tensor) and v.is_inference() for v in values)


def _own(value: object) -> object:
    """A tensor of inference mode as an ordinary one."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def refuse_transforms(what: str) -> None:
    """Refuse to run inside ``torch.func.grad``, ``vmap`` and their like, and while a graph is
    recorded, which would have the number of steps of one input for all.

    Raises:
        MissingPropertyError: says what to use instead.
    """
    if torch._C._are_functorch_transforms_active():
        raise MissingPropertyError(
            what,
            given="a call inside a transformation of torch.func (grad, vmap, jvp ...)",
            expected="ordinary tensors: the number of steps depends on their values",
            remedy="Pass a batch in the place of vmap, and differentiate learnreg.Reconstructor by "
            "torch.autograd or learnreg.hypergradient.",
        )
    exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    if torch._C._get_tracing_state() is not None or exporting:
        raise MissingPropertyError(
            what,
            given="a call while a graph is recorded (torch.jit, torch.export, torch.onnx)",
            expected="an ordinary call: the number of steps depends on the values",
            remedy="Ship the model file, and reconstruct with learnreg.load_model(path).",
        )


def check_energy(energy: object, *methods: str) -> None:
    """Refuse what is no lower level, the class of one among it.

    Raises:
        InputError: says how to make one.
    """
    check_object(
        "energy",
        energy,
        methods or ("at", "start"),
        "an Energy or SaddleEnergy",
        "For example Energy(physics, regularizers.TV()).",
    )


def check_parts(physics: object, regularizer: object, fidelity: object) -> None:
    """Refuse classes in the place of the objects that an energy is made of.

    Raises:
        InputError: names the class.
    """
    parts = {"physics": physics, "regularizer": regularizer, "fidelity": fidelity}
    for what, part in parts.items():
        if isinstance(part, type):
            expected, remedy = "an object", f"For example {what}={part.__name__}()."
            check_object(what, part, (), expected, remedy)


def check_pairs(pairs: object) -> None:
    """Refuse what has no images and measurements.

    Raises:
        InputError: names what is missing.
    """
    remedy = "For example data.pairs('natural', physics, size=96, split=(24, 8), seed=0)[0]."
    check_object("pairs", pairs, ("x", "y", "__len__"), "images .x and measurements .y", remedy)
    pairs = cast(_Pairs, pairs)
    if not isinstance(pairs.x, Tensor):
        raise InputError(
            "x", given=shown(pairs.x), expected="a tensor", remedy="Pass torch tensors."
        )
    if not isinstance(pairs.y, Measured):
        tensors_of(pairs.y)


def check_problem(problem: object) -> None:
    """Refuse what is no bilevel problem.

    Raises:
        InputError: says how to make one.
    """
    remedy = "For example BilevelProblem(energy, train)."
    check_object("problem", problem, ("energy", "pairs", "theta"), "a BilevelProblem", remedy)


def check_strategy(strategy: object, what: str = "strategy") -> None:
    """Refuse what cannot differentiate; None is the natural strategy.

    Raises:
        InputError: says what could.
    """
    if strategy is not None:
        expected = "a strategy such as Implicit(), or None"
        check_object(what, strategy, MAP, expected, f"Leave the choice to {what}=None.")


def check_measured(y: object, energy: object, what: str = "y") -> None:
    """Refuse measurements on another device than the energy, and pictures without a batch
    dimension.

    Raises:
        InputError: says how to bring them into the right form.
    """
    if not isinstance(y, Tensor):
        return  # refused by ``check_images`` in its own words

    here = _devices(energy)
    if here and y.device not in here:
        where = next(iter(sorted(map(str, here))))
        raise InputError(
            what,
            given=f"a tensor on the device {y.device}",
            expected=f"one on {where}, where the energy is",
            remedy=f"Pass {what}.to({where!r}), or move physics and regularizer.",
        )
    if y.dim() == 3 and y.shape[1] >= ROWS and _of_pictures(energy):
        raise InputError(
            what,
            given=f"shape {tuple(y.shape)}",
            expected="shape (b, c, h, w)",
            remedy=f"Add the batch dimension to one picture (c, h, w) with {what}[None], the "
            f"channel to grey ones (b, h, w) with {what}[:, None].",
        )


class _WithPhysics(Protocol):
    """An energy that keeps its physics as a plain attribute."""

    physics: object


class _WithRegularizer(Protocol):
    """An energy that keeps its regularizer as a plain attribute."""

    regularizer: object


def _devices(energy: object) -> set[torch.device]:
    """Where the tensors of an energy are."""
    if not isinstance(energy, nn.Module):
        return set()
    physics = energy.physics if offers(energy, _WithPhysics) else None
    modules = [energy, physics] if isinstance(physics, nn.Module) else [energy]
    return {t.device for m in modules for t in (*m.parameters(), *m.buffers())}


def _of_pictures(energy: object) -> bool:
    """Whether the regularizer compares neighbours in two directions, as those of the library do."""
    whole = energy.regularizer if offers(energy, _WithRegularizer) else energy
    parts = whole.modules() if isinstance(whole, nn.Module) else ()
    return any(offers(part, OfPictures) and part.pictures for part in parts)
