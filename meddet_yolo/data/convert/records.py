"""What the readers of annotation formats hand over: images with named boxes, and what could not be read."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from meddet_yolo.imaging.search import CACHE_SUFFIX
from meddet_yolo.imaging.volumes import is_volume, stem_of

__all__ = ["Collection", "ImageIndex", "Item", "NamedBox", "Problem", "image_files", "pseudonym", "split_of"]

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class NamedBox:
    """A box with the name of its class; corners in pixels, or fractions, of the image, possibly outside of it."""

    name: str
    xyxy: tuple[float, float, float, float]


@dataclass
class Item:
    """An image with its boxes.

    Attributes:
        path: File of the image, or the volume it is a slice of.
        boxes: Its boxes.
        declared: (width, height) that the annotation gives for the image, if it does.
        patient: Patient, as far as the annotation names one.
        split: Part of a given split.
        index: Number of the slice or frame in a volume or a multi-frame file.
        upright: Whether the boxes belong to a medical slice as it is shown, not as it is stored.
        fractions: Whether the boxes are in fractions of the image's width and height.
    """

    path: Path
    boxes: list[NamedBox] = field(default_factory=list)
    declared: tuple[int, int] | None = None
    patient: str | None = None
    split: str | None = None
    index: int | None = None
    upright: bool = False
    fractions: bool = False


@dataclass(frozen=True)
class Problem:
    """What was left out, and why."""

    file: str
    reason: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.file}: {self.reason}"


@dataclass
class Collection:
    """All that was read from a source.

    Attributes:
        root: Folder that paths in messages and patterns are relative to.
        items: Images with boxes.
        names: Class names in the source's own order, those that are not used included.
        problems: What was left out.
        notes: What a user should know of the rest.
    """

    root: Path
    items: list[Item] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, file: Path | str, reason: str) -> None:
        """Note that a file, or a part of one, was left out."""
        self.problems.append(Problem(self.shown(file), reason))

    def part_of(self, image: Path) -> str | None:
        """Return the part of a split that a file's folders in the source name; folders above have no say."""
        inside = image.is_relative_to(self.root)
        return split_of((image.relative_to(self.root) if inside else Path(*image.parts[-3:])).parent)

    def shown(self, file: Path | str) -> str:
        """Return a file's name for a message, relative to the source where it lies in there."""
        path = Path(file)
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(file)


def pseudonym(identity: str) -> str:
    """Return what stands for an identity in messages, the same for the same one."""
    return f"id-{hashlib.sha256(identity.encode('utf-8', 'backslashreplace')).hexdigest()[:10]}"


def split_of(path: Path) -> str | None:
    """Return the part of a split that a path names, the innermost name first.

    Examples:
        >>> [split_of(Path(p)) for p in ("images/val/a.png", "instances_train2017.json", "trainer/a.png")]
        ['val', 'train', None]
    """
    for name in (path.stem, *(parent.name for parent in path.parents)):
        words = {re.sub(r"\d+$", "", word) for word in re.split(r"[^a-z0-9]+", name.lower())}
        found = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder and its subfolders, DICOM and NIfTI included, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(p.startswith(".") or p.endswith(CACHE_SUFFIX) for p in path.relative_to(folder).parts)
        and path.is_file()
        and (path.suffix.lower() in IMAGE_SUFFIXES or (_may_be_volume(path) and is_volume(path)))
    )


def _may_be_volume(path: Path) -> bool:
    """Return whether a name is one that DICOM and NIfTI files have; scanners leave suffixes out, or write UIDs."""
    suffix = path.suffix.lower()
    return not suffix or suffix[1:].isdigit() or suffix in {".dcm", ".dicom", ".ima", ".nii", ".gz"}


class ImageIndex:
    """Find images by the names that annotations give them: a path, a file name, or one without its suffix.

    Args:
        folders: Where to look, subfolders included.

    Raises:
        FileNotFoundError: If none of the folders has an image.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [folder for folder in folders if folder.is_dir()]
        self.files = list(dict.fromkeys(path for folder in self.folders for path in image_files(folder)))
        if not self.files:
            raise FileNotFoundError(
                f"no images in {', '.join(map(str, folders)) or 'the source'}: say where they are with images=FOLDER"
            )
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            for name in {path.name.lower(), stem_of(path).lower()}:
                self._by_name[name].append(path)

    def find(self, name: str) -> Path:
        """Return the image of a name.

        Raises:
            FileNotFoundError: If there is none, or several.
        """
        given = Path(name.strip().replace("\\", "/"))
        for folder in self.folders:
            with contextlib.suppress(OSError, ValueError):  # a name that is too long, or none
                if (folder / given).is_file():
                    return folder / given
        found = self._by_name.get(given.name.lower(), [])
        for depth in range(2, len(given.parts) + 1):  # several of one name: as much of the given path as it takes
            if len(found) <= 1:
                break
            tail = tuple(part.lower() for part in given.parts[-depth:])
            found = [p for p in found if tuple(part.lower() for part in p.parts[-depth:]) == tail] or found
        if not found:
            raise FileNotFoundError(f"image {given.as_posix()[:200]} is not there")
        if len(found) > 1:
            raise FileNotFoundError(f"image {given.as_posix()} is ambiguous: {found[0]} and {found[1]}")
        return found[0]
