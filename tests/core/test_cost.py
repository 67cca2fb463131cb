"""Work is counted once, and what was spent is what there is minus what there was."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from learnreg.core.cost import Cost

NAMES = [f.name for f in fields(Cost)]
costs = st.builds(Cost, *(st.integers(0, 1000) for _ in NAMES))


@given(costs, costs)
def test_sums_and_differences_are_those_of_every_counter(a, b):
    total = a + b
    assert all(getattr(total, n) == getattr(a, n) + getattr(b, n) for n in NAMES)
    assert total - b == a and total - total == Cost()
    assert total.work == a.work + b.work


def test_every_evaluation_is_work_and_steps_are_not_counted_again():
    one = {name: Cost(**{name: 1}).work for name in NAMES}
    counted = {"values", "gradients", "linearizations", "hessian_products", "mixed_products"}
    assert one == {name: int(name in counted) for name in NAMES}


@given(costs, st.integers(1, 9))
def test_means_per_image(a, images):
    means = a.per_image(images)
    assert means.keys() == {*NAMES, "work"}
    assert all(means[name] == getattr(a, name) / images for name in means)
