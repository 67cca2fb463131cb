"""Configurations as they come about by accident: whatever is in them, no traceback, exit code 2 and
a message that says what was given and what would have been accepted.
"""

from __future__ import annotations

import copy
import random
import re

import pytest
from pydantic import model_validator
from tests.cli.cases import invoke

from learnreg.cli.compare_config import _lines, load_comparison
from learnreg.cli.config import Config, load_config
from learnreg.cli.data_section import Data
from learnreg.cli.mistakes import gathered
from learnreg.cli.sections import Section
from learnreg.cli.settings import Settings
from learnreg.core.errors import ConfigError

ABSURD = [
    -1,
    0,
    1e308,
    float("inf"),
    float("nan"),
    -0.0,
    10**30,
    -(10**30),
    2**63,
    True,
    "",
    " ",
    "0",
    "nan",
    "画像\u202e\u200b",
    "e\u0301" * 40,
    "\x1b[31m",
    "[bold]x[/bold]",
    "a\x7fb",
    "x" * 5000,
    [],
    [1, "a", [2]],
    [[]],
    [{}],
    {},
    {"type": "MAID"},
    {"a": {"b": {"c": 1}}},
    {"terms": []},
    {"terms": [{"type": "TV"}, {"type": "Sum", "terms": []}]},
    {"": 1},
    {"type": 3},
    {"type": []},
    {"type": ""},
]
"""Values of every type that a file can have, none of them reasonable."""

KEYS = [
    "",
    "type",
    "typ",
    "Seed",
    "SECONDS",
    "größe",
    "a b",
    "a.b",
    "terms",
    "scale",
    "\u202e",
    "x" * 200,
]

LEARN = {
    "data": {"source": "phantoms", "size": 24, "train": 2, "test": 1},
    "physics": {"type": "denoising", "sigma": 0.1},
    "regularizer": {
        "terms": [
            {"type": "TV", "weight": 0.1},
            {"type": "FoE", "filters": 2, "size": 3},
            {"type": "Tikhonov", "weight": 1e-3, "learned": False},
        ]
    },
    "learner": {"type": "maid", "rho": 0.5, "accuracy": {"tighten": 0.5}},
    "hypergradient": {"type": "implicit"},
    "budget": {"steps": 1, "patience": 100.0},
    "run": {"seed": 0, "threads": 1, "solver": "auto"},
}
COMPARE = {
    **{key: LEARN[key] for key in ("data", "physics", "budget")},
    "comparison": {"seeds": [0, 1], "processes": 1},
    "regularizer": {"type": "TV"},
    "learners": [
        {"type": "maid", "name": "one"},
        {"type": "fixed", "eps": 0.1, "hypergradient": {"type": "implicit"}},
        {"type": "hoag", "grid": {"alpha0": [0.1, 0.2]}},
    ],
    "starts": [{"name": "a"}, {"name": "b", "weight": 0.2}],
}


def places(item, path=()):
    """Every place inside tables and lists."""
    if isinstance(item, dict | list):
        for key in item if isinstance(item, dict) else range(len(item)):
            yield (*path, key)
            yield from places(item[key], (*path, key))


def mutated(tables, chance):
    """The tables with some accidents: parts left out, renamed, moved, repeated, of another type."""
    tables = copy.deepcopy(tables)
    for _ in range(chance.choice([1, 1, 2, 3, 6])):
        found = list(places(tables))
        if not found:
            break
        *path, key = chance.choice(found)
        inside = tables
        for part in path:
            inside = inside[part]
        accident = chance.choice(["delete", "rename", "retype", "nest", "repeat", "add", "move"])
        if accident == "delete":
            del inside[key]
        elif accident == "rename" and isinstance(inside, dict):
            name = f"{key}s" if chance.random() < 0.5 else chance.choice(KEYS)
            inside[name] = inside.pop(key)
        elif accident == "nest":
            inside[key] = chance.choice([[inside[key]], {"value": inside[key]}])
        elif accident == "repeat" and isinstance(inside, list):
            inside.append(copy.deepcopy(inside[key]))
        elif accident == "add" and isinstance(inside[key], dict):
            inside[key][chance.choice(KEYS)] = copy.deepcopy(chance.choice(ABSURD))
        elif accident == "move" and isinstance(inside, dict):
            tables[chance.choice(list(tables))] = copy.deepcopy(inside[key])
        else:
            inside[key] = copy.deepcopy(chance.choice(ABSURD))
    return tables


def damaged(text, chance):
    """Bytes of a file: some of them lost, doubled or strange, or in another encoding."""
    way = chance.choice(["cut", "byte", "double", "encoding", "mark", "swap"])
    content = text.encode()
    if way == "encoding":
        return text.encode(chance.choice(["utf-16", "utf-16-le", "utf-32", "utf-7"]))
    if way == "mark":
        return b"\xef\xbb\xbf" * chance.choice([1, 2]) + content
    place = chance.randrange(len(content))
    if way == "cut":
        return content[:place]
    if way == "byte":
        return content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]
    lines = content.split(b"\n")
    one, two = chance.randrange(len(lines)), chance.randrange(len(lines))
    if way == "double":
        return b"\n".join([*lines[:one], lines[two], *lines[one:]])
    lines[one], lines[two] = lines[two], lines[one]
    return b"\n".join(lines)


def check(path, load):
    """It loads, or is refused in one message in which every mistake is complete."""
    try:
        load(path)
    except ConfigError as error:
        message = str(error)
        head, *lines = message.split("\n  ")
        for line in lines or [head]:
            assert re.search(r": given .*; expected .", line, re.DOTALL), message
        assert len(set(lines)) == len(lines) and len(message) < 20_000
        assert "\x1b" not in message
        return message
    return None


@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 300), marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize(("tables", "load"), [(LEARN, load_config), (COMPARE, load_comparison)])
def test_no_accident_ends_in_a_traceback(tmp_path, tables, load, seeds):
    path, refused = tmp_path / "config.toml", 0
    for seed in seeds:
        chance = random.Random(seed)
        text = "\n".join(_lines(mutated(tables, chance))) + "\n"
        content = damaged(text, chance) if seed % 3 == 0 else text.encode("utf-8", "replace")
        path.write_bytes(content)
        try:
            refused += check(path, load) is not None
        except Exception as error:
            raise AssertionError(f"seed {seed}: {content!r}") from error
    assert refused > len(seeds) / 2


@pytest.mark.parametrize("seed", range(3))
def test_the_command_ends_with_code_2(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("learnreg.cli.learn.prepared", None)
    path = tmp_path / "config.toml"
    for number in range(100):
        path.write_text("\n".join(_lines(mutated(LEARN, random.Random(100 * seed + number)))))
        if check(path, load_config) is not None:
            break
    result = invoke("learn", path, code=2)
    assert "given" in result.stderr and "expected" in result.stderr


class Whole(Section):
    """Sections that are looked at together by the model itself."""

    run: Settings = Settings()
    data: Data = Data()

    @model_validator(mode="after")
    def _together(self):
        if self.run.seed == self.data.train:
            raise ValueError("a seed that is not the number of images")
        return self


def test_what_the_model_itself_finds_is_a_mistake_like_others():
    tables = {"run": {"seed": 3}, "data": {"train": 3}}
    with pytest.raises(ConfigError, match="expected a seed that is not the number"):
        gathered("c.toml", tables, Whole, {}, [])
    with pytest.raises(ConfigError) as caught:  # and what is wrong by itself is said without it
        gathered("c.toml", {**tables, "datas": {}, "run": {"seed": 3, "sed": 1}}, Whole, {}, [])
    assert "[datas]" in str(caught.value) and "[run] sed" in str(caught.value)


def test_one_wrong_key_in_each_section_is_found_in_each(tmp_path):
    """Whatever sections there are: the model of the file says which."""
    path = tmp_path / "config.toml"
    names = [name for name in Config.model_fields if name != "regularizer"]
    path.write_text("".join(f"[{name}]\nnonsense = 1\n" for name in names))
    message = check(path, load_config)
    assert all(f"[{name}] nonsense: given an unknown key" in message for name in names)
