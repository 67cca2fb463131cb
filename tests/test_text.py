"""The text of the project in numbers: widths of lines, look-ups by name, arguments without a type.

The two counts are ceilings. Lower them when you get below; never raise them.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "src" / "learnreg"

COLUMNS = 100
LOOKUPS = 15
"""Lines of the package, the command line apart, that ask for an attribute by its name."""
UNTYPED = 1.0
"""Percentage of annotated arguments of the package that may be anything."""

WRITTEN = {".py", ".md", ".toml"}
FOLDERS = ("src", "tests", "benchmarks", "examples", "experiments", "docs")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")

LOOKUP = re.compile(r"\b(?:get|has)attr\(")
URL = re.compile(r"https?://|!\[.*\]\(.*\)")
QUOTED = {"benchmarks/mutation.toml"}
"""Code, word by word."""

PRAGMA = re.compile(r"\s+# (?:type: ignore|noqa|fmt:)\S*.*$")


def texts() -> list[Path]:
    found = [f for folder in FOLDERS for f in (ROOT / folder).rglob("*") if f.suffix in WRITTEN]
    every = sorted([*found, *(ROOT / page for page in PAGES)])
    return [file for file in every if file.relative_to(ROOT).as_posix() not in QUOTED]


def too_wide(name: str, text: str) -> Iterator[str]:
    """Every line that is too long; a table, a picture, an address and a single word have no place
    to break, and what is said to a tool does not count.
    """
    for number, line in enumerate(text.splitlines(), start=1):
        table = name.endswith(".md") and line.lstrip().startswith("|")
        unbroken = table or len(line.split()) < 2 or URL.search(line)
        if len(PRAGMA.sub("", line)) > COLUMNS and not unbroken:
            yield f"{name}:{number}: {len(line)} columns"


def annotations(source: str) -> Iterator[str]:
    """The annotation of every argument of every function that has one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
                if argument is not None and argument.annotation is not None:
                    yield ast.unparse(argument.annotation)


def anything(annotation: str) -> bool:
    return re.search(r"\bAny\b", annotation) is not None


def sources() -> dict[str, str]:
    """The files of the package by their place in it."""
    return {
        file.relative_to(HOUSE).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(HOUSE.rglob("*.py"))
    }


def test_no_line_is_wider_than_a_page():
    found = [
        line
        for file in texts()
        for line in too_wide(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(["", *found])


def test_attributes_are_rarely_asked_for_by_name():
    found = [
        f"{name}:{number}"
        for name, text in sources().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if not name.startswith("cli/") and LOOKUP.search(line)
    ]
    assert len(found) <= LOOKUPS, "\n".join([f"{len(found)} lines", *found])


def test_arguments_have_types():
    counts = {
        name: [anything(annotation) for annotation in annotations(text)]
        for name, text in sources().items()
    }
    untyped, total = (sum(map(of, counts.values())) for of in (sum, len))
    worst = [f"{name}: {sum(c)}" for name, c in counts.items() if any(c)]
    share = 100 * untyped / total
    assert share <= UNTYPED, "\n".join([f"{untyped} of {total}, {share:.2f} %", *worst])


@pytest.mark.parametrize(
    ("name", "line", "wide"),
    [
        ("a.py", "x " * 50, False),
        ("a.py", "x " * 51, True),
        ("a.py", "| " * 51, True),
        ("a.py", "    " + "x" * 99, False),
        ("a.py", "x " * 49 + " # type: ignore[index]", False),
        ("a.md", "| " + "x" * 100 + " |", False),
        ("a.md", "see https://example.org/" + "x" * 100, False),
        ("a.md", "é" * 100, False),
    ],
)
def test_a_wide_line_is_found(name, line, wide):
    assert bool(list(too_wide(name, line))) == wide


def test_every_kind_of_argument_is_counted():
    source = (
        "def f(a: Any, /, b: dict[str, 'Any'], *c: int, d: Company, **e: Any) -> Any:\n"
        "    async def g(x, y: t.Any | None): ...\n"
    )
    found = list(annotations(source))
    assert len(found) == 6 and [anything(a) for a in found].count(True) == 4
