"""A finished run, made once."""

from __future__ import annotations

import pytest
from tests.cli.cases import invoke, write_config


@pytest.fixture(scope="package")
def learned(tmp_path_factory):
    """The folder of a finished run of two steps, not to be written to."""
    folder = tmp_path_factory.mktemp("learned")
    invoke("learn", write_config(folder))
    return folder / "out"
