"""The error family: every message says what was given, what was expected and what to do."""

from __future__ import annotations


class LearnregError(Exception):
    """Base of all errors raised by learnreg."""


class InputError(LearnregError, ValueError):
    """A value handed in by the user cannot be used.

    The message always has the form ``what: given ...; expected .... remedy``.

    Args:
        what: name of the argument or file.
        given: what was received.
        expected: what would have been accepted.
        remedy: what to do about it, a full sentence.
    """

    def __init__(self, what: str, *, given: object, expected: object, remedy: str = "") -> None:
        self.what, self.given, self.expected, self.remedy = what, given, expected, remedy
        super().__init__(f"{what}: given {given}; expected {expected}. {remedy}".rstrip())

    def __reduce__(
        self,
    ) -> tuple[object, ...]:  # keyword-only arguments do not survive the default pickling
        return (_rebuild, (type(self), self.what, self.given, self.expected, self.remedy))


def _rebuild(
    cls: type[InputError], what: str, given: object, expected: object, remedy: str
) -> InputError:
    return cls(what, given=given, expected=expected, remedy=remedy)


class AdjointError(InputError):
    """The adjoint of a physics does not belong to its forward operator (dot test failed)."""


class MissingPropertyError(InputError):
    """A component lacks what another one needs, for example strong convexity."""


class ModelFileError(InputError):
    """A model file is corrupted, foreign or of another version."""


class CheckpointError(InputError):
    """A checkpoint cannot be read or belongs to another problem."""


class ConfigError(InputError):
    """A configuration file has an unknown key or a value out of range."""


class SolveError(LearnregError, RuntimeError):
    """A solve ended without the accuracy asked for; ``solution`` holds what was reached.

    Raised at the front door (``solve(..., throw=True)``) only; inside the library the status
    travels as data.
    """

    def __init__(self, message: str, solution: object) -> None:
        self.solution = solution
        super().__init__(message)


class DataWarning(UserWarning):
    """Data that can be used, but that look as if something else had been meant.

    Its text has the form of an error's: what was found, what would be usual, what to do.
    """
