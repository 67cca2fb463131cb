"""What a user sees when a command ends early: one message for our errors, the traceback for all
others.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

import typer

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")

ERROR, PARTLY, INTERRUPTED = 2, 3, 130
"""Exit codes: nothing done, some of several files not, Ctrl-C."""


class Interrupted(Exception):
    """Ctrl-C, together with the sentence that says what was kept."""


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose LearnregError becomes a message and exit code 2, and Ctrl-C exit code 130.

    The option ``debug`` of the command, if it is set, lets the error through with its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> None:
        try:
            command(*args, **options)
        except Interrupted as stop:
            complain(str(stop), "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except KeyboardInterrupt:
            complain("Stopped from the keyboard.", "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            from ..core.errors import LearnregError

            if options.get("debug") or not isinstance(error, LearnregError):
                raise
            complain(str(error), "error")
            raise typer.Exit(ERROR) from None

    return run


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
