"""Operators that learn, constraints, counts, ill-posed physics: all tables in one program.

python benchmarks/operators.py [--seeds 0 1 2] [--only kernels sampling] [--quick] [--json FILE]

Every ``benchmarks/operators_NAME.py`` beside this file is one table: a ``run(seeds, quick)`` that
gives rows of equal keys, and can be called as a program of its own. Work is counted per image,
abandoned work included; images and seeds for the numbers are not those that defaults were chosen
on. ``--quick`` is a smaller version of each table that shows that it runs, and proves nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

Row = dict[str, object]

PREFIX = "operators_"


class Table(Protocol):
    """A module of this folder."""

    def run(self, seeds: Sequence[int], quick: bool) -> list[Row]: ...


def tables() -> list[str]:
    """The names of all tables."""
    here = Path(__file__).parent
    return sorted(p.stem.removeprefix(PREFIX) for p in here.glob(f"{PREFIX}*.py"))


def shown(value: object) -> str:
    """A cell of a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_rows(rows: Sequence[Row]) -> None:
    """Columns of equal width; rows with other keys begin a table of their own."""
    while rows:
        keys = list(rows[0])
        alike = [row for row in rows if list(row) == keys]
        rows = [row for row in rows if list(row) != keys]

        cells = [keys, *([shown(row[key]) for key in keys] for row in alike)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
        for line in cells:
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
        print(flush=True)


def main() -> None:
    names = tables()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="TABLE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, help="write all rows to a file")
    options = parser.parse_args()

    found: dict[str, list[Row]] = {}
    for name in options.only:
        print(f"# {name}\n", flush=True)
        table = cast(Table, importlib.import_module(PREFIX + name))
        found[name] = table.run(options.seeds, options.quick)
        print_rows(found[name])
        if options.json is not None:  # after every table, so that an interruption loses one
            options.json.write_text(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
