"""What may be told to others: no patient's name, no folder of this machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePath, PurePosixPath
from typing import Any

from meddet_yolo.evaluate.detections import TruthSet
from meddet_yolo.imaging.privacy import identity_words, public_name

__all__ = ["file_name", "public_names", "scrubber"]

_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:[\\/]|\\\\|~?/|\.{1,2}[\\/])(?:[^\s/\\,;:]+[\\/])*([^\s/\\,;:]+)")


def file_name(text: str) -> str:
    r"""Return the last part of a path of any operating system, or a text that is none.

    Examples:
        >>> file_name("/home/doe/d.yaml"), file_name("C:\\x\\best.pt"), file_name("AdamW")
        ('d.yaml', 'best.pt', 'AdamW')
    """
    return PurePosixPath(text.replace("\\", "/")).name or text


def public_names(truth: TruthSet) -> list[str]:
    """Return a name for every image that tells no patient: the file's, or a number where a patient is named in it.

    The words that may not be told are those of the patients' column, taken as a DICOM name and, from four characters
    on, as a number; a shorter number is part of too many file names.

    Examples:
        >>> from meddet_yolo.evaluate.detections import Truth
        >>> images = (Truth("doe_t2.png", [], [], (8, 8), "Doe^Jane"), Truth("IM1.png", [], [], (8, 8), "Roe"))
        >>> public_names(TruthSet(images, ("disc",)))
        ['image-e8813b07', 'IM1']
    """
    names = []
    for image in truth.images:
        owner = image.patient or ""
        header = {"PatientID": owner, **({} if owner.isdigit() else {"PatientName": owner})}
        words = identity_words(header)
        names.append(public_name(str(PurePath(image.name).with_suffix("")), words))
    return names


def scrubber(known: Mapping[str, str]) -> Callable[[Any], str]:
    """Return a function that makes a text public: known texts are replaced, of absolute paths the last part is left.

    Args:
        known: What replaces which text, for example an image's public name its name.

    Examples:
        >>> scrubber({"doe.png": "image-1"})("not read: /data/mri/a.png, doe.png (AUROC/image)")
        'not read: a.png, image-1 (AUROC/image)'
    """
    changed = sorted(((a, b) for a, b in known.items() if a and a != b), key=lambda pair: -len(pair[0]))

    def scrub(text: Any) -> str:
        result = str(text)
        for old, new in changed:
            if old in result:
                result = result.replace(old, new)
        return _PATH.sub(r"\1", result)

    return scrub
