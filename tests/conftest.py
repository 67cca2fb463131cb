"""What every test runs under, and the fast suite: a diagonal of every grid."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

DIAGONAL = 4
"""Cases of one parametrized test that ``--fast`` keeps, spread evenly over its grid."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast",
        action="store_true",
        help=f"at most {DIAGONAL} cases of every grid, and no test marked slow",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Thin out the grids where only a diagonal is asked for; the rest counts as deselected."""
    if not config.getoption("--fast"):
        return

    grids: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow") is None:
            grids[item.nodeid.split("[")[0]].append(item)

    kept: set[pytest.Item] = set()
    for cases in grids.values():
        count = min(DIAGONAL, len(cases))
        kept.update(cases[i * len(cases) // count] for i in range(count))

    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """One thread: the same sums in the same order on every machine, and no quarrel over cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
