"""Mutants of sound files: flipped, cut, spliced, with fields set to what breaks readers; of one seed, the same ones."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

_NUMBERS = (0, 1, -1, 2, 127, 255, 256, 32767, 65535, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, -(2**63))
_FLOATS = (0.0, -1.0, 1e-300, 1e-30, 1e-9, 1e9, 1e12, 1e30, 1e300, float("inf"), float("-inf"), float("nan"))
_WORDS = (
    *(
        "",
        "0",
        "-1",
        "1",
        "65536",
        "1000000",
        "2147483648",
        "9" * 400,
        "1e999",
        "-1e-300",
        "nan",
        "inf",
        "1e-9",
        "0x7f",
    ),
    *(
        "null",
        "true",
        "[]",
        "{}",
        '"',
        "'",
        "\\",
        "\0",
        "%s",
        "../" * 30,
        "x" * 5000,
        "ä",
        "\ud7ff",
        "\n",
        ",",
        ":",
        "*a",
    ),
    *("[" * 3000, "{" * 500, "<a>" * 3000, "&a [*a]", "!!python/object:os.system", "- " * 500, "2024-13-77"),
)


@dataclass(frozen=True)
class Seed:
    """A sound file.

    Attributes:
        content: Its bytes.
        suffix: Its suffix.
        fields: Offset and size of fields of its header, which are mutated more often than the rest.
        text: Whether it is text.
        packed: "gzip" or "zip" where half of the mutants are made of what is inside, packed anew.
    """

    content: bytes
    suffix: str
    fields: Sequence[tuple[int, int]] = ()
    text: bool = False
    packed: str = ""


def mutant(seeds: Sequence[Seed], random: Random) -> tuple[bytes, str]:
    """Return a mutant of one of several seeds, and its suffix."""
    seed = random.choice(seeds)
    other = random.choice(seeds).content
    if seed.packed and random.random() < 0.6:
        return _repacked(seed, other, random), seed.suffix
    return _changed(seed.content, seed.fields, other, random, seed.text), seed.suffix


def _repacked(seed: Seed, other: bytes, random: Random) -> bytes:
    """Return a packed file whose content is changed and whose checksums are right."""
    if seed.packed == "gzip":
        return gzip.compress(_changed(gzip.decompress(seed.content), seed.fields, other, random, False), 1)
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seed.content)) as source, zipfile.ZipFile(target, "w") as archive:
        names = source.namelist()
        chosen = random.choice([name for name in names if name.endswith(".pkl")] if random.random() < 0.7 else names)
        for name in names:
            data = source.read(name)
            archive.writestr(name, _changed(data, (), other, random, False) if name == chosen else data)
    return target.getvalue()


def _changed(content: bytes, fields: Sequence[tuple[int, int]], other: bytes, random: Random, text: bool) -> bytes:
    """Change some bytes in one to four ways."""
    data = bytearray(content)
    ways: list[Callable[[], None]] = [
        lambda: _flip(data, random),
        lambda: _field(data, fields, random),
        lambda: _field(data, fields, random),
        lambda: _cut(data, random),
        lambda: _insert(data, random),
        lambda: _splice(data, other, random),
        lambda: _repeat(data, random),
    ]
    if text:
        ways = [*ways[:1], *ways[3:], *[lambda: _token(data, random)] * 6]
    for _ in range(random.choice((1, 1, 2, 4))):
        if data:
            random.choice(ways)()
    return bytes(data)


def _place(data: bytearray, random: Random) -> int:
    """Choose a place, more often near the beginning, where headers are."""
    return random.randrange(min(len(data), 512) if random.random() < 0.5 else len(data))


def _flip(data: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 1, 3, 16))):
        data[_place(data, random)] ^= 1 << random.randrange(8)


def _field(data: bytearray, fields: Sequence[tuple[int, int]], random: Random) -> None:
    at, size = random.choice(fields) if fields and random.random() < 0.8 else (_place(data, random), 4)
    order = random.choice("<<>")
    if size in (4, 8) and random.random() < 0.4:
        value = random.choice(_FLOATS)
        try:
            new = struct.pack(f"{order}{'f' if size == 4 else 'd'}", value)
        except OverflowError:
            new = struct.pack(f"{order}f", float("inf"))
    elif size in (1, 2, 4, 8):
        new = (random.choice(_NUMBERS) % (1 << 8 * size)).to_bytes(size, "little" if order == "<" else "big")
    else:
        word = random.choice(_WORDS).encode("utf-8", "surrogatepass")
        new = (word + b" " * size)[:size]
    data[at : at + size] = new[: max(0, len(data) - at)]


def _cut(data: bytearray, random: Random) -> None:
    start = _place(data, random)
    end = len(data) if random.random() < 0.5 else start + random.choice((1, 2, 7, 64, 1000))
    del data[start:end]


def _insert(data: bytearray, random: Random) -> None:
    at = _place(data, random)
    data[at:at] = random.choice((random.randbytes(random.choice((1, 4, 200))), bytes(1000), b"\xff" * 8))


def _splice(data: bytearray, other: bytes, random: Random) -> None:
    if other:
        start = random.randrange(len(other))
        at, size = _place(data, random), random.choice((4, 32, 500))
        data[at : at + random.choice((0, size))] = other[start : start + size]


def _repeat(data: bytearray, random: Random) -> None:
    start = _place(data, random)
    part = bytes(data[start : start + random.choice((1, 8, 60, 400))])
    data[start:start] = part * random.choice((1, 3, 100))


def _token(data: bytearray, random: Random) -> None:
    """Replace a word or number of a text."""
    found = list(re.finditer(rb"[\w.+-]+|[^\w\s]", bytes(data)))
    if found:
        match = random.choice(found)
        data[match.start() : match.end()] = random.choice(_WORDS).encode("utf-8", "surrogatepass")
