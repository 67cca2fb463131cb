"""From sources (photographs, phantoms, folders) to the true images of the sides of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.ranges import check_flag, plain, shown
from .blocks import block_remark, in_blocks, need_blocks
from .crops import Counts, Source, check_room, crop, deal, in_turn, shares, shrink, shrunk
from .duplicates import Miniature, common_factor, likenesses, miniature
from .formats import Raw, read_raw
from .images import check_channels
from .phantoms import phantoms
from .seeds import check_count, check_seed
from .sources import (
    Sizes,
    SourceLike,
    attempt,
    check_sizes,
    is_word,
    photographs,
    sizes_of,
    without_small,
)
from .stacks import series_remarks
from .units import (
    Facts,
    Levels,
    RangeLike,
    as_image,
    auto_levels,
    check_range,
    facts_of,
    levels_of,
    listed,
    remarks_on,
)

Side = tuple[Tensor, list[str]]
"""Images (n, c, h, w) and their names."""

SIDES = ("training", "validation", "test")


@dataclass(frozen=True)
class Wish:
    """What is wanted of every photograph; the arguments of :func:`learnreg.data.pairs`."""

    size: int
    seed: int
    channels: int
    scale: float | None
    range: Levels | Literal["auto", "dtype"] | None
    group: str | None
    skip_small: bool


@dataclass(frozen=True)
class Dealt:
    """A photograph on its side."""

    source: Source
    side: int
    crops: int
    scale: float


@dataclass(frozen=True)
class Gathered:
    """The true images.

    Attributes:
        sides: (training, validation, test).
        units: the levels that became 0 and 1 if a range was asked for.
        remarks: what looks as if something else had been meant.
    """

    sides: tuple[Side, Side, Side]
    units: Levels | None
    remarks: list[str]


def gather(
    source: SourceLike,
    *,
    size: int,
    split: Sequence[int],
    seed: int,
    channels: int,
    scale: float | None,
    range: RangeLike = None,
    group: str | None = None,
    skip_small: bool = False,
    validation_source: SourceLike | None = None,
    test_source: SourceLike | None = None,
) -> Gathered:
    """The true images of all sides; arguments and errors as in :func:`learnreg.data.pairs`."""
    remedy = "Pass the height and width of the crops in pixels."
    wish = Wish(
        size=check_count(size, "size", least=1, remedy=remedy),
        seed=check_seed(seed),
        channels=check_channels(channels),
        scale=_check_scale(scale),
        range=check_range(range),
        group=group,
        skip_small=check_flag("skip_small", skip_small),
    )
    counts = _check_split(split)
    pools = _pools(source, validation_source, test_source, counts)
    drawn = [pool for pool in pools if is_word(pool[0], "phantoms")]
    read = [pool for pool in pools if not is_word(pool[0], "phantoms")]
    if drawn and not read:
        _check_phantoms(wish)

    made = _phantoms([counts for _, counts in drawn], wish)
    gathered = _photographs(read, wish) if read else Gathered(made, None, [])
    first, second, third = (
        photos if photos[1] else figures
        for photos, figures in zip(gathered.sides, made, strict=True)
    )
    return replace(gathered, sides=(first, second, third))


def _pools(
    source: SourceLike,
    validation_source: SourceLike | None,
    test_source: SourceLike | None,
    counts: Counts,
) -> list[tuple[SourceLike, Counts]]:
    """Every source with the numbers of crops that are asked of it."""
    shared, own = list(counts), []
    for side, other in ((1, validation_source), (2, test_source)):
        if other is None:
            continue
        if counts[side] == 0:
            raise InputError(
                f"{SIDES[side]}_source",
                given=f"{shown(other)} for 0 crops",
                expected=f"a number of {SIDES[side]} crops",
                remedy="Ask for crops in split, or leave the source out.",
            )
        if is_word(other, "phantoms") and is_word(source, "phantoms"):
            continue  # every phantom is a source of its own: nothing to keep apart
        shared[side] = 0
        own.append((other, (0, counts[1] * (side == 1), counts[2] * (side == 2))))
    train, validation, test = shared
    main = [(source, (train, validation, test))] if any(shared) else []
    return main + own


# --- phantoms -------------------------------------------------------------------------------------


def _check_phantoms(wish: Wish) -> None:
    scale = None if wish.scale == 1 else wish.scale
    given: dict[str, object] = {"scale": scale, "range": wish.range, "group": wish.group}
    remedies = {
        "scale": "Phantoms are drawn at the size that is asked for.",
        "range": "Phantoms are drawn in [0, 1].",
        "group": "Every phantom is an image of its own.",
    }
    for name, value in given.items():
        if value is not None:
            raise InputError(
                name,
                given=f'{value} with "phantoms"',
                expected=f"no {name}",
                remedy=remedies[name],
            )


def _phantoms(wanted: Sequence[Counts], wish: Wish) -> tuple[Side, Side, Side]:
    """Every phantom is a source of its own: the first for training, the next for the test, then
    those for validation, so that asking for validation leaves the others as they were.
    """
    train, validation, test = (sum(counts[side] for counts in wanted) for side in (0, 1, 2))
    total = train + test + validation
    images = phantoms(total, wish.size, wish.seed, wish.channels) if total else _no_images(wish)
    names = [f"phantom-{i}" for i in range(total)]

    def part(start: int, n: int) -> Side:
        return images[start : start + n], names[start : start + n]

    return part(0, train), part(train + test, validation), part(train, test)


def _no_images(wish: Wish) -> Tensor:
    return torch.zeros(0, wish.channels, wish.size, wish.size)


# --- photographs ----------------------------------------------------------------------------------


def _photographs(pools: Sequence[tuple[SourceLike, Counts]], wish: Wish) -> Gathered:
    remarks: list[str] = []
    dealt: list[Dealt] = []
    sizes: Sizes = {}
    taken: list[Source] = []
    for source, counts in pools:
        pool, default = photographs(source, wish.channels, wish.group, taken)
        taken += pool
        scale = default if wish.scale is None else float(wish.scale)
        if wish.skip_small:
            pool, small = without_small(pool, scale, wish.size)
            if small:
                remarks.append(
                    f"{listed(small, 10)}: smaller than a crop of {wish.size} x {wish.size} "
                    "pixels, left out."
                )
        blocks = need_blocks(pool, counts, wish.group)
        sides = in_blocks(pool, counts) if blocks else deal(pool, counts, wish.seed)
        remarks += [block_remark(pool)] if blocks else []
        chosen = [
            Dealt(photo, side, n, scale)
            for side, photos in enumerate(sides)
            for photo, n in zip(photos, shares(counts[side], max(len(photos), 1)), strict=False)
        ]
        sizes |= _looked_at(pool, chosen, wish.size)
        for path in dict.fromkeys(d.source.path for d in chosen):
            remarks += series_remarks(path)
        dealt += chosen
    _check_groups(dealt, wish.group)
    for photo in dealt:
        native = sizes[photo.source.name]
        check_room(photo.source.name, shrunk(native, photo.scale), photo.crops, wish.size)
    given = wish.range
    if given == "auto":
        given = _auto(dealt)
    read = _Reading(wish, given)
    alone = all(is_word(source, "natural") for source, _ in pools)
    factor = common_factor([shrunk(sizes[d.source.name], d.scale) for d in dealt])
    by_name = {d.source.name: d for d in dealt}
    attempt(
        lambda s: read.take(by_name[s.name], None if alone else factor),
        [d.source for d in dealt],
    )
    units = given if isinstance(given, tuple) else None
    first, second, third = (read.side(i) for i in (0, 1, 2))
    return Gathered((first, second, third), units, remarks + read.remarks())


def _looked_at(pool: Sequence[Source], chosen: Sequence[Dealt], size: int) -> Sizes:
    """Sizes of the chosen photographs, from their headers.

    Raises:
        InputError: some are unreadable or too small; then all such of the whole source are named,
            since another seed would meet the others, and those of the chosen ones whose pixels are
            damaged.
    """
    sources = [d.source for d in chosen]
    try:
        sizes = sizes_of(sources)
        for d in chosen:
            check_sizes([d.source], sizes, d.scale, size)
    except InputError:

        def look(source: Source) -> None:
            check_sizes([source], sizes_of([source]), chosen[0].scale, size)
            if source in sources:
                read_raw(source.path, source.page)

        attempt(look, pool)
        raise
    return sizes


def _check_groups(dealt: Sequence[Dealt], group: str | None) -> None:
    """Refuse a group that several sources have in common."""
    if group is None:
        return
    seen: dict[str, Dealt] = {}
    for photo in dealt:
        other = seen.setdefault(photo.source.group, photo)
        if other.side != photo.side:
            raise InputError(
                "group",
                given=f"{photo.source.group!r} of {other.source.name} ({SIDES[other.side]}) and of "
                f"{photo.source.name} ({SIDES[photo.side]})",
                expected="sources without a group in common",
                remedy="Move the files of a group into one of the sources.",
            )


def _auto(dealt: Sequence[Dealt]) -> Levels:
    """One range for all files."""
    # why a pass of its own: what is white is known only when all files have been seen
    facts: list[Facts] = []
    attempt(
        lambda s: facts.append(facts_of(s.name, read_raw(s.path, s.page))),
        [d.source for d in dealt],
    )
    return auto_levels(facts, [d.source.name for d in dealt if d.side == 0])


@dataclass
class _Reading:
    """Photographs read one after the other; only their crops and miniatures stay in memory."""

    wish: Wish
    given: Levels | Literal["auto", "dtype"] | None
    crops: dict[int, list[list[tuple[str, Tensor]]]] = field(default_factory=dict)
    facts: list[Facts] = field(default_factory=list)
    levels: dict[str, Levels] = field(default_factory=dict)
    miniatures: list[Miniature] = field(default_factory=list)
    seen: dict[tuple[object, ...], Dealt] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)

    def take(self, photo: Dealt, factor: float | None) -> None:
        """Read one photograph and cut its crops; keep a miniature at scale ``factor``."""
        name, raw = photo.source.name, read_raw(photo.source.path, photo.source.page)
        image = shrink(self._scaled(name, raw), photo.scale)
        self._check_new(photo, image)
        if factor is not None:
            small = miniature(image, factor)
            self.miniatures.append(Miniature(name, SIDES[photo.side], small, photo.source.origin))
        self.crops.setdefault(photo.side, []).append(
            crop(name, image, photo.crops, self.wish.size, self.wish.seed)
        )

    def _scaled(self, name: str, raw: Raw) -> Tensor:
        facts = facts_of(name, raw)
        assert self.given != "auto"  # that has become numbers
        self.levels[name] = levels_of(facts, self.given)
        self.facts.append(facts)
        return as_image(raw, self.levels[name], self.wish.channels)

    def _check_new(self, photo: Dealt, image: Tensor) -> None:
        """Refuse the same picture under two names: it could end up on both sides. Stacks have empty
        pages, and pages that stand still.
        """
        source = photo.source
        if source.page is not None and float(image.min()) == float(image.max()):
            return
        key = (*image.shape, hashlib.sha256(image.numpy().tobytes()).digest())
        other = self.seen.setdefault(key, photo)
        if other is photo:
            return
        if source.page is not None and source.path == other.source.path:
            if other.side != photo.side:
                self.repeated.append(f"{other.source.name} and {source.name}")
            return
        raise InputError(
            "source",
            given=f"the same picture as {other.source.name} and as {source.name}",
            expected="different photographs",
            remedy="Remove one of the two files.",
        )

    def side(self, index: int) -> Side:
        """The crops of one side, one from each photograph in turn."""
        crops = in_turn(self.crops.get(index, []))
        images = torch.stack([image for _, image in crops]) if crops else _no_images(self.wish)
        return images, [name for name, _ in crops]

    def remarks(self) -> list[str]:
        """What looks wrong."""
        remarks = remarks_on(self.facts, self.levels, self.wish.range)
        if self.repeated:
            remarks.append(
                f"{listed(self.repeated)}: equal pages on two sides. What is trained on should not "
                "be tested on; take the test from another file (test_source)."
            )
        grey = [facts.name for facts in self.facts if not facts.colour]
        if self.wish.channels == 3 and grey:
            remarks.append(
                f"{listed(grey)}: grey among images of 3 channels, taken as three equal ones. "
                "Leave them out, or ask for channels = 1."
            )
        return remarks + likenesses(self.miniatures, search_crops=self.wish.group is None)


# --- checks ---------------------------------------------------------------------------------------


def _check_split(split: object) -> Counts:
    remedy = "Pass split=(n_train, n_test), for example (24, 8); one of them may be 0."
    if not isinstance(split, (tuple, list)) or len(split) not in (2, 3):
        raise InputError(
            "split",
            given=repr(split),
            expected="two numbers of crops, or three with validation between them",
            remedy=remedy,
        )
    counts = [check_count(n, "split", least=0, remedy=remedy) for n in split]
    if sum(counts) == 0:
        raise InputError("split", given=repr(split), expected="at least one crop", remedy=remedy)
    return counts[0], counts[1] if len(counts) == 3 else 0, counts[-1]


def _check_scale(scale: object) -> float | None:
    if scale is None:
        return None
    number = plain(scale)
    real = isinstance(number, int | float) and not isinstance(number, bool)
    if not (isinstance(number, int | float) and real and 0 < number <= 1):
        raise InputError(
            "scale",
            given=shown(scale),
            expected="a number in (0, 1], or None",
            remedy="Photographs are only ever made smaller; scale=1 keeps their size.",
        )
    return number
