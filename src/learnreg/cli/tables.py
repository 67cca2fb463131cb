"""TOML files as tables: found, decoded and parsed, or refused in words; needs nothing that is slow
to import.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.errors import ConfigError

DEEPEST = 20
"""Levels of tables and lists; no key that means something lies deeper than five."""

MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""What files in other encodings begin with."""

BYTE_ORDER_MARK = "\ufeff"


def read_tables(path: Path, command: str) -> dict[str, Any]:
    """The content of a TOML file; a byte order mark is passed over.

    Args:
        command: that can write an example of such a file.

    Raises:
        ConfigError: no such file, one in another encoding than UTF-8, or no valid TOML.
    """
    if "\0" in str(path):
        raise _refusal(
            repr(str(path)),
            given="the character NUL in it",
            expected="the name of a configuration file",
            remedy="No file has such a name.",
        )
    try:
        text = _decoded(path, path.read_bytes())
    except OSError as error:
        raise _refusal(
            str(path),
            given=error.strerror or error,
            expected="a configuration file in TOML",
            remedy=f"Write one with: learnreg {command} --example > config.toml",
        ) from error
    try:
        tables = tomllib.loads(text)
        deep = any(depth > DEEPEST for depth, _ in _walk(tables))
    except RecursionError:
        deep = True
    except ValueError as error:
        raise _refusal(
            str(path),
            given=f"no valid TOML ({error})",
            expected="tables of key = value",
            remedy=f"Compare with: learnreg {command} --example",
        ) from error
    if deep:
        raise _refusal(
            str(path),
            given=f"more than {DEEPEST} tables or lists within each other",
            expected="tables of key = value",
            remedy=f"Compare with: learnreg {command} --example",
        )
    return tables


def _refusal(what: str, *, given: object, expected: str, remedy: str) -> ConfigError:
    """The error, whose class is slow to import; only who needs it has to wait."""
    from ..core.errors import ConfigError

    return ConfigError(what, given=given, expected=expected, remedy=remedy)


def _decoded(path: Path, content: bytes) -> str:
    """The text of a file in UTF-8.

    Raises:
        ConfigError: another encoding, which is named where it can be told.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), None)
    if encoding is None and b"\x00" in content[:4]:
        encoding = "UTF-16"
    if encoding is not None:
        given = f"a file in {encoding}"
        command = f"iconv -f {encoding} -t UTF-8"
    else:
        try:
            return content.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
        except UnicodeDecodeError as error:
            byte = content[error.start : error.start + 1]
            line = content.count(b"\n", 0, error.start) + 1
            given = (
                f"the byte 0x{byte.hex()} in line {line}, which is no UTF-8 "
                f"(in Latin-1 it is {byte.decode('latin-1')!r})"
            )
            command = "iconv -f LATIN1 -t UTF-8"
    raise _refusal(
        str(path),
        given=given,
        expected="a text file in UTF-8",
        remedy=f"Save it as UTF-8 in an editor, or with: {command} {path.name} > utf8.toml",
    )


def unusable_texts(tables: dict[str, Any]) -> Iterator[str]:
    """Texts, keys included, that no file name and no terminal can hold."""
    for _, item in _walk(tables):
        if isinstance(item, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in item):
            yield item


def _walk(tables: object) -> Iterator[tuple[int, object]]:
    """(depth, item) of everything inside, keys included; without recursion."""
    waiting: list[tuple[int, object]] = [(0, tables)]
    while waiting:
        depth, item = waiting.pop()
        yield depth, item
        if depth > DEEPEST:
            continue
        if isinstance(item, dict):
            waiting += [(depth + 1, part) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            waiting += [(depth + 1, part) for part in item]
