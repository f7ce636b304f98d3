"""Who the patient of an image is, and into which part of the split he goes."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from meddet_yolo.data.convert.records import Collection, pseudonym
from meddet_yolo.data.convert.write import Planned
from meddet_yolo.data.splits import SPLITS, LeakageError, check_leakage, contents_of_patients, natural, split_patients
from meddet_yolo.imaging.dicom_header import is_dicom, load

__all__ = ["assign_parts", "dicom_patient", "find_patients", "set_labels_aside"]

_BIDS = re.compile(r"(?:^|/)sub-([A-Za-z0-9]+)(?=[/_])")


def find_patients(collection: Collection, patient: str | None) -> None:
    """Set the patient of every item as it was asked for, or else as far as the source tells."""
    pattern = None
    if patient not in (None, "folder", "image"):
        try:
            pattern = re.compile(str(patient))
        except re.error as error:
            raise ValueError(f"patient={patient!r} is no regular expression: {error}") from error
        if pattern.groups < 1:
            raise ValueError(
                f"patient={patient!r} is neither a column, `folder`, `image` nor a regular expression with a group, "
                r"such as 'p(\d+)_'"
            )
    for item in collection.items:
        path = collection.shown(item.path)
        if pattern is not None:
            match = pattern.search(path)
            if match is None:
                raise ValueError(f"patient={patient!r} does not match {path}")
            item.patient = match["patient"] if "patient" in pattern.groupindex else match[1]
        elif patient == "folder":
            item.patient = item.path.parent.name
        elif patient == "image":
            item.patient = path
        elif item.patient is None:
            bids = _BIDS.search(path)
            item.patient = bids[1] if bids else dicom_patient(item.path)


@functools.lru_cache(maxsize=100_000)
def dicom_patient(path: Path) -> str | None:
    """Return what stands for the patient ID of a DICOM file, which itself is not kept."""
    if not path.is_file() or not is_dicom(path):
        return None
    try:
        identity = str(load(path, pixels=False).get("PatientID", "") or "")
    except Exception:  # a damaged file is named with its reason when its pixels are read
        return None
    return pseudonym(identity) if identity else None


def assign_parts(
    planned: Sequence[Planned],
    collection: Collection,
    split: str,
    val: float,
    test: float,
    seed: int,
    *,
    check: bool,
) -> list[str]:
    """Put every image into a part of the split and give its patient a pseudonym.

    Returns:
        What leaks, with `check`; without it, that is an error.
    """
    known = all(p.item.patient is not None for p in planned)
    without = sum(p.split not in SPLITS for p in planned)
    if split == "auto":
        split = "new" if without == len(planned) else "given"
    if split == "given" and without:
        if not check:
            raise ValueError(f"{without} of {len(planned)} images have no part of a split: add split=new to make one")
        for p in planned:
            p.split = p.split if p.split in SPLITS else "train"
    if split == "new" and not known:
        unknown = next(p for p in planned if p.item.patient is None)
        raise ValueError(
            f"which images are of one patient is not known, of {collection.shown(unknown.item.path)} for example: add "
            "patient= with a column, a regular expression with a group, `folder`, or `image` if no two are"
        )
    if known:
        everyone = sorted({str(p.item.patient) for p in planned}, key=natural)
        width = max(4, len(str(len(everyone))))
        pseudonym = {patient: f"p{number:0{width}d}" for number, patient in enumerate(everyone, start=1)}
        for p in planned:
            p.patient = pseudonym[str(p.item.patient)]
    leaks: list[str] = []
    if split == "new":
        _split_anew(planned, {"val": val, "test": test}, seed)
    elif known:
        try:
            check_leakage((str(p.item.patient), p.split) for p in planned)
        except LeakageError as error:
            if not check:
                raise
            leaks.append(str(error))
    else:
        collection.notes.append("patients are not known, so the given split was not checked for leakage: add patient=")
    parts = {p.split for p in planned}
    if not check and "train" in parts and "val" not in parts:
        if not known:
            raise ValueError("the given split has no validation part, and without patient= none can be made")
        _split_anew([p for p in planned if p.split == "train"], {"val": val}, seed)
        taken = len({p.patient for p in planned if p.split == "val"})
        collection.notes.append(f"the given split has no validation part: {taken} of its training patients taken")
    if not check and "train" not in parts:
        collection.notes.append(
            "the given split has no training part: what `train:` in data.yaml names is there to evaluate on, because "
            "Ultralytics refuses a file without it; split=new makes parts to train with"
        )
    return leaks


def set_labels_aside(planned: Sequence[Planned], labelled: float, seed: int) -> str:
    """Leave labels to a share of the training patients, and mark the images of the others.

    Args:
        planned: The images, split already.
        labelled: The share, in (0, 1).
        seed: Seed of the choice, which spreads images and boxes evenly as that of a split does.

    Returns:
        What was done, in a line.

    Raises:
        ValueError: If patients are not known, or too few.
    """
    train = [p for p in planned if p.split == "train"]
    if not all(p.patient for p in train):
        raise ValueError(f"labelled={labelled:g} is a share of the patients, and they are not known: add patient=")
    parts = _assign(train, {"labelled": labelled}, "unlabelled", seed)
    for p in train:
        p.unlabelled = parts[str(p.item.patient)] == "unlabelled"
    kept = [p for p in train if not p.unlabelled]
    patients, images = len({p.patient for p in kept}), len(kept)
    return (
        f"labels set aside: {patients} of {len({p.patient for p in train})} training patients keep theirs ({images} of "
        f"{len(train)} images); the other images are listed in unlabelled.txt"
    )


def _split_anew(planned: Sequence[Planned], held_back: Mapping[str, float], seed: int) -> None:
    """Assign the images to parts by patient.

    Args:
        planned: The images.
        held_back: For each part but training the share of the patients, or their number; the others are for training.
        seed: Seed of the split.
    """
    parts = _assign(planned, held_back, "train", seed)
    for p in planned:
        p.split = parts[str(p.item.patient)]


def _assign(planned: Sequence[Planned], wanted: Mapping[str, float], others: str, seed: int) -> dict[str, str]:
    """Assign the images' patients to parts that are alike in images, empty images and boxes of each class.

    Patients who share an image, pixel by pixel, are taken for one.

    Args:
        planned: The images.
        wanted: For each part but one the share of the patients, or their number.
        others: The part of those who are left.
        seed: Seed of the choice.

    Returns:
        The part of each patient.
    """
    together = _who_belongs_together(planned)
    table = contents_of_patients((together[str(p.item.patient)], [row[0] for row in p.rows]) for p in planned)
    shares = {part: value / len(table) if value >= 1 else value for part, value in wanted.items()}
    rest = 1 - sum(shares.values())
    if rest <= 0:
        given = " and ".join(f"{part}={value:g}" for part, value in wanted.items())
        raise ValueError(f"{given} leave none of {len(table)} patients for training")
    try:
        parts = split_patients(table, {others: rest, **shares}, seed=seed)
    except ValueError as error:
        if len(table) == len(together):
            raise
        raise ValueError(
            f"{error} ({len(together)} patients, of whom those who share an image count as one)"
        ) from error
    return {patient: parts[one] for patient, one in together.items()}


def _who_belongs_together(planned: Sequence[Planned]) -> dict[str, str]:
    """Return for each patient the one who stands for all that are connected by images they share."""
    stands: dict[str, str] = {}

    def find(key: str) -> str:
        while stands.setdefault(key, key) != key:
            key = stands[key]
        return key

    for p in planned:
        patient, image = find(f"patient {p.item.patient}"), find(f"image {p.digest}")
        stands[image] = patient
    return {str(p.item.patient): find(f"patient {p.item.patient}") for p in planned}
