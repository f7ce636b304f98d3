"""Keeping the patient's identity out of logs, file names and pictures."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["IDENTIFYING", "identity_words", "public_name", "redact", "silent"]

# Attributes whose text names the patient; the first two kinds are names, the rest numbers.
_NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName")
_NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber", "MedicalRecordLocator")
IDENTIFYING = _NAMES + _NUMBERS
_MASK = "***"


def identity_words(header: Any) -> frozenset[str]:
    """Return the words of a DICOM header that name its patient, in lower case.

    Args:
        header: A pydicom data set, or anything with `get(keyword)`.

    Examples:
        >>> sorted(identity_words({"PatientName": "Doe^Jane", "PatientID": "4711-A"}))
        ['4711-a', 'doe', 'jane']
    """
    words = set()
    for keyword in IDENTIFYING:
        value = header.get(keyword)
        # pydicom's own list of values is a sequence, but neither a list nor a tuple.
        several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        for text in value if several else [value]:
            text = str(text or "").strip().lower()
            if keyword in _NAMES:
                parts = re.split(r"[\^=\s,]+", text)
                words |= {part for part in parts if len(part) > 1 or not part.isascii()}
            elif len(text) > 3:  # a shorter number is part of too many file names
                words.add(text)
    others = header.get("OtherPatientIDsSequence") or []
    return frozenset(words - {""}).union(*(identity_words(item) for item in others))


def redact(text: str, words: Iterable[str]) -> str:
    """Mask the words that name a patient, wherever they stand and however they are written.

    Two-letter names are masked only where they stand alone.

    Examples:
        >>> redact("study/DoeJane_t2/IM1.dcm: bad", ["doe", "jane"])
        'study/******_t2/IM1.dcm: bad'
    """
    for word in sorted(words, key=len, reverse=True):
        pattern = re.escape(word)
        if len(word) == 2 and word.isascii():
            pattern = rf"(?<![^\W_]){pattern}(?![^\W_])"
        text = re.sub(pattern, _MASK, text, flags=re.IGNORECASE)
    return text


def public_name(stem: str, words: Iterable[str], uid: str = "") -> str:
    """Return a name for output files: the file's stem, or a number made from `uid` where that names the patient.

    Examples:
        >>> public_name("IM0001", ["doe"]), public_name("doe_t2", ["doe"], "1.2.3")
        ('IM0001', 'image-c47f5b18')
    """
    if redact(stem, words) == stem:
        return stem
    return f"image-{hashlib.sha256((uid or Path(stem).name).encode()).hexdigest()[:8]}"


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
