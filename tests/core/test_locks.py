"""One writer per folder: across processes, within one, and past the death of a holder."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Barrier

import pytest

from learnreg.core import locks
from learnreg.core.errors import CheckpointError
from learnreg.core.locks import FILE, FolderLock, locked

HOLD = (
    "import sys; from pathlib import Path; from learnreg.core.locks import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@contextmanager
def another_process(folder):
    """A process that holds the lock while the block runs, or until it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(60)


def refused(folder) -> CheckpointError:
    with pytest.raises(CheckpointError) as error, locked(folder):
        pass
    assert str(folder) in error.value.what and "stop it" in error.value.remedy
    assert error.value.expected == "a folder that no other run writes into"
    return error.value


def test_it_makes_the_folder_and_leaves_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder):
        assert os.listdir(folder) == [FILE]
        assert (folder / FILE).read_text().split()[0] == str(os.getpid())
    assert os.listdir(folder) == []


def test_another_process_is_named(tmp_path):
    with another_process(tmp_path) as process:
        error = refused(tmp_path)
        assert error.given == f"a run that is still going on (process {process.pid})"
    with locked(tmp_path):
        pass


def test_another_process_is_kept_out(tmp_path):
    with locked(tmp_path):
        run = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            input="",
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode != 0 and f"(process {os.getpid()})" in run.stderr


def test_what_a_killed_process_leaves_blocks_nobody(tmp_path):
    with another_process(tmp_path) as process:
        process.kill()
        process.wait(60)
        assert (tmp_path / FILE).exists()
        with locked(tmp_path):
            assert (tmp_path / FILE).read_text().split()[0] == str(os.getpid())
    assert os.listdir(tmp_path) == []


def test_another_host_is_named(tmp_path, monkeypatch):
    with another_process(tmp_path) as process:
        host = (tmp_path / FILE).read_text().split()[1]
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        assert f"(process {process.pid} on {host})" in refused(tmp_path).given


def test_two_runs_of_one_process(tmp_path):
    with locked(tmp_path):
        assert f"(process {os.getpid()})" in refused(tmp_path).given
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path):
        pass


def test_two_ways_to_one_folder(tmp_path):
    (tmp_path / "real").mkdir()
    try:
        (tmp_path / "link").symlink_to(tmp_path / "real")
    except OSError:
        pytest.skip("no links here")
    with locked(tmp_path / "real"):
        refused(tmp_path / "link")
        refused(tmp_path / "other" / ".." / "real")


def test_threads_exclude_each_other(tmp_path):
    together, inside, most = Barrier(8), [], []

    def run(_):
        together.wait()
        for _ in range(30):
            with suppress(CheckpointError), locked(tmp_path):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    assert most and max(most) == 1 and os.listdir(tmp_path) == []


def test_processes_that_come_and_go_exclude_each_other(tmp_path):
    """Each makes a file that must not be there yet, and removes it: two at once would collide."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from learnreg.core.locks import locked; from learnreg.core.errors import CheckpointError\n"
        "end, made = time.monotonic() + 1.0, 0\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        with locked(Path(sys.argv[1])):\n"
        "            os.close(os.open(sys.argv[1] + '/one', os.O_CREAT | os.O_EXCL)); made += 1\n"
        "            os.unlink(sys.argv[1] + '/one')\n"
        "    except CheckpointError:\n"
        "        pass\n"
        "print(made)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    counts = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert all(int(count) > 0 for count in counts) and os.listdir(tmp_path) == []


def test_an_error_inside_releases(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018 - what it raises is all that we want of it
    with locked(tmp_path):
        pass


def test_releasing_what_is_not_held_does_nothing(tmp_path):
    lock = FolderLock(tmp_path)
    lock.release()
    lock.acquire()
    with pytest.raises(CheckpointError):
        lock.acquire()
    lock.release()
    lock.release()
    lock.acquire()
    lock.release()


def test_who_is_refused_leaves_the_lock_as_it_is(tmp_path):
    with locked(tmp_path):
        other = FolderLock(tmp_path)
        with pytest.raises(CheckpointError):
            other.acquire()
        other.release()
        refused(tmp_path)


def test_without_locks_in_the_file_system_only_one_process_is_guarded(tmp_path, monkeypatch):
    def unsupported(file: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(locks, "_lock", unsupported)
    with locked(tmp_path):
        refused(tmp_path)
    with locked(tmp_path):
        pass


def test_where_no_file_can_be_made_only_one_process_is_guarded(tmp_path, monkeypatch):
    (tmp_path / FILE).mkdir()
    with locked(tmp_path):
        refused(tmp_path)


def test_a_file_that_is_removed_meanwhile_is_not_missed(tmp_path):
    with locked(tmp_path):
        (tmp_path / FILE).unlink()
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []
