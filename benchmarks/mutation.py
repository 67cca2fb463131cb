"""A mutation check of the numerics: faults planted one at a time, and whether a test sees them.

    OMP_NUM_THREADS=1 nice python benchmarks/mutation.py --json mutation.json

Each fault of ``mutation.toml`` is a small change that a critical reader would look for: a sign, a
factor 2, a missing root, the wrong index, a term that a bound forgets, work that is not counted.
It is planted into a temporary copy of ``src``, never into the working tree, and the test files that
should see it are run against the copy: the fast suite, and where that sees nothing the full one.
    killed     a test failed, in the suite named beside it;
    timed out  no test failed within ``--limit`` seconds: the fault loops, or the machine is slow.
               Either way nothing is settled, and the fault wants a sharper test;
    survived   all tests passed: either a test is missing, or the fault changes nothing that anyone
               could see (``equivalent`` in the file says why; such faults are expected here).
At the end the tests that saw a fault are run against the sound copy, where all of them have to
pass; ``--unproven`` leaves that out. A fault is found by its text, which has to occur exactly once
in its room of the package (or, if it is not there at all, in the whole package), so code may move.
``--list`` says where every fault would be planted and runs nothing.

The exit code is 1 if a fault was not killed that is not called equivalent, if one that is was, if a
fault could not be planted, or if a test that saw one fails on sound code. Seconds are wall time,
with the start of Python and torch.

    python benchmarks/mutation.py --only "solvers" --only "momentum"     rooms, files or meanings
"""

from __future__ import annotations

import argparse
import collections
import compileall
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
FAULTS = Path(__file__).with_suffix(".toml")

KILLED, SURVIVED, TIMED_OUT, ERROR = "killed", "survived", "timed out", "error"
VERDICTS = {0: SURVIVED, 1: KILLED, 2: KILLED}
"""Of pytest's exit codes: 2 is a test file that can no longer be collected, others say that the
tests asked for do not exist.
"""


@dataclass(frozen=True)
class Fault:
    """One planted fault; ``file`` is where it is planted, relative to the package, once known."""

    room: str
    old: str
    new: str
    means: str
    tests: str
    which: str = ""
    equivalent: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """What ``--only`` is compared with."""
        return f"{self.room} {self.file}: {self.means}"


@dataclass(frozen=True)
class Outcome:
    """What became of one fault, in which suite, the test that saw it, and what pytest said."""

    verdict: str
    seconds: float
    suite: str = "fast"
    seen_by: str = ""
    output: str = ""


class Misplaced(Exception):
    """A fault whose text does not occur exactly once."""


def read(path: Path = FAULTS) -> list[Fault]:
    """The faults of a file, in its order."""
    rooms = tomllib.loads(path.read_text())
    return [Fault(room, **entry) for room, entries in rooms.items() for entry in entries]


def placed(fault: Fault, package: Path) -> Fault:
    """The fault with the file that it belongs to.

    Raises:
        Misplaced: its text occurs nowhere, or more than once.
    """
    for files in (package / fault.room, package):
        found = {
            path: count
            for path in sorted(files.rglob("*.py"))
            if (count := path.read_text().count(fault.old))
        }
        if sum(found.values()) == 1:
            return replace(fault, file=str(next(iter(found)).relative_to(package)))
        if found:
            where = ", ".join(f"{p.relative_to(package)} ({n})" for p, n in found.items())
            raise Misplaced(f"{fault.old!r} is ambiguous: {where}")
    raise Misplaced(f"{fault.old!r} occurs nowhere")


class Copy:
    """A copy of ``src`` that tests run against; sound but for the fault of the moment."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.source, self.limit = folder / "src", limit
        shutil.copytree(ROOT / "src", self.source, ignore=shutil.ignore_patterns("__pycache__"))
        # bytecode once for all runs; a file with a fault has another time stamp and is read anew
        compileall.compile_dir(self.source, quiet=1)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.source),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._check_import()

    def _check_import(self) -> None:
        """Refuse to work with a package that is not the copy."""
        command = [sys.executable, "-c", "import learnreg; print(learnreg.__file__)"]
        found = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).is_relative_to(self.source):
            raise SystemExit(f"the tests would see {found}, not the copy in {self.source}")

    def judge(self, fault: Fault, suites: Sequence[str]) -> Outcome:
        """Plant a fault, run its tests suite by suite until one sees it, and take it out again."""
        path, original = self.source / "learnreg" / fault.file, ROOT / "src/learnreg" / fault.file
        path.write_text(path.read_text().replace(fault.old, fault.new))
        tests = [*shlex.split(fault.tests), *(["-k", fault.which] if fault.which else [])]
        try:
            spent = 0.0
            for suite in suites:
                outcome = self.run(["-x", *tests], suite)
                spent += outcome.seconds
                if outcome.verdict != SURVIVED:
                    break
            return replace(outcome, seconds=spent)
        finally:
            shutil.copy2(original, path)

    def run(self, tests: Sequence[str], suite: str, limit: float | None = None) -> Outcome:
        """Run some tests against the copy as it is."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no"]
        command += [*(["--fast"] if suite == "fast" else []), *tests]
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit or self.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Outcome(TIMED_OUT, time.perf_counter() - begin, suite)
        verdict = VERDICTS.get(process.returncode, ERROR)
        failed = "\n".join(_failures(output))
        return Outcome(verdict, time.perf_counter() - begin, suite, failed, output[-2000:])


def _failures(output: str) -> list[str]:
    """The tests that failed, from the summary of pytest."""
    lines = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return [line.split(" ", 1)[1].split(" - ")[0] for line in lines]


def unsound(copy: Copy, rows: Sequence[tuple[Fault, Outcome]]) -> list[str]:
    """Tests that saw a fault and fail on sound code as well, so that they prove nothing."""
    asked = sorted({outcome.seen_by for _, outcome in rows if outcome.verdict == KILLED})
    if not asked:
        return []
    outcome = copy.run(asked, "full", limit=60.0 + 30.0 * len(asked))
    if outcome.verdict == SURVIVED:
        return []
    return outcome.seen_by.splitlines() or [outcome.output or outcome.verdict]


def expected(fault: Fault, outcome: Outcome) -> bool:
    """Whether nothing has to be done about an outcome."""
    return outcome.verdict == (SURVIVED if fault.equivalent else KILLED)


def table(rows: Sequence[tuple[Fault, Outcome]]) -> Table:
    """A line for every fault."""
    shown = Table("room", "file", "fault", "verdict", "suite", "s", "seen by")
    for fault, outcome in rows:
        mark = "" if expected(fault, outcome) else "[bold red]"
        verdict = f"{outcome.verdict}, equivalent" if fault.equivalent else outcome.verdict
        said = fault.equivalent or outcome.seen_by.removeprefix("tests/")
        name, seconds = Path(fault.file).name, f"{outcome.seconds:.0f}"
        shown.add_row(
            fault.room, name, fault.means, mark + verdict, outcome.suite, seconds, escape(said)
        )
    return shown


def summary(rows: Sequence[tuple[Fault, Outcome]]) -> str:
    """All verdicts in one line."""
    count = collections.Counter(outcome.verdict for _, outcome in rows)
    equivalent = sum(bool(f.equivalent) and o.verdict == SURVIVED for f, o in rows)
    seconds = sum(outcome.seconds for _, outcome in rows)
    full = sum(o.verdict == KILLED and o.suite == "full" for _, o in rows)
    return (
        f"{len(rows)} planted, {count[KILLED]} killed ({full} by the full suite only), "
        f"{count[TIMED_OUT]} timed out, "
        f"{count[SURVIVED]} survived ({equivalent} of them equivalent), {count[ERROR]} errors, "
        f"{seconds:.0f} s"
    )


def chosen(faults: Sequence[Fault], only: Sequence[str]) -> list[Fault]:
    """The faults whose name holds one of the words; all of them if there are none."""
    return [f for f in faults if not only or any(word in f.name for word in only)]


def main() -> int:
    """Plant, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="words of the fault's name")
    parser.add_argument("--limit", type=float, default=120, help="seconds for a fault in a suite")
    parser.add_argument("--fast", action="store_true", help="the fast suite only")
    parser.add_argument("--unproven", action="store_true", help="no run on sound code at the end")
    parser.add_argument("--list", action="store_true", help="places of the faults, nothing else")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    settings = parser.parse_args()

    console = Console(width=None if sys.stdout.isatty() else 180)
    faults, misplaced = [], 0
    for fault in read():
        try:
            faults.append(placed(fault, ROOT / "src/learnreg"))
        except Misplaced as error:
            misplaced += 1
            console.print(f"[red]cannot be planted:[/red] {fault.means}: ", end="")
            console.print(str(error), markup=False)
    faults = chosen(faults, settings.only)
    if settings.list:
        for fault in faults:
            console.print(fault.name, markup=False)
        console.print(f"{len(faults)} faults, {misplaced} cannot be planted")
        return int(misplaced > 0)

    rows: list[tuple[Fault, Outcome]] = []
    doubtful: list[str] = []
    suites = ["fast"] if settings.fast else ["fast", "full"]
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Copy(Path(folder), settings.limit)
        for number, fault in enumerate(faults, start=1):
            outcome = copy.judge(fault, suites)
            rows.append((fault, outcome))
            line = f"{number}/{len(faults)} {outcome.verdict} {outcome.seconds:.0f} s {fault.name}"
            console.print(line, markup=False)
            if settings.json:
                found = [{**asdict(f), **asdict(o)} for f, o in rows]
                settings.json.write_text(json.dumps(found, indent=1))
        if not settings.unproven:
            doubtful = unsound(copy, rows)
    console.print(table(rows))
    for test in doubtful:
        console.print(f"fails on sound code: {test}", markup=False)
    console.print(summary(rows))
    return int(misplaced > 0 or bool(doubtful) or not all(expected(f, o) for f, o in rows))


if __name__ == "__main__":
    sys.exit(main())
