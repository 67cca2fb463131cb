"""Commands as machines treat them: killed early, out of room, two at a time, pipes and terminals of
every kind.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest
from rich.console import Console
from tests.cli.cases import assert_same_run, environment, invoke, write_config
from tests.cli.test_compare import write as write_comparison

from learnreg.cli import guard
from learnreg.cli import learn as cli_learn
from learnreg.cli.guard import guarded, lasting_streams, noted, stoppable
from learnreg.cli.learn import claimed
from learnreg.core.errors import DataWarning
from learnreg.core.locks import FolderLock, locked
from learnreg.runs import Run

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")


def command(*arguments, **options):
    """A process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "learnreg", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **{"env": environment(), **options},
    )


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """The page takes most of the time of a small run."""
    monkeypatch.setattr(
        "learnreg.cli.learn.Report.save", lambda self, folder: folder / "index.html"
    )


# --- ended before the first checkpoint ------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--resume"]])
def test_what_ended_before_its_first_checkpoint_starts_again(
    learned, tmp_path, monkeypatch, arguments
):
    path = write_config(tmp_path)

    def killed(*_, **__):
        raise SystemExit(9)  # nothing is tidied up by us

    with monkeypatch.context() as patch:
        patch.setattr("learnreg.cli.learn.learn", killed)
        invoke("learn", path, code=9)
    assert (tmp_path / "out" / "config.toml").exists()
    invoke("learn", path, *arguments)
    assert_same_run(learned, tmp_path / "out")


def test_what_ended_early_with_another_budget_starts_again(learned, tmp_path):
    (tmp_path / "out").mkdir()
    text = (learned / "config.toml").read_text(encoding="utf-8")
    ended = tmp_path / "out" / "config.toml"
    ended.write_text(text.replace("steps = 2", "steps = 7"), encoding="utf-8")
    invoke("learn", write_config(tmp_path))
    assert "steps = 2" in ended.read_text(encoding="utf-8")


@pytest.mark.parametrize("change", [("train = 2", "train = 3"), ("[run]", "# mine\n[run]")])
def test_another_run_and_a_file_of_somebody_else_are_kept(learned, tmp_path, change):
    (tmp_path / "out").mkdir()
    text = (learned / "config.toml").read_text(encoding="utf-8").replace(*change)
    (tmp_path / "out" / "config.toml").write_text(text, encoding="utf-8")
    error = invoke("learn", write_config(tmp_path), "--resume", code=2).stderr
    assert "another configuration" in error
    assert (tmp_path / "out" / "config.toml").read_text(encoding="utf-8") == text


def test_left_overs_of_killed_writes_are_removed(tmp_path):
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    old = tmp_path / "out" / "checkpoint" / ".checkpoint.safetensors.abcd_123"
    new = old.with_name(".checkpoint.safetensors.abcd_124")
    mine = tmp_path / "out" / ".notes.txt.abcd_123"
    for path in (old, new, mine):
        path.write_bytes(b"half")
        os.utime(path, (0, 0) if path != new else None)
    with claimed(tmp_path / "out"):
        assert not old.exists() and new.exists() and mine.exists()


# --- no room, no right ----------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


@pytest.mark.filterwarnings("default:The checkpoint")
def test_a_full_disk_loses_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sys.modules["learnreg.runs.learn"], "save_checkpoint", full)
    save, out = Run.save, tmp_path / "out"

    def save_elsewhere(self, folder):
        return full() if folder == out else save(self, folder)

    monkeypatch.setattr(Run, "save", save_elsewhere)
    error = invoke("learn", write_config(tmp_path), code=2).stderr
    assert error.count("note: The checkpoint in") == 1
    message = error.splitlines()[-1]
    assert "No space left on device" in message and "--resume" not in message
    assert "no checkpoint" in message and message.rstrip().endswith("--overwrite")
    place = message.partition("saved to ")[2].split()[0]
    assert place.startswith(str(tmp_path)) and len(Run.load(place).record.rows) == 3


@pytest.mark.filterwarnings("default:The checkpoint")
def test_no_room_anywhere_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "save", full)
    error = invoke("learn", write_config(tmp_path), code=2).stderr
    assert "could not be kept anywhere" in error and error.count("\n") == 1


def test_no_room_for_the_report_says_that_the_model_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("learnreg.cli.learn.Report.save", full)
    path = write_config(tmp_path)
    error = invoke("learn", path, code=2).stderr
    assert "model.safetensors" in error and "--resume" in error and error.count("\n") == 1
    monkeypatch.setattr("learnreg.cli.learn.Report.save", lambda self, folder: folder / "page")
    assert "page" in invoke("learn", path, "--resume").stdout  # as it was advised


@pytest.mark.filterwarnings("default:The checkpoint")
def test_a_checkpoint_that_found_no_room_is_not_said_to_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["learnreg.runs.learn"], "save_checkpoint", full)
    monkeypatch.setattr("learnreg.cli.learn.Report.save", full)
    path = write_config(tmp_path)
    message = invoke("learn", path, code=2).stderr.splitlines()[-1]
    assert "the checkpoint," not in message and "--resume" not in message
    assert "model.safetensors" in message and message.rstrip().endswith("--overwrite")
    error = invoke("learn", path, code=2).stderr
    assert "did not come to its report" in error and "finished" not in error
    monkeypatch.setattr("learnreg.cli.learn.Report.save", lambda self, folder: folder / "page")
    assert "page" in invoke("learn", path, "--overwrite").stdout  # as it was advised


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_refused_before_learning(tmp_path, monkeypatch, number):
    """Tried, not asked for: whoever may do everything is told that a read-only disk is writable."""

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("learnreg.cli.learn.learn", None)
    monkeypatch.setattr("learnreg.cli.learn.tempfile.TemporaryFile", refused)
    error = invoke("learn", write_config(tmp_path), code=2).stderr
    assert os.strerror(number) in error and "output folder" in error


@pytest.mark.parametrize("name", ["a" * 300, "file/out", "."])
def test_odd_output_folders(tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    monkeypatch.setattr("learnreg.cli.learn.learn", full)
    invoke("learn", write_config(tmp_path), "--output", tmp_path / name, code=2)


def test_errors_of_the_system_are_one_message(tmp_path, capsys):
    for error in (
        OSError(errno.EIO, os.strerror(errno.EIO), "a file"),
        MemoryError(),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: 80 bytes"),
    ):

        def fails(error=error):
            raise error

        with pytest.raises(Exception) as caught:
            guarded(fails)()
        assert caught.value.exit_code == 2
        said = capsys.readouterr().err
        assert "given" in said and "expected" in said and said.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)()


def test_a_damaged_checkpoint_says_how_to_start_again(learned, tmp_path):
    path, name = write_config(tmp_path), "checkpoint/checkpoint.safetensors"
    content = bytearray((learned / name).read_bytes())
    content[-5] ^= 1
    (tmp_path / "out" / "checkpoint").mkdir(parents=True)
    (tmp_path / "out" / name).write_bytes(content)
    error = invoke("learn", path, "--resume", code=2).stderr
    assert "damaged" in error and "Start again with --overwrite." in error
    invoke("learn", path, "--overwrite")
    assert_same_run(learned, tmp_path / "out")


# --- two at a time --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]])
def test_a_second_run_in_the_same_folder_is_refused(tmp_path, options):
    path = write_config(tmp_path)
    lock = FolderLock(tmp_path / "out")
    lock.acquire()
    try:
        error = invoke("learn", path, *options, code=2).stderr
    finally:
        lock.release()
    assert "still going on" in error and "--output" in error
    assert not (tmp_path / "out" / "config.toml").exists()
    invoke("learn", path, *options)


def test_a_run_that_is_going_on_is_called_neither_finished_nor_interrupted(learned, tmp_path):
    path = write_config(tmp_path)
    shutil.copytree(learned, tmp_path / "out")
    with locked(tmp_path / "out"):
        error = invoke("learn", path, code=2).stderr
    assert "still going on" in error and "finished" not in error and "interrupted" not in error


def test_what_another_run_wrote_meanwhile_is_not_overwritten(learned, tmp_path, monkeypatch):
    """Both have looked at an empty folder; the first one is done when the second may write."""
    plainly = cli_learn.prepared

    def slow(config):
        shutil.copytree(learned, tmp_path / "out")
        return plainly(config)

    monkeypatch.setattr(cli_learn, "prepared", slow)
    path = write_config(tmp_path)
    assert "a finished run" in invoke("learn", path, code=2).stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        learned / "model.safetensors"
    ).read_bytes()


# --- signals --------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_what_clusters_send_is_a_ctrl_c(name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt, match=name), stoppable():
            signal.raise_signal(number)
        with stoppable(), pytest.raises(KeyboardInterrupt):
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # once more while things are kept: nothing
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # nohup
        with stoppable():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


@POSIX
def test_a_terminated_run_keeps_its_steps(tmp_path, monkeypatch):
    def terminated(self, row):
        if row["step"] == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("learnreg.cli.progress.LearnProgress.__call__", terminated)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        error = invoke("learn", write_config(tmp_path, steps=5), code=130).stderr
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "after step 1" in error and "--resume" in error
    assert len(Run.load(tmp_path / "out").record.rows) == 2


# --- warnings -------------------------------------------------------------------------------------


def test_a_warning_is_one_line_and_comes_once(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with noted():
            for _ in range(2):
                warnings.warn("pixels up to 4095:\nset white = 4095", DataWarning, stacklevel=1)
    assert capsys.readouterr().err == "note: pixels up to 4095: set white = 4095\n"


# --- terminals and pipes --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_letters_that_a_console_lacks_are_spelt(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    text = "26.6 ± 0.3 dB → ‖x‖ σ 画 caf\udce9"
    with lasting_streams():
        guard.say(Console(), text)
        print(text)
    lines = raw.getvalue().splitlines()
    assert len(lines) == 2 and all(b"26.6" in line and b"caf\xe9" in line for line in lines)
    if encoding == "ascii":
        assert lines[1] == b"26.6 +/- 0.3 dB -> ||x|| sigma ? caf\xe9"


def test_a_reader_who_leaves_and_a_full_log_stop_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text=""):
            raise self.error

        flush = write

    for error in (BrokenPipeError(), OSError(errno.EIO, "gone"), ValueError("closed")):
        stream = Gone()
        stream.error = error
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with lasting_streams():
            guard.say(Console(), "text")
            guard.complain("text", "error")
            guard.announce("text")
            print("text", flush=True)
    monkeypatch.setattr(sys, "stdout", None)  # closed before we started
    with lasting_streams():
        guard.announce("text")


@pytest.mark.slow
@POSIX
def test_a_closed_pipe_does_not_end_a_run(learned, tmp_path):
    process = command("learn", write_config(tmp_path))
    first = process.stdout.readline().decode()
    process.stdout.close()
    assert "reading" in first
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0
    assert_same_run(learned, tmp_path / "out")


def test_the_first_line_comes_before_what_is_slow(tmp_path, monkeypatch):
    """Before torch is imported, which takes most of the time until the first step."""
    code = (
        "import sys; from learnreg.cli import main\n"
        "def announce(text): print('torch' in sys.modules, 'pydantic' in sys.modules, text)\n"
        "main.announce = announce; main._begin(main.Path('none.toml'), 'learn')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.startswith("False False learnreg") and "none.toml" in done.stdout


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_an_ascii_console_gets_its_report(tmp_path, variables):
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "NO_COLOR": "1"}
    path = write_config(tmp_path)
    text = path.read_text(encoding="utf-8").replace("test = 1", "test = 2")
    path.write_text(text, encoding="utf-8")
    process = command("learn", path, env={**environment(), **plain, **variables})
    out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.isascii() and b"+/-" in out and err == b""


@pytest.mark.slow
@POSIX
def test_two_processes_in_one_folder(tmp_path):
    path = write_config(
        tmp_path, steps=100000, size=48, regularizer='type = "FoE"\nfilters = 8\nsize = 5'
    )
    first = command("learn", path)
    try:
        while b"step 1 " not in (line := first.stdout.readline()):
            assert line
        second = command("learn", path, "--overwrite")
        _, error = second.communicate()
        assert second.returncode == 2 and b"still going on" in error
    finally:
        first.terminate()
        _, error = first.communicate()
    assert first.returncode == 130 and b"--resume" in error


@pytest.mark.slow
@POSIX
def test_killed_before_the_first_checkpoint(tmp_path):
    path = write_config(tmp_path, steps=2)
    process = command("learn", path)
    while not (tmp_path / "out" / "config.toml").exists():
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    invoke("learn", path, "--resume")


def test_a_comparison_that_ended_before_its_first_run_starts_again(tmp_path, monkeypatch):
    path = write_comparison(tmp_path)

    def killed(*_, **__):
        raise SystemExit(9)

    monkeypatch.setattr("learnreg.cli.compare.run_all", killed)
    for _ in range(2):
        invoke("compare", path, code=9)
    copy = tmp_path / "out" / "config.toml"
    copy.write_text(copy.read_text(encoding="utf-8") + "# mine\n", encoding="utf-8")
    assert "another configuration" in invoke("compare", path, code=2).stderr


def test_overwriting_leaves_nothing_of_the_old_run_beside_a_new_one(tmp_path, monkeypatch):
    """Killed before its first checkpoint, a new run has no results, and shows none."""
    path = write_config(tmp_path, steps=1)
    invoke("learn", path)
    (tmp_path / "out" / "index.html").write_text("the old page")
    assert (tmp_path / "out" / "model.safetensors").is_file()

    def killed(*_, **__):
        raise RuntimeError("killed")

    monkeypatch.setattr("learnreg.cli.learn.learn", killed)
    with pytest.raises(RuntimeError, match="killed"):
        invoke("learn", path, "--overwrite")
    left = {p.name for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert not left & {"index.html", "model.safetensors", "run.json", "history.safetensors"}
