"""The page about physics says what is there, and its block runs."""

import re
from pathlib import Path

import learnreg as lr

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "physics.md").read_text(encoding="utf-8")


def test_the_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "physics.md", "exec"), {})
    assert capsys.readouterr().out == "True (1, 32, 32)\n"


def test_the_table_lists_every_physics_and_every_noise():
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` ", PAGE, re.MULTILINE)
    assert dict(rows) == {tag: kind.__name__ for tag, kind in lr.physics.SETUPS.items()}
    assert all(f"`{tag}`" in PAGE for tag in lr.physics.NOISES)
