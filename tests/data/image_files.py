"""Image files of all kinds, made on the spot."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile

ORIENTATION, MAX_SAMPLE_VALUE = 274, 281


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """(h, w), float64 in [0, 1], with 0 and 1 in it: waves, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 32
    waves = [
        rng.normal() * np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-9, 9, size=(12, 3))
    ]
    total = np.sum(waves, axis=0)
    return (total - total.min()) / (total.max() - total.min())


def tiff(path: Path, pixels: np.ndarray, **tags: int) -> Path:
    """An uncompressed TIFF file; tags by number, ``t274=6``, besides the options of tifffile."""
    extra = [(int(k[1:]), "H", 1, v, True) for k, v in tags.items() if k[1:].isdigit()]
    options = {k: v for k, v in tags.items() if not k[1:].isdigit()}
    options.setdefault("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
    tifffile.imwrite(path, pixels, extratags=extra, **options)
    return path


def packed_12_bits(path: Path, values: np.ndarray) -> Path:
    """A grey TIFF file of 12 bits per value, two values in three bytes; (h, w) with even w."""
    height, width = values.shape
    even, odd = values[:, ::2].astype(np.uint16), values[:, 1::2].astype(np.uint16)
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], axis=-1)
    data = packed.astype(np.uint8).tobytes()
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", code, 4, 1, tags[code]) for code in sorted(tags))
    at = 8 + len(data)
    path.write_bytes(
        struct.pack("<2sHI", b"II", 42, at)
        + data
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", 0)
    )
    return path


def deep_png(path: Path, pixels: np.ndarray) -> Path:
    """A PNG file of 16-bit colour, (h, w, 3) of uint16: Pillow cannot write such."""
    height, width, _ = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path
