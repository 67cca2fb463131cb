"""The project as a stranger meets it: its commands, its version, its front door."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import learnreg

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def python(*arguments: str) -> str:
    """What a fresh interpreter prints; its complaint, if it fails."""
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("command", ["make demo", "make test", "pip install .", "learnreg demo"])
def test_the_readme_names_the_commands(command):
    assert command in read("README.md")


def test_one_version_everywhere():
    citation = re.search(r"^version: *['\"]?([^'\"\s]+)", read("CITATION.cff"), re.MULTILINE)
    changelog = re.search(r"^## \[(\d[^\]]*)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert citation and changelog
    declared = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert declared == learnreg.__version__ == citation[1] == changelog[1]


def test_help_comes_at_once():
    """CPU seconds, best of three: the first run may compile, and a busy machine must not fail
    us.
    """

    def cpu_seconds() -> float:
        before = os.times()
        assert "demo" in python("-m", "learnreg", "--help")
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    assert min(cpu_seconds() for _ in range(3)) < 1.0


def test_the_front_door_is_light():
    heavy = "{'torch', 'deepinv', 'numpy', 'matplotlib'}"
    code = f"import learnreg, sys; print(*{heavy} & sys.modules.keys())"
    assert python("-c", code).split() == []


def test_every_public_name_opens():
    assert set(learnreg.__all__) <= set(dir(learnreg))
    for name in learnreg.__all__:
        assert getattr(learnreg, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = learnreg.no_such_name


def test_the_typing_marker_travels_with_the_package():
    assert (Path(learnreg.__file__).parent / "py.typed").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no executable bit")
def test_continuous_integration_can_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
