"""Bound arithmetic: monotone, never stronger than its weakest part, never "exact" by accident."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import tensor

from learnreg.core.bounds import Bound, Constants, Curvature, Kind
from learnreg.core.errors import InputError

values = st.floats(0, 1e100)
known = st.sampled_from([Kind.ESTIMATE, Kind.BOUND, Kind.EXACT])
bounds = st.builds(Bound, values, known) | st.just(Bound.unknown())
factors = st.floats(0, 1e100)


@given(bounds, bounds)
def test_a_sum_is_no_better_known_than_its_terms(a, b):
    total = a + b
    assert total.kind <= min(a.kind, b.kind)
    assert total.kind >= min(a.kind, b.kind, Kind.BOUND) or not math.isfinite(total.value)
    assert total.value == a.value + b.value
    assert total == b + a
    assert total.certified == (a.certified and b.certified)


@given(values, values)
def test_exact_plus_exact_is_exact_only_beside_zero(a, b):
    total = Bound.exact(a) + Bound.exact(b)
    assert (total.kind == Kind.EXACT) == (a == 0 or b == 0)
    assert total.certified, "a sum of exact extremes is still proven"


@given(bounds, factors)
def test_scaling_keeps_the_kind_and_zero_is_exact(a, factor):
    scaled = factor * a
    assert scaled == a * factor
    if factor == 0:
        assert scaled == Bound.exact(0.0)
    else:
        assert scaled.value == a.value * factor
        assert scaled.kind == a.kind or not math.isfinite(scaled.value)


@given(bounds, bounds, bounds, factors)
def test_arithmetic_is_monotone(a, b, c, factor):
    assume(a.value <= b.value)
    assert (a + c).value <= (b + c).value
    assert (factor * a).value <= (factor * b).value


@given(bounds, bounds, bounds)
def test_sums_are_associative_up_to_rounding(a, b, c):
    left, right = (a + b) + c, a + (b + c)
    assert left.value == pytest.approx(right.value) or left.value == right.value
    assert left.kind == right.kind


@given(bounds, bounds, bounds, bounds, factors)
def test_curvature_adds_and_scales_both_ends(a, b, c, d, factor):
    total = factor * (Curvature(a, b) + Curvature(c, d))
    assert (
        total
        == Curvature(factor * (a + c), factor * (b + d))
        == (Curvature(a, b) + Curvature(c, d)) * factor
    )


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("make", [Bound.exact, Bound.proven, Bound.estimate])
def test_what_is_not_finite_is_not_known(make, value):
    assert make(value).kind == Kind.UNKNOWN and not make(value).certified


@pytest.mark.parametrize("value", [-1.0, -1e-300])
def test_a_negative_upper_bound_is_refused_and_a_negative_mu_is_not(value):
    with pytest.raises(InputError, match="L: given -"):
        Curvature(Bound.exact(0.0), Bound.proven(value))
    assert Curvature(Bound.proven(value), Bound.exact(1.0)).mu.certified


@pytest.mark.parametrize("factor", [-1.0, math.inf, math.nan])
def test_a_factor_that_would_turn_the_bound_is_refused(factor):
    with pytest.raises(
        InputError, match=f"factor: given {factor}; expected a finite non-negative number"
    ):
        Bound.exact(1.0) * factor


def test_kinds_are_ordered_and_only_proofs_are_called_certified():
    assert Kind.EXACT > Kind.BOUND > Kind.ESTIMATE > Kind.UNKNOWN
    assert [k.label for k in sorted(Kind)] == ["unknown", "estimated", "certified", "certified"]
    assert [k.certifies for k in sorted(Kind)] == [False, False, True, True]


def test_bounds_show_what_they_are():
    assert repr(Bound.estimate(2.5)) == "Bound(2.5, estimate)"
    assert str(Bound.proven(1 / 3)) == "0.3333 (bound)" and float(Bound.exact(2)) == 2.0


def constants(mu: list[float], L: list[float], kind: Kind = Kind.EXACT) -> Constants:
    return Constants(tensor(mu).double(), tensor(L).double(), kind, kind)


def test_what_holds_for_a_batch_holds_for_its_worst_image():
    curvature = constants([2.0, 0.5, 1.0], [3.0, 4.0, 9.0]).curvature
    assert (curvature.mu, curvature.L) == (Bound.exact(0.5), Bound.exact(9.0))


@pytest.mark.parametrize("one", [Kind.ESTIMATE, Kind.BOUND, Kind.EXACT])
@pytest.mark.parametrize("other", [Kind.ESTIMATE, Kind.BOUND, Kind.EXACT])
def test_constants_of_images_add_like_bounds(one, other):
    total = constants([0.5, 2.0], [3.0, 4.0], one) + constants([0.25], [1.0], other)
    assert total.mu.tolist() == [0.75, 2.25] and total.L.tolist() == [4.0, 5.0]
    assert total.mu_kind == total.L_kind == (Bound(1.0, one) + Bound(1.0, other)).kind
    nothing = constants([0.0], [0.0], one) + constants([0.5], [1.0], other)
    assert nothing.mu_kind == (Bound(0.0, one) + Bound(1.0, other)).kind
    unknown = constants([0.5], [math.inf], one) + constants([0.5], [1.0], other)
    assert unknown.L_kind == Kind.UNKNOWN != unknown.mu_kind


def test_constants_of_some_images_are_theirs():
    chosen = constants([2.0, 0.5, 1.0], [9.0]).select(tensor([2, 0]))
    assert chosen.mu.tolist() == [1.0, 2.0] and chosen.L.tolist() == [9.0]
