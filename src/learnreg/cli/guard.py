"""What a user sees when a command ends early, and how a command bears what happens around it: one
message for our errors, the traceback for all others; signals, warnings, terminals and pipes.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, TextIO, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")

ALL_FAILED, ERROR, SOME_FAILED, INTERRUPTED = 1, 2, 3, 130
EXIT_CODES = (
    "Exit codes: 0 all was done; 1 every run of a comparison failed; 2 an error, in one message; "
    "3 some files could not be treated, the others were; 130 interrupted (Ctrl-C, SIGTERM, "
    "SIGHUP), and the message says what was kept."
)

STOPPING = [
    number
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK")
    if (number := getattr(signal, name, None)) is not None
]
"""What clusters, lost connections and closed windows send: they mean what Ctrl-C means."""

SPELT = {"±": "+/-", "×": "x", "–": "-", "—": "-", "…": "...", "→": "->", "≤": "<=", "≥": ">="}
SPELT |= {"σ": "sigma", "θ": "theta", "ε": "eps", "δ": "delta", "µ": "mu", "‖": "||", "√": "sqrt"}
"""Characters in the letters that every terminal has."""


class Interrupted(Exception):
    """Ctrl-C, together with the sentence that says what was kept."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose LearnregError becomes a message and exit code 2, and Ctrl-C exit code 130.

    SIGTERM and SIGHUP are treated as Ctrl-C, warnings become lines, and an output that nobody reads
    any more or that lacks letters stops nothing. The option ``debug`` of the command, if it is set,
    lets the error through with its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> None:
        with lasting_streams(), stoppable(), noted():
            try:
                command(*args, **options)
            except Interrupted as stop:
                complain(str(stop), "interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except KeyboardInterrupt as stop:
                how = f"by {stop}" if str(stop) else "from the keyboard"
                complain(f"Stopped {how}.", "interrupted")
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if options.get("debug") or (message := explained(error)) is None:
                    raise
                complain(message, "error")
                raise typer.Exit(ERROR) from None

    return run


def explained(error: Exception) -> str | None:
    """What a user can do about an error; None for what only a developer can mend."""
    if isinstance(error, typer.Exit | typer.Abort):
        return None
    from ..core.errors import InputError, LearnregError

    if isinstance(error, LearnregError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        place = error.filename if isinstance(error.filename, str) else "a file"
        given = error.strerror
        expected, remedy = "files and folders that can be used", "--debug shows what was tried."
        return str(InputError(place, given=given, expected=expected, remedy=remedy))
    short = isinstance(error, RuntimeError) and ("allocat" in str(error))
    if isinstance(error, MemoryError) or short:
        asked = re.search(r"tried to allocate (about )?([\d.]+ ?\w+)", str(error), re.IGNORECASE)
        given = f"{asked[2]} asked for at once" if asked else "more asked for than there is"
        remedy = "Use smaller or fewer images (size, train), a smaller model, or float32."
        expected = "what fits into the memory of this machine"
        return str(InputError("memory", given=given, expected=expected, remedy=remedy))
    return None


def complain(message: str, title: str) -> None:
    """A red panel on a terminal, otherwise one unbroken line; on the error stream."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console(stderr=True)
    if console.is_terminal:
        console.print(Panel(Text(message), title=title, title_align="left", border_style="red"))
    else:
        say(console, f"{title}: {message}")


def say(console: Console, message: object) -> None:
    """Print as it is: brackets are no markup, long lines are left to the terminal."""
    console.print(str(message), markup=False, highlight=False, soft_wrap=True)


def announce(message: str) -> None:
    """A line before anything that is slow to import, seen at once in a pipe as well."""
    with contextlib.suppress(OSError):
        print(message, flush=True)


# --- signals --------------------------------------------------------------------------------------


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within this block SIGTERM and SIGHUP are a Ctrl-C, unless they were told otherwise before
    (``nohup``).
    """
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for other in before:  # it may come twice, and what is being kept is not to be lost
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    with contextlib.suppress(ValueError):  # not in the main thread: nothing to be done
        for number in STOPPING:
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- warnings -------------------------------------------------------------------------------------


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Within this block a warning is one line, the same only once."""
    seen: set[str] = set()

    def note(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            seen.add(text)
            print(f"note: {text}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = note
        yield


# --- streams --------------------------------------------------------------------------------------


class Lasting:
    """A text stream whose other end may go away (``| head -1``, a closed terminal, a full disk):
    what is written then is lost, and nothing else.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # the second: closed
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._silence()

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def _silence(self) -> None:
        """What is in the buffer, and all that follows, goes nowhere."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """For characters that a stream does not know: other letters, or a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    if all("\udc80" <= c <= "\udcff" for c in letters):  # bytes of a file name that is no text
        return bytes(ord(c) - 0xDC00 for c in letters), error.end
    return "".join(SPELT.get(c, "?") for c in letters), error.end


codecs.register_error("learnreg.spell", _spell)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Within this block the standard streams bear every character and every reader."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="learnreg.spell")
    out, err = (None if s is None else cast(TextIO, Lasting(s)) for s in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        for wrapped in (out, err):
            if wrapped is not None:
                wrapped.flush()
        sys.stdout, sys.stderr = before
