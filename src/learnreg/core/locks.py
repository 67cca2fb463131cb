"""One writer per folder: a lock held by the operating system, which drops it with its process."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CheckpointError

FILE = ".learnreg.lock"

TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What the operating system says when somebody else holds the lock."""

BEYOND = 1 << 30
"""The byte that is locked on Windows, where locked bytes cannot be read: past the end."""

_held: set[tuple[int, int]] = set()
_guard = threading.Lock()


class FolderLock:
    """The right to write into a folder, for one run at a time.

    Two locks exclude each other in different processes, and in one. The file ``.learnreg.lock``
    says who holds it and is removed on release; one that a dead process has left blocks nobody.
    Where the file system has no locks, only runs of the same process exclude each other.

    Args:
        folder: made on ``acquire`` where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._file: int | None = None
        self._place: tuple[int, int] | None = None

    def acquire(self) -> None:
        """Take the lock, or fail at once.

        Raises:
            CheckpointError: another run has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        status = os.stat(self.folder)
        place = (status.st_dev, status.st_ino)
        with _guard:
            if place in _held:
                raise _refusal(self.folder, str(os.getpid()))
            self._file = _taken(self.folder)
            self._place = place
            _held.add(place)

    def release(self) -> None:
        """Let others write; nothing if the lock is not held."""
        with _guard:
            if self._place is None:
                return
            if self._file is not None:
                _drop(self.folder / FILE, self._file)
            _held.discard(self._place)
            self._file = self._place = None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context in which no other run may write into the folder.

    Raises:
        CheckpointError: another run has it.
    """
    lock = FolderLock(folder)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _taken(folder: Path) -> int | None:
    """The open, locked file; None where the file system has no locks.

    Raises:
        CheckpointError: another process has it.
    """
    path = folder / FILE
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None
        try:
            _lock(file)
        except OSError as error:
            holder = _read(file)
            os.close(file)
            if error.errno in TAKEN:
                raise _refusal(folder, holder) from error
            return None
        if _is_at(file, path):
            _write(file)
            return file
        os.close(file)  # its holder has removed it between our two calls


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except OSError:
        return False


def _write(file: int) -> None:
    """Who holds it: process and host, for messages only."""
    with suppress(OSError):
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} {socket.gethostname()}\n".encode())


def _read(file: int) -> str:
    """The process, with its host if that is another one; nothing if it has yet to say so."""
    try:
        words = os.read(file, 1000).decode(errors="replace").split()
    except OSError:
        return ""
    return " on ".join(w for w in words[:2] if w != socket.gethostname())


def _refusal(folder: Path, holder: str) -> CheckpointError:
    who = f" (process {holder})" if holder else ""
    return CheckpointError(
        f"checkpoint {folder}",
        given=f"a run that is still going on{who}",
        expected="a folder that no other run writes into",
        remedy="Wait for that run or stop it, or name another folder.",
    )


def _drop(path: Path, file: int) -> None:
    """Remove the file while it is locked, so that nobody can take a lock on what is gone."""
    ours = _is_at(file, path)
    if sys.platform == "win32":
        os.close(file)  # what is open there cannot be removed
    with suppress(OSError):
        if ours:
            path.unlink()
    if sys.platform != "win32":
        os.close(file)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
