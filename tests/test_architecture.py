"""The house as data: which room may import which, by which door a foreign package enters.

A new room or a new door is one word in the tables below; the rest of this file only reads them.
"""

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "src" / "learnreg"

# Who may import whom. Every room may import itself and `core`; what is not listed is forbidden.
ROOMS = {
    "core": "",
    "operators": "",
    "convex": "",
    "linear": "",
    "metrics": "",
    "networks": "operators",
    "regularizers": "operators convex networks",
    "physics": "operators",
    "data": "operators",
    "problems": "operators convex",
    "models": "operators metrics physics regularizers problems solvers",
    "solvers": "linear",
    "hypergradients": "convex linear solvers",
    "objectives": "problems metrics solvers hypergradients",
    "learners": "",
    # why regularizers: total variation is a baseline of every run
    # why physics: baselines of counts split a scanner into subsets of views
    "runs": "metrics models physics regularizers problems solvers hypergradients objectives",
    "reports": "metrics",
    "testing": "operators regularizers problems solvers",
    "cli": "operators convex linear metrics networks regularizers physics data problems models"
    " solvers"
    " hypergradients objectives learners runs reports",
}

# By which door a foreign package enters: a file, or a whole room.
DOORS = {
    "deepinv": "operators/physics.py operators/layout.py operators/private.py operators/spectrum.py"
    # why: classes whose norms and sensitivities are known
    " operators/nonnegative.py operators/filtering.py operators/norms.py operators/sensitivity.py"
    " regularizers/prior.py problems/fidelity.py problems/noise_level.py"
    " hypergradients/layer.py data/pairs.py"
    " data/arrays.py data/measured.py data/fitting.py data/plausible.py"
    " metrics/image.py physics/ runs/em.py testing/liars.py testing/honest.py",
    "scipy": "learners/ reports/statistics.py",
    "bm3d": "runs/baselines.py",
    "optuna": "learners/search.py",
    "dfols": "learners/dfols.py",
    "h5py": "data/arrays.py",
    "skimage": "data/",
    "tifffile": "data/",
    "imagecodecs": "data/formats.py",
    "pydicom": "data/scans.py",
    "nibabel": "data/scans.py",
    "matplotlib": "reports/figures.py",
    "jinja2": "reports/",
    "pydantic": "cli/",
    "pydantic_core": "cli/",
    "typer": "cli/",
    "rich": "cli/",
}
EVERYWHERE = {"torch", "numpy", "safetensors", "PIL"}  # besides the standard library

# The front of the house: lazy re-exports for users, which the rooms themselves do not go through.
FRONT = {"__init__.py", "__main__.py"}

MAX_LINES = 600


def module_name(file: Path, house: Path) -> str:
    """`house/core/bounds.py` is `house.core.bounds`; an `__init__.py` is its package."""
    parts = file.relative_to(house.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, house: Path) -> Iterator[tuple[int, str]]:
    """All (line, absolute dotted name) a file imports, also in functions, for type checkers and by
    string.
    """
    package = module_name(file, house).split(".")
    if file.name != "__init__.py":
        package.pop()

    def absolute(name: str, level: int) -> str:
        above = package[: len(package) - level + 1] if level else []
        return ".".join(part for part in [*above, name] if part)

    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), filename=str(file))):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                source = absolute(node.module or "", node.level)
                yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                bare = name.lstrip(".")
                yield node.lineno, absolute(bare, len(name) - len(bare))


def objection(inside: str, target: str, house: str) -> str | None:
    """Why the file `inside` may not import `target`, or None if it may."""
    room = inside.split("/")[0]
    package, _, rest = target.partition(".")
    if package == house:
        guest = rest.split(".")[0]
        if guest in ROOMS:
            allowed = guest in {room, "core", *ROOMS[room].split()}
            return None if allowed else f"`{room}` may not import `{guest}`"
        # `__version__` is the one thing at the front that every room may ask for.
        front = guest == "__version__" or room == "cli"
        return (
            None
            if front
            else f"`{target}` must come from its room, not from the front of the house"
        )
    if package in DOORS:
        doors = DOORS[package].split()
        through = any(
            inside == door or (door.endswith("/") and inside.startswith(door)) for door in doors
        )
        return None if through else f"`{package}` enters only by {', '.join(doors)}"
    known = package in EVERYWHERE or package in sys.stdlib_module_names
    return None if known else f"`{package}` has no door: is it a declared dependency?"


def violations(house: Path) -> list[str]:
    """Every breach of the tables in the package at `house`, and one import cycle if there is
    any.
    """
    files = {module_name(file, house): file for file in sorted(house.rglob("*.py"))}
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        inside = file.relative_to(house).as_posix()
        if inside in FRONT:
            continue
        if inside.split("/")[0] not in ROOMS:
            found.append(f"{inside}: stands in no room of the table")
            continue
        graph[module] = set()
        for line, target in imports(file, house):
            if complaint := objection(inside, target, house.name):
                found.append(f"{inside}:{line}: {complaint}")
            # `from a.b import c` leads to the module a.b.c if it exists, else to a.b: the longest
            # prefix.
            owner = target
            while owner and owner not in files:
                owner = owner.rpartition(".")[0]
            missing = "." in target.removeprefix(owner + ".")  # a file yet to be written
            if owner not in {"", house.name, module} and not missing:
                graph[module].add(owner)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("import cycle: " + " imports ".join(reversed(error.args[1])))
    return found


def test_the_house_keeps_its_own_rules():
    found = violations(HOUSE)
    assert not found, "\n".join(["", *found])


def test_the_table_of_rooms_has_one_direction():
    assert {guest for row in ROOMS.values() for guest in row.split()} <= ROOMS.keys()
    assert not any("cli" in row.split() for row in ROOMS.values()), (
        "nothing imports the command line"
    )
    TopologicalSorter({room: row.split() for room, row in ROOMS.items()}).prepare()


def build(house: Path, files: dict[str, str]) -> Path:
    """A small, lawful house in which `files` are added or replaced."""
    lawful = {
        "__init__.py": "def __getattr__(name):\n    from house.cli import main\n",
        "core/__init__.py": "from house.core.bounds import Bound\nfrom .status import Status",
        "core/bounds.py": "import math\nBound = Status = float",
        "core/status.py": "from .bounds import Status",
        "linear/__init__.py": "from .cg import cg",
        "linear/cg.py": "import torch\nfrom ..core import Bound\nfrom house.core import "
        "status\ncg = None",
        "solvers/__init__.py": "",
        "solvers/agd.py": "from house.linear import cg\nfrom house import __version__",
        "operators/__init__.py": "",
        "operators/physics.py": "from deepinv.physics import Physics",
        "cli/__init__.py": "",
        "cli/main.py": "import typer\nimport house\nfrom house.solvers import agd",
    }
    for name, source in (lawful | files).items():
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(source, encoding="utf-8")
    return house


def test_a_lawful_house_passes(tmp_path):
    assert violations(build(tmp_path / "house", {})) == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("core/a.py", "import house.linear.cg", "core/a.py:1: `core` may not import `linear`"),
        ("core/a.py", "from ..linear import cg", "`core` may not import `linear`"),
        ("core/a.py", "from .. import linear", "`core` may not import `linear`"),
        (
            "core/a.py",
            "def f():\n    import house.linear",
            "core/a.py:2: `core` may not import `linear`",
        ),
        (
            "core/a.py",
            "if TYPE_CHECKING:\n    import house.linear",
            "`core` may not import `linear`",
        ),
        ("core/a.py", "importlib.import_module('house.linear')", "`core` may not import `linear`"),
        ("core/a.py", "import_module('..linear', __package__)", "`core` may not import `linear`"),
        (
            "solvers/deep/a.py",
            "from ...problems import energy",
            "`solvers` may not import `problems`",
        ),
        ("solvers/a.py", "from house.cli.main import app", "`solvers` may not import `cli`"),
        ("solvers/a.py", "from house import Energy", "not from the front"),
        (
            "solvers/a.py",
            "import matplotlib.pyplot as plt",
            "`matplotlib` enters only by reports/figures.py",
        ),
        ("solvers/a.py", "from scipy.optimize import minimize", "`scipy` enters only by learners"),
        ("operators/a.py", "import deepinv as dinv", "`deepinv` enters only by"),
        ("cli/a.py", "import deepinv", "`deepinv` enters only by"),
        ("core/a.py", "import requests", "`requests` has no door"),
        ("stray.py", "", "stray.py: stands in no room"),
        ("attic/__init__.py", "", "attic/__init__.py: stands in no room"),
        ("core/bounds.py", "def f():\n    from .status import Status", "import cycle: "),
        ("core/bounds.py", "from house.core import Status", "import cycle: "),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, source, complaint):
    (found,) = violations(build(tmp_path / "house", {file: source}))
    assert complaint in found


@pytest.mark.parametrize(
    "inside", sorted(file.relative_to(HOUSE).as_posix() for file in HOUSE.rglob("*.py"))
)
def test_a_file_is_short_and_says_what_it_is_for(inside):
    text = (HOUSE / inside).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "a file opens with a docstring: its caption"
    assert len(text.splitlines()) < MAX_LINES, "a file this long is two files"


# A path from the root of somebody's machine: it means nothing on another one.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/}-])(?:/(?:home|root|Users|mnt|opt|srv|tmp|var|work|workspace|scratch)/\w|[A-Z]:\\\w)"
)


def test_no_file_knows_the_machine_it_was_written_on():
    folders = ("src", "tests", "examples", "benchmarks", "experiments", "docs", ".ci")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*")] + list(
        ROOT.iterdir()
    )
    written = {".py", ".md", ".toml", ".yaml", ".cff", ".j2", ".json"}
    for file in files:
        if file.is_file() and (file.suffix in written or file.name in {"Makefile", "run"}):
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                assert not MACHINE_PATH.search(line), (
                    f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
                )


@pytest.mark.parametrize(
    ("line", "personal"),
    [
        ("open('/" + "home/ada/images')", True),
        ("cd /" + "tmp/x", True),
        ("C:" + "\\Users", True),
        ("https://example.org/home/page", False),
        ("#!/usr/bin/env bash", False),
        ("examples/work/report", False),
    ],
)
def test_a_machine_path_is_recognised(line, personal):
    assert bool(MACHINE_PATH.search(line)) is personal
