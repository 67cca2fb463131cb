"""Every function at once: the fast suite draws four cases of a grid, and a formula belongs to one.

The promises are those of ``test_contract.py``, without the ones that need a brute-force search.
"""

from __future__ import annotations

import pytest

from . import test_contract as contract
from .cases import CASES

PROMISES = {
    "values": (
        contract.test_the_prox_minimizes_to_the_last_digits,
        contract.test_prox_of_the_conjugate_is_moreaus,
        contract.test_the_gap_is_what_fenchel_and_young_leave,
    ),
    "derivatives": (
        contract.test_gradient_and_hessian,
        contract.test_gradient_and_hessian_of_the_conjugate,
    ),
    "tangents": (
        lambda case: contract.test_tangents_of_the_prox(case, "prox"),
        lambda case: contract.test_tangents_of_the_prox(case, "prox_conjugate"),
    ),
    "constants": (
        contract.test_constants_hold,
        contract.test_the_change_of_the_hessian_is_bounded,
        contract.test_growth_is_never_too_large,
    ),
}


@pytest.mark.parametrize("promise", PROMISES)
def test_every_function_keeps_its_promises(promise):
    for case in CASES:
        for check in PROMISES[promise]:
            check(case)
