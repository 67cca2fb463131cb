"""What is asked of an objective and is not granted is refused, whichever of the needs it is."""

from __future__ import annotations

import pytest

from learnreg.core.errors import MissingPropertyError
from learnreg.core.grants import REFUSALS, STEADY, Grants, check_needs
from learnreg.hypergradients import Implicit, JacobianFree, Piggyback, Unrolled

ALL = ~Grants.NONE


def test_every_grant_has_its_words():
    assert set(REFUSALS) == set(Grants)


@pytest.mark.parametrize("missing", Grants, ids=lambda g: g.name)
def test_a_single_need_that_is_not_met_is_refused_in_its_words(missing):
    what, expected, remedy = REFUSALS[missing]
    with pytest.raises(MissingPropertyError) as caught:
        check_needs("a learner", ALL, ALL & ~missing, "an objective")
    assert str(caught.value).startswith(f"{what}: given an objective")
    assert expected.format(who="a learner") in str(caught.value) and remedy in str(caught.value)


@pytest.mark.parametrize("needed", Grants, ids=lambda g: g.name)
def test_what_is_granted_is_taken_and_what_nobody_needs_may_lack(needed):
    check_needs("a learner", needed, needed, "an objective")
    check_needs("a learner", Grants.NONE, ALL & ~needed, "an objective")


@pytest.mark.parametrize("strategy", [Implicit(), JacobianFree(), Piggyback(), Unrolled()])
def test_maps_that_are_functions_say_so(strategy):
    assert STEADY == Grants.DATA | Grants.STATELESS and STEADY in strategy.grants
