"""Images without labels: where they are, which of them must not be learnt from, and the data set they make."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.utils import LOGGER, RANK

from meddet_yolo.data.convert.patients import dicom_patient
from meddet_yolo.data.convert.pixels import read_picture
from meddet_yolo.data.convert.records import Item
from meddet_yolo.data.convert.yolo import PATIENTS_FILE, data_root, load_yaml, patients_by_file
from meddet_yolo.data.dataset import MedDetDataset
from meddet_yolo.data.duplicates import fingerprint
from meddet_yolo.imaging.limits import MAX_PIXELS, VolumeError, checked_max_pixels
from meddet_yolo.imaging.volumes import Skipped

__all__ = ["Source", "Unlabelled", "UnlabelledDataset", "find_source", "gather"]

HELD_BACK = ("val", "test")
_LEAST = 10  # pixels of the shorter side, as Ultralytics asks for
_BROKEN, _PATIENT = "cannot be read", "of a patient in val or test"


@dataclass(frozen=True)
class Source:
    """Where images without labels are.

    Attributes:
        name: What the user called it.
        places: Folders and list files.
        settings: How DICOM and NIfTI files are decoded: `slices`, `window`, `max_pixels` of a data set's YAML.
    """

    name: str
    places: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Unlabelled:
    """Images without labels, looked through.

    Attributes:
        images: Files to learn from; of DICOM and NIfTI files, decoded pictures.
        skipped: What was left out, and why.
        labelled: How many of the images are training images too, with labels.
        summary: All that in a line.
    """

    images: list[str]
    skipped: list[Skipped]
    labelled: int
    summary: str


class UnlabelledDataset(MedDetDataset):
    """A training data set of image files without labels; label files that lie beside them are never read.

    Takes the arguments of `MedDetDataset`, of which `img_path` is a list of files that can be read.
    """

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the files as they were given."""
        return list(img_path)

    def get_labels(self) -> list[dict[str, Any]]:
        """Return no boxes for each."""
        return [
            {
                "im_file": file,
                "cls": np.zeros((0, 1), np.float32),
                "bboxes": np.zeros((0, 4), np.float32),
                "segments": [],
                "keypoints": None,
                "normalized": True,
                "bbox_format": "xywh",
            }
            for file in self.im_files
        ]


def find_source(source: str | Path) -> Source:
    """Find images without labels.

    Args:
        source: A folder (searched with its subfolders), a `.txt` list, or a data set's YAML, of which the images under
            `unlabelled` are taken or, where it has none, those under `train`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is something else.

    Examples:
        >>> import tempfile
        >>> find_source(tempfile.gettempdir()).places == (str(Path(tempfile.gettempdir()).resolve()),)
        True
        >>> find_source("nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: unlabelled=nowhere is not there; name a folder, a .txt list of images or a data set's YAML
    """
    path = Path(source).expanduser().resolve()
    wanted = "name a folder, a .txt list of images or a data set's YAML"
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".txt"):
        return Source(str(source), (str(path),))
    if not path.is_file():
        raise FileNotFoundError(f"unlabelled={source} is not there; {wanted}")
    if path.suffix.lower() not in {".yaml", ".yml"}:
        raise ValueError(f"unlabelled={source} is neither; {wanted}")
    content = load_yaml(path)
    key = next((key for key in ("unlabelled", "train") if isinstance(content, dict) and content.get(key)), None)
    given = [content[key]] if key and isinstance(content[key], str) else content[key] if key else None
    if not isinstance(given, list) or not all(isinstance(place, str) for place in given):
        raise ValueError(f"unlabelled={source} names no images: expected `unlabelled:` or `train:` in it")
    places = tuple(str((data_root(content, path) / place).resolve()) for place in given)
    for place in places:
        if not Path(place).exists():
            raise FileNotFoundError(f"unlabelled={source}: {key} names {place}, which is not there")
    return Source(str(source), places, {k: v for k, v in content.items() if k in ("slices", "window", "max_pixels")})


def gather(
    source: Source,
    data: Mapping[str, Any],
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda results, total: results,
) -> Unlabelled:
    """Name and read images without labels, and leave out what must not be learnt from.

    Left out are files that cannot be read, images whose pixels are those of an image in val or test, and images of a
    patient who is in val or test, as far as patients are known: by the `patients.csv` beside the data set's YAML, and
    by the patient ID of DICOM files.

    Args:
        source: Where the images are.
        data: The checked contents of the data set's YAML, of which `train`, `val` and `test` are read.
        progress: Wraps the results as they come, to show a bar; is given their number too.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If none can be used, or `slices`, `window` or `max_pixels` is wrong.
    """
    parts = {part: _labelled_images(data, part) for part in ("train", *HELD_BACK)}
    held = {patient for part in HELD_BACK for patient in parts[part].dicom_patients}
    listing = _Listing({"slices": "all", **_decodable(source.settings)}, "unlabelled: ", apart=True, refused=held)
    try:
        images = list(dict.fromkeys(listing.get_img_files(list(source.places))))
    except FileNotFoundError as error:
        if not listing.refusals:
            raise FileNotFoundError(f"unlabelled={source.name} holds no images") from error
        images = []
    except ValueError as error:  # of volumes, none of which can be used
        raise ValueError(f"unlabelled={source.name}: {error}") from error
    owners = _patients(data)
    held_owners = {owners[file] for part in HELD_BACK for file in parts[part].images if file in owners}
    skipped = [*listing.skipped, *listing.refusals]
    why: Counter[str] = Counter({_BROKEN: len(listing.skipped), _PATIENT: len(listing.refusals)})
    limit = checked_max_pixels(source.settings.get("max_pixels", data.get("max_pixels", MAX_PIXELS)))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        known: dict[str, str] = {}
        for part in ("train", *reversed(HELD_BACK)):  # an image that is in several counts as one of val
            for _, digest in pool.map(lambda file: _look_at(file, limit), parts[part].images):
                if isinstance(digest, str):
                    known[digest] = part
        kept, labelled = [], 0
        for file, digest in progress(pool.map(lambda file: _look_at(file, limit), images), len(images)):
            part = known.get(digest, "") if isinstance(digest, str) else ""
            if isinstance(digest, Skipped):
                skipped.append(digest)
                why[_BROKEN] += 1
            elif part in HELD_BACK:
                skipped.append(Skipped(Path(file), f"the same image is in {part}"))
                why["in val or test"] += 1
            elif owners.get(file) in held_owners:
                skipped.append(Skipped(Path(file), "is of a patient who is in val or test"))
                why[_PATIENT] += 1
            else:
                kept.append(file)
                labelled += part == "train"
    if not kept:
        raise ValueError(f"unlabelled={source.name}: none of its images can be used: {skipped[0]}")
    reasons = ", ".join(f"{count} {reason}" for reason, count in why.items() if count)
    summary = f"{len(kept)} images without labels" + (f"; skipped {len(skipped)}: {reasons}" if skipped else "")
    if labelled:
        summary += f"; {labelled} of the images are training images with labels too"
    return Unlabelled(kept, skipped, labelled, summary)


@dataclass(frozen=True)
class _Part:
    """The images of a part of a data set, and the patients of its DICOM files."""

    images: list[str] = field(default_factory=list)
    dicom_patients: set[str] = field(default_factory=set)


class _Listing(MedDetDataset):
    """Names the images of folders and lists as a data set does, and nothing more.

    Args:
        data: `slices`, `window` and `max_pixels`.
        prefix: Begins messages.
        apart: Whether decoded slices are kept apart from those of a labelled data set, which are other ones.
        refused: Patients whose DICOM files are left out.
    """

    def __init__(
        self, data: Mapping[str, Any], prefix: str, *, apart: bool = False, refused: Collection[str] = ()
    ) -> None:
        self.data: Mapping[str, Any] = data
        self.prefix = prefix
        self.fraction = 1.0
        self.refusals: list[Skipped] = []
        self.patients: set[str] = set()
        self._apart, self._refused = apart, refused

    def report(self, skipped: Sequence[Skipped]) -> None:
        """Say nothing: whoever asks for the images does, or has done so."""

    def label_folder(self, folder: Path) -> Path:
        """Return the folder beside which slices are kept."""
        labels = super().label_folder(folder)
        return labels.with_name(f"{labels.name}.unlabelled") if self._apart else labels

    def volumes(self, img_path: str | list[str]) -> list[Path]:
        """Return the DICOM and NIfTI files, without those of refused patients."""
        kept = []
        for file in super().volumes(img_path):
            patient = dicom_patient(file)
            if patient is not None:
                self.patients.add(patient)
            if patient in self._refused:
                self.refusals.append(Skipped(file, "is of a patient who is in val or test").masked(_words(file)))
            else:
                kept.append(file)
        return kept


def _words(file: Path) -> Collection[str]:
    """Return the words of a DICOM file that name its patient."""
    from meddet_yolo.imaging.dicom import read_header

    try:
        return read_header(file)[0].words
    except Exception as error:
        return error.words if isinstance(error, VolumeError) else ()


def _decodable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without `slices: labelled`, of which there are none."""
    return {key: value for key, value in settings.items() if (key, value) != ("slices", "labelled")}


def _labelled_images(data: Mapping[str, Any], part: str) -> _Part:
    """Return the images of a part of a data set; one that is not there has none."""
    places = data.get(part)
    if not places:
        return _Part()
    listing = _Listing(data, f"{part}: ")
    try:
        images = listing.get_img_files(places)
    except (FileNotFoundError, ValueError):
        if RANK in {-1, 0}:
            LOGGER.warning(f"unlabelled: {part} of the data set has no images here, so none can be compared with them")
        return _Part()
    return _Part([str(Path(image).resolve()) for image in images], listing.patients)


def _patients(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the patient of every image file that the table beside the data set's YAML tells of."""
    yaml_file = Path(str(data.get("yaml_file") or data.get("path") or ".")).resolve()
    return patients_by_file(yaml_file.parent / PATIENTS_FILE)


def _look_at(file: str, max_pixels: int) -> tuple[str, str | Skipped]:
    """Return an image's file with the digest of its pixels, or with why it cannot be read."""
    path = Path(file)
    try:
        pixels = read_picture(Item(path), max_pixels).pixels
        if min(pixels.shape[:2]) < _LEAST:
            raise ValueError(f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, expected at least {_LEAST} each way")
    except Exception as error:  # whatever a damaged file makes a library do
        return file, Skipped(path, str(error) if isinstance(error, ValueError) else type(error).__name__)
    return file, fingerprint(pixels).digest
