"""Keeping the patient's identity out of logs, file names and pictures."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = ["IDENTIFYING", "content_key", "identity_words", "public_name", "redact", "silent"]

# Attributes whose text names the patient: names, numbers, and the day of birth.
_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ResponsiblePerson")
_NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "MedicalRecordLocator")
_BIRTH, _MORE_NUMBERS = "PatientBirthDate", "OtherPatientIDsSequence"
IDENTIFYING = (*_NAMES, *_NUMBERS, _BIRTH, _MORE_NUMBERS)
_MASK = "***"
# A header that names its patient in thousands of words would make every name of the run slow to mask. More than a name
# in three scripts has: letters of a value, words in it; and values of an attribute.
_LONGEST, _MOST_PARTS, _MOST_VALUES = 400, 40, 20
_SEPARATOR = r"[\^=\s,;._/()\-\u2010-\u2015]+"
_APOSTROPHES = "'\u2019\u2018`\u00b4"
# What Unicode does not decompose, as passports write it.
_LETTERS = {"ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ı": "i"}
_LETTERS |= dict.fromkeys(_APOSTROPHES, "")
_TWO_LETTERS = re.compile(r"[aou]e|aa")  # of an umlaut, ø or å
_LONG = {"a": "a[ae]?", "o": "oe?", "u": "ue?"}


def identity_words(header: Any) -> frozenset[str]:
    """Return the words of a DICOM header that name its patient, in lower case; a birth date as YYYYMMDD.

    An attribute that cannot be read gives none.

    Args:
        header: A pydicom data set, or anything with `get(keyword)`.

    Examples:
        >>> sorted(identity_words({"PatientName": "Doe^Jane", "PatientID": "4711-A", "PatientBirthDate": "20010203"}))
        ['20010203', '4711-a', 'doe', 'jane']
    """
    return frozenset(_identity_words(header, levels=2))


def _identity_words(header: Any, levels: int) -> set[str]:
    """Return the words of a header and of the items with further numbers in it, as deep as that may be."""
    words: set[str] = set()
    for keyword in (*_NAMES, *_NUMBERS, _BIRTH):
        for text in _texts(header, keyword):
            if keyword in _NAMES:
                parts = re.split(_SEPARATOR, text)[:_MOST_PARTS]
                words |= {part for part in parts if len(part) > 1 or not part.isascii()}
            elif keyword == _BIRTH and _day(text):
                words.add(_day(text))
            elif len(text) > 3:  # a shorter number is part of too many file names
                words.add(text)
    try:
        items = list(header.get(_MORE_NUMBERS) or [])[:_MOST_VALUES] if levels else []
    except Exception:
        items = []
    return (words - {""}).union(*(_identity_words(item, levels - 1) for item in items))


def _texts(header: Any, keyword: str) -> list[str]:
    """Return the texts of an attribute, which may have several, composed and in lower case."""
    try:
        value = header.get(keyword)
        # pydicom's own list of values is a sequence, but neither a list nor a tuple.
        several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return [
            unicodedata.normalize("NFC", _text(item)[:_LONGEST]).strip().lower()
            for item in (value[:_MOST_VALUES] if several else [value])
        ]
    except Exception:  # a value that is not what its tag says; the reader refuses the file for it
        return []


def _text(value: Any) -> str:
    """Return a value as text; one whose type the header does not tell is bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _day(text: str) -> str:
    """Return a date as YYYYMMDD, also one with separators or with the year last; empty where it is none."""
    digits = re.sub(r"\D", "", text)
    for order in (digits, digits[4:] + digits[2:4] + digits[:2]):
        if re.fullmatch(r"(1[89]|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", order):
            return order
    return ""


def redact(text: str, words: Iterable[str]) -> str:
    """Mask the words that name a patient, wherever they stand and however they are written.

    Case, accents and the way a letter is encoded make no difference, nor do the separators within a number; Müller is
    also Mueller and Muller. A date is found with its parts in any usual order, with or without separators, the year
    with four digits or two. Two-letter names are masked only where they stand alone.

    Examples:
        >>> redact("study/DoeJane_t2/IM1.dcm: bad", ["doe", "jane"])
        'study/******_t2/IM1.dcm: bad'
        >>> redact("mueller/3.2.2001/IM1.dcm", ["müller", "20010203"])
        '***/***/IM1.dcm'
    """
    text = text.encode("utf-8", "backslashreplace").decode()  # a name of bytes that are no text can be shown then
    patterns = [_pattern(word) for word in set(words)]
    if not patterns:
        return text
    folded, starts, ends = _folded(text)
    spans = sorted((starts[m.start()], ends[m.end() - 1]) for p in patterns for m in p.finditer(folded) if m[0])
    result, place = [], 0
    for start, end in spans:
        if start >= place:  # else it overlaps the one before, and is masked with it
            result += [text[place:start], _MASK]
        place = max(place, end)
    return "".join([*result, text[place:]])


def _folded(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """Return a text in plain small letters, and where each of them begins and ends in the original."""
    if text.isascii() and not any(c in text for c in _APOSTROPHES):
        return text.lower(), range(len(text)), range(1, len(text) + 1)
    letters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for i, character in enumerate(text):
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
        plain = "".join(_LETTERS.get(c, c) for c in plain if not unicodedata.combining(c))
        if not plain and ends:  # an accent belongs to the letter before it
            ends[-1] = i + 1
        letters += plain
        starts += [i] * len(plain)
        ends += [i + 1] * len(plain)
    return "".join(letters), starts, ends


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    """Return what finds a word in a folded text."""
    folded = _folded(word)[0]
    alone = len(folded) == 2 and folded.isascii()
    short = _TWO_LETTERS.sub(lambda m: m[0][0], folded)
    if len(short) > 3 and not short.isdigit():  # Doe is not Do
        folded = short
    parts = [p for p in re.split(r"[\W_]+", folded) if p] or [folded]
    pattern = r"[\W_]?".join(re.sub("[aou]", lambda m: _LONG[m[0]], re.escape(part)) for part in parts)
    if alone:
        pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
    if day := _day(word) if word.isdigit() else "":
        pattern = f"{pattern}|{_dates(day)}"
    return re.compile(pattern)


def _dates(day: str) -> str:
    """Return a pattern of the ways to write a date YYYYMMDD in digits."""
    year, month, date = day[:4], day[4:6], day[6:]
    loose = [f"(?:{year}|{year[2:]})", *(part if part[0] != "0" else f"0?{part[1]}" for part in (month, date))]
    ways = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        ways.append("[-._/ ]".join(loose[i] for i in order))
        ways += ["".join((y, month, date)[i] for i in order) for y in (year, year[2:])]
    return rf"(?<!\d)(?:{'|'.join(ways)})(?!\d)"


def content_key(path: str | Path) -> str:
    """Return a hash of a file's first MiB, or nothing where it cannot be read: `public_name` may be made of it."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.sha256(file.read(1 << 20)).hexdigest()
    except OSError:
        return ""


def public_name(stem: str, words: Iterable[str], uid: str = "") -> str:
    """Return a name for output files: the file's stem, or a number made from `uid` where that names the patient.

    Examples:
        >>> public_name("IM0001", ["doe"]), public_name("doe_t2", ["doe"], "1.2.3")
        ('IM0001', 'image-c47f5b18')
    """
    if redact(stem, words) == stem:
        return stem
    own = (uid or Path(stem).name).encode("utf-8", "backslashreplace")
    return f"image-{hashlib.sha256(own).hexdigest()[:8]}"


@contextmanager
def silent(name: str) -> Iterator[None]:
    """Keep a library's loggers quiet: their messages may quote what they read, the patient's name included."""
    loggers = [logging.getLogger(n) for n in (name, *logging.root.manager.loggerDict) if n.split(".")[0] == name]

    def drop(_: logging.LogRecord) -> bool:
        return False

    for logger in loggers:
        logger.addFilter(drop)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(drop)
