"""The contract of a regularizer, for a class of your own: no base class is asked for."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from ..core.batch import dot, norm
from ..core.params import flatten, trainable, with_theta
from ..operators import taylor_test
from ..regularizers import KNOWN as KNOWN_CLASSES
from ..regularizers import Scaled, Sum, from_spec
from .claims import expect, expect_close, expect_derivative, normal, relative
from .nouns import Candidate, offered
from .spectra import check_bounds, check_changes

EXACT = 1e-10
"""For what is the same computation in another order."""

MOST_DIRECTIONS = 12
"""Of theta along which mixed derivatives are compared: all coordinates if there are fewer."""


def check_regularizer(
    regularizer: nn.Module, images: Tensor, *, tolerance: float = 1e-5, seed: int = 0
) -> tuple[str, ...]:
    """Whether a regularizer is what ``Energy`` takes it for; the object is left as it is.

    In float64, at the images and at noisy neighbours of them: the gradient is the derivative of the
    value (difference quotients, and the order of the remainder), the Hessian that of the gradient,
    symmetric, and its ``select`` that of the selected images; ``directional`` is the product with
    the gradient and its derivative in theta that of difference quotients; mu <= Rayleigh quotients
    <= L, also at other parameters; no image sees another one; nothing lent is changed; float32
    gives float32 and is close; ``state_dict`` and ``spec`` (where there is one) rebuild the
    function. What is optional (``mean_curvature``, ``hessian_change``, ``mixed_change``,
    ``mixed_norm``, ``spec``) is checked where it is offered. A potential with kinks in its
    derivative passes as long as no image has features exactly on them.

    Args:
        regularizer: a module with ``value``, ``grad``, ``linearize``, ``directional``, ``bounds``.
        images: (b, c, h, w), of the size and range that it is for.
        tolerance: relative, for comparisons with difference quotients.
        seed: of the directions.

    Returns:
        The names of the checks that were made.

    Raises:
        AssertionError: the first that fails: what was given, what was expected.

    >>> import torch, learnreg
    >>> made = check_regularizer(learnreg.regularizers.TV(), torch.rand(2, 1, 5, 6))
    >>> "gradient" in made
    True
    """
    name = type(regularizer).__name__
    for method, found in _methods(cast(Candidate, regularizer)).items():
        expect(
            callable(found),
            f"{method} of {name}",
            given="nothing of that name",
            expected="a method",
        )

    r = cast(Candidate, copy.deepcopy(regularizer).to(torch.float64))
    x = _enough(images.detach().to(torch.float64), seed)
    v = normal(x, seed + 1)

    _shapes(r, x, v, name)
    _gradient(r, x, v, tolerance, name)
    _hessian(r, x, v, tolerance, name)
    _select(r, x, v, name)
    _directional(r, x, v, tolerance, name)
    check_bounds(r, x, name)
    _other_parameters(r, x, v, tolerance, name)
    _strangers(r, x, v, name)
    _lent(r, x, v, name)
    _float32(r, x, v, name)
    _state(r, x, name)
    made = ["shapes", "gradient", "hessian", "select", "directional", "bounds", "parameters"]
    made += ["batch", "lent", "float32", "state_dict"]
    made += check_changes(r, x, v, name)
    made += _averages(r, x, name)
    made += _spec(r, x, name)
    return tuple(made)


def _methods(r: Candidate) -> dict[str, object]:
    """What is needed, by name; None where it is missing."""
    return {
        "value": offered(lambda: r.value),
        "grad": offered(lambda: r.grad),
        "linearize": offered(lambda: r.linearize),
        "directional": offered(lambda: r.directional),
        "bounds": offered(lambda: r.bounds),
    }


def _enough(x: Tensor, seed: int) -> Tensor:
    """The images and, beside each of them, a noisy neighbour: a batch of two at least."""
    expect(x.dim() == 4 and x.numel() > 0, "images", given=tuple(x.shape), expected="(b, c, h, w)")
    return torch.cat([x, x + 0.1 * x.std(unbiased=False).clamp_min(0.01) * normal(x, seed)])


def mixed(r: Candidate, x: Tensor, v: Tensor) -> Tensor:
    """J^T v summed over images: the gradient of ``directional`` in theta, (d,)."""
    params = trainable(r)
    with torch.enable_grad():
        slopes = r.directional(x, v).sum()
    if not params or not slopes.requires_grad:
        return torch.zeros(sum(p.numel() for p in params), dtype=x.dtype)
    found = torch.autograd.grad(slopes, params, allow_unused=True)
    return torch.cat(
        [
            torch.zeros(p.numel(), dtype=x.dtype) if g is None else g.reshape(-1)
            for p, g in zip(params, found, strict=True)
        ]
    )


def _shapes(r: Candidate, x: Tensor, v: Tensor, name: str) -> None:
    b = (x.shape[0],)
    wanted = {"value": (r.value(x), b), "grad": (r.grad(x), tuple(x.shape))}
    wanted["linearize(x)(v)"] = (r.linearize(x)(v), tuple(x.shape))
    wanted["directional"] = (r.directional(x, v), b)
    for method, (found, shape) in wanted.items():
        what = f"{method} of {name}"
        expect(tuple(found.shape) == shape, what, given=tuple(found.shape), expected=shape)
        expect(found.dtype == x.dtype, what, given=found.dtype, expected=x.dtype)
        expect(bool(found.isfinite().all()), what, given="NaN or Inf", expected="finite numbers")
    for method in ("grad", "linearize(x)(v)"):
        expect(
            not wanted[method][0].requires_grad,
            f"{method} of {name}",
            given="a result with a graph",
            expected="none (compute it without autograd, or detach it)",
        )


def _scale(x: Tensor) -> float:
    return max(float(x.std(unbiased=False)), 1e-3 * float(x.abs().max()), 1e-6)


def _gradient(r: Candidate, x: Tensor, v: Tensor, tolerance: float, name: str) -> None:
    g = r.grad(x)
    floor = 1e-9 * float(norm(v).max()) * float(norm(g).max()) + 1e-12
    for direction in (v, normal(x, 11), _spikes(x)):
        expect_derivative(
            dot(g, direction),
            lambda t, d=direction: r.value(x + t * d),  # type: ignore[misc]
            _scale(x),
            tolerance,
            f"grad of {name}",
            "the difference quotient of value",
            floor,
        )
    if float(r.value(x).abs().max()) > 0:
        orders = taylor_test(r.value, r.grad, x)
        rounding = _remainder(r, x) < 1e-11
        expect(
            bool(((orders > 1.6) | rounding).all()),
            f"grad of {name}",
            given=f"a remainder of order {float(orders.min()):.2f}",
            expected="2 (Taylor)",
        )


def _remainder(r: Candidate, x: Tensor) -> Tensor:
    """The larger of the remainders that ``taylor_test`` divides, relative to the value."""
    v = normal(x, 0)
    v = v / norm(v).view(-1, 1, 1, 1)
    remainder = (r.value(x + 1e-2 * v) - r.value(x) - 1e-2 * dot(r.grad(x), v)).abs()
    return remainder / r.value(x).abs().clamp_min(1e-300)


def _spikes(x: Tensor) -> Tensor:
    """A corner of one image, an edge of the next, the middle of the third, and so on."""
    h, w = x.shape[-2:]
    places = [(0, 0), (h - 1, w - 1), (h // 2, w // 2), (0, w - 1), (h - 1, w // 2), (h // 2, 0)]
    out = torch.zeros_like(x)
    for i in range(x.shape[0]):
        row, column = places[i % len(places)]
        out[i, :, row, column] = 1
    return out


def _hessian(r: Candidate, x: Tensor, v: Tensor, tolerance: float, name: str) -> None:
    h = r.linearize(x)
    for direction in (v, _spikes(x)):
        claimed = h(direction)
        expect_derivative(
            claimed,
            lambda t, d=direction: r.grad(x + t * d),  # type: ignore[misc]
            _scale(x),
            tolerance,
            f"linearize of {name}",
            "the difference quotient of grad",
            1e-9 * float(claimed.norm()) + 1e-12,
        )
    w = normal(x, 12)
    left, right = dot(h(v), w), dot(v, h(w))
    size = float((norm(h(v)) * norm(w)).max())
    expect_close(
        left, right, 1e-9, f"linearize of {name}", "a symmetric Hessian, <Hv, w> = <v, Hw>", size
    )
    expect_close(
        h(2 * v - 3 * w), 2 * h(v) - 3 * h(w), 1e-9, f"linearize of {name}", "a linear map"
    )


def _select(r: Candidate, x: Tensor, v: Tensor, name: str) -> None:
    h, b = r.linearize(x), x.shape[0]
    whole = h(v)
    index = torch.arange(b - 1, -1, -1)[: max(1, b - 1)]
    what = f"linearize(x).select of {name}"
    some = h.select(index)
    expect_close(some(v[index]), whole[index], EXACT, what, "the Hessian of the selected images")
    last = torch.tensor([index.numel() - 1])
    one = index[last]
    expect_close(some.select(last)(v[one]), whole[one], EXACT, what, "the same, selected twice")
    expect_close(h(v), whole, EXACT, what, "to leave the Hessian as it is")


def _directional(r: Candidate, x: Tensor, v: Tensor, tolerance: float, name: str) -> None:
    what = f"directional of {name}"
    size = float((norm(r.grad(x)) * norm(v)).max())
    slopes = r.directional(x, v).detach()
    expect_close(slopes, dot(r.grad(x), v), 1e-9, what, "<grad R(x), v> per image", size)

    theta = flatten(trainable(r)).double()
    if not theta.numel():
        return
    for i in range(x.shape[0]):
        xi, vi = x[i : i + 1], v[i : i + 1]
        j = mixed(r, xi, vi)
        for direction in _directions(theta):
            expect_derivative(
                (j @ direction)[None],
                lambda t, d=direction, xi=xi, vi=vi: dot(  # type: ignore[misc]
                    _at(r, theta + t * d).grad(xi), vi
                ),
                1.0,
                tolerance,
                f"derivative of {what} in theta",
                "the difference quotient of <grad R(x), v> over theta",
                1e-3 * float(j.norm()) + 1e-9 * size + 1e-12,
            )


def _at(r: Candidate, theta: Tensor) -> Candidate:
    return with_theta(r, theta)


def _directions(theta: Tensor) -> Tensor:
    """Coordinates of theta if they are few; else the first two and random mixtures."""
    d = theta.numel()
    if d <= MOST_DIRECTIONS:
        return torch.eye(d, dtype=torch.float64)
    drawn = normal(torch.zeros(MOST_DIRECTIONS - 2, d, dtype=torch.float64), 13)
    few = torch.eye(d, dtype=torch.float64)[:2]
    return torch.cat([few, drawn / drawn.norm(dim=1, keepdim=True)])


def _other_parameters(r: Candidate, x: Tensor, v: Tensor, tolerance: float, name: str) -> None:
    """What changes in place is seen: nothing computed at other parameters is kept."""
    params = trainable(r)
    if not params:
        return
    theta = flatten(params).double()
    moved = theta + 0.2 * normal(theta, 14)
    used = copy.deepcopy(r)
    _everything(used, x, x), used.bounds()
    with torch.no_grad():
        start = 0
        for p in trainable(used):
            p.copy_(moved[start : start + p.numel()].view_as(p))
            start += p.numel()
    fresh = _at(r, moved)
    what = f"parameters of {name} changed in place"
    expect_close(used.value(x), fresh.value(x), EXACT, what, "the value at the new ones")
    expect_close(used.grad(x), fresh.grad(x), EXACT, what, "the gradient at the new ones")
    given, wanted = used.bounds(), fresh.bounds()
    expect(given == wanted, what, given=f"bounds {given}", expected=f"{wanted}")
    name = f"{name} at other parameters"
    _gradient(used, x, v, tolerance, name)
    _hessian(used, x, v, tolerance, name)
    check_bounds(used, x, name)


def _strangers(r: Candidate, x: Tensor, v: Tensor, name: str) -> None:
    whole = _everything(r, x, v)
    for i in range(x.shape[0]):
        alone = _everything(r, x[i : i + 1], v[i : i + 1])
        for method, result in whole.items():
            expect_close(
                alone[method],
                result[i : i + 1],
                1e-9,
                f"{method} of {name} for image {i} alone",
                "that of the same image in a batch",
                1e-9 * float(result.norm()),
            )


def _everything(r: Candidate, x: Tensor, v: Tensor) -> dict[str, Tensor]:
    return {
        "value": r.value(x),
        "grad": r.grad(x),
        "linearize": r.linearize(x)(v),
        "directional": r.directional(x, v).detach(),
    }


def _lent(r: Candidate, x: Tensor, v: Tensor, name: str) -> None:
    kept_x, kept_v, random = x.clone(), v.clone(), torch.get_rng_state()
    state = copy.deepcopy(r.state_dict())
    first, second = _everything(r, x, v), _everything(r, x, v)
    what = f"a call of {name}"
    for method in first:
        expect_close(second[method], first[method], EXACT, f"{method} of {name}", "repeatable")
    same = torch.equal(x, kept_x) and torch.equal(v, kept_v)
    expect(same, what, given="changed arguments", expected="arguments left as they are")
    after = r.state_dict()
    expect(
        all(torch.equal(after[k], t) for k, t in state.items()),
        what,
        given="changed parameters or buffers",
        expected="a state left as it is",
    )
    expect(
        torch.equal(torch.get_rng_state(), random),
        what,
        given="a draw from the global random state",
        expected="a generator of its own",
    )


def _float32(r: Candidate, x: Tensor, v: Tensor, name: str) -> None:
    single = copy.deepcopy(r).to(torch.float32)
    fine = _everything(
        copy.deepcopy(single).to(torch.float64), x.float().double(), v.float().double()
    )
    for method, found in _everything(single, x.float(), v.float()).items():
        what = f"{method} of {name} in float32"
        expect(found.dtype == torch.float32, what, given=found.dtype, expected="torch.float32")
        floor = float((norm(fine["grad"]) * norm(v)).max()) if method == "directional" else 1e-6
        difference = relative(found, fine[method], floor)
        expect(
            difference <= 1e-3,
            what,
            given=f"a relative difference of {difference:.2e}",
            expected="that of float64, up to 1e-03",
        )


def _state(r: Candidate, x: Tensor, name: str) -> None:
    twin = copy.deepcopy(r)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    what = f"state_dict of {name}"
    twin.load_state_dict(copy.deepcopy(r.state_dict()))
    expect_close(twin.value(x), r.value(x), EXACT, what, "to restore the function")
    expect_close(twin.grad(x), r.grad(x), EXACT, what, "to restore the gradient")


def _averages(r: Candidate, x: Tensor, name: str) -> list[str]:
    method = offered(lambda: r.mean_curvature)
    mean = None if method is None else method(x)
    if mean is None:
        return []
    for word, found, last in (
        ("diagonal", mean.diagonal, x.shape[-1]),
        ("symbol", mean.symbol, x.shape[-1] // 2 + 1),
    ):
        what, wanted = f"mean_curvature(x).{word} of {name}", (*x.shape[1:-1], last)
        expect(tuple(found.shape[1:]) == wanted, what, given=tuple(found.shape), expected=wanted)
        sound = bool((found.isfinite() & (found >= 0)).all())
        expect(sound, what, given="negative or infinite entries", expected="entries >= 0")
    return ["mean_curvature"]


def _spec(r: Candidate, x: Tensor, name: str) -> list[str]:
    try:
        spec = r.spec()
    except (AttributeError, NotImplementedError):
        return []
    what = f"spec of {name}"
    expect(
        isinstance(spec, dict) and "type" in spec, what, given=spec, expected="a dict with 'type'"
    )
    try:
        rebuilt = _rebuilt(r, dict(spec)).to(torch.float64)
        rebuilt.load_state_dict(r.state_dict())
    except (TypeError, ValueError, RuntimeError) as error:
        raise AssertionError(
            f"{what}: given {spec}; expected what rebuilds the regularizer ({error})."
        ) from error
    expect_close(rebuilt.value(x), r.value(x), EXACT, what, "to rebuild the function")
    expect_close(rebuilt.grad(x), r.grad(x), EXACT, what, "to rebuild the gradient")
    trained = [p.requires_grad for p in r.parameters()]
    again = [p.requires_grad for p in rebuilt.parameters()]
    expect(again == trained, what, given=f"learned: {again}", expected=trained)
    return ["spec"]


def _rebuilt(r: Candidate, spec: dict[str, object]) -> Candidate:
    kind: type[object] = type(r)
    if kind in (Sum, Scaled, *KNOWN_CLASSES.values()):
        return cast(Candidate, from_spec(spec))
    spec.pop("type")
    return type(r)(**spec)
