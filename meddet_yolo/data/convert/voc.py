"""Reading Pascal VOC: one XML file an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from meddet_yolo.data.convert.records import Collection, ImageIndex, Item, NamedBox

__all__ = ["read_voc"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(files: Sequence[Path], root: Path, images: ImageIndex) -> Collection:
    """Read boxes from Pascal VOC files.

    VOC counts pixels from 1 and its corners are the first and the last pixel of a box: xmin = 1, xmax = 10 are ten
    pixels from the edge. Where any box of the data set has a corner at 0, the tool that wrote it counted from 0 and
    its corners are taken as they are. Parts of a split come from `ImageSets/Main/*.txt` or from folder names.

    Args:
        files: The XML files.
        root: Folder that messages are relative to.
        images: Finds the images.
    """
    collection = Collection(root)
    splits = _image_sets(files)
    for file in files:
        try:
            item = _read_file(file, images)
        except Exception as error:  # the parser's own kinds among them
            collection.leave_out(file, str(error) or type(error).__name__)
            continue
        item.split = splits.get(file.stem) or collection.part_of(file) or collection.part_of(item.path)
        collection.items.append(item)
    from_zero = any(min(box.xyxy[:2]) < 1 for item in collection.items for box in item.boxes)
    if from_zero:
        collection.notes.append("VOC: corners at 0, so pixels are taken as counted from 0")
    else:
        for item in collection.items:
            item.boxes = [NamedBox(b.name, (b.xyxy[0] - 1, b.xyxy[1] - 1, b.xyxy[2], b.xyxy[3])) for b in item.boxes]
    collection.names = sorted({box.name for item in collection.items for box in item.boxes})
    return collection


def _read_file(file: Path, images: ImageIndex) -> Item:
    content = file.read_bytes()
    if b"<!ENTITY" in content.replace(b"\0", b""):  # in text of one byte a character or of several
        raise ValueError("declares XML entities, which no annotation needs: not read")
    tree = ElementTree.fromstring(content)
    if tree.tag != "annotation":
        raise ValueError(f"is no VOC annotation: its root is <{tree.tag}>, expected <annotation>")
    name = (tree.findtext("filename") or "").strip()
    try:
        item = Item(images.find(name or file.stem))
    except FileNotFoundError:
        item = Item(images.find(file.stem))  # copies of a data set often keep the name of another format
    size = [tree.findtext(f"size/{side}") for side in ("width", "height")]
    if all(size) and float(size[0] or 0) > 0 and float(size[1] or 0) > 0:
        item.declared = (int(float(size[0] or 0)), int(float(size[1] or 0)))
    for number, box in enumerate(tree.iter("object"), start=1):
        label = (box.findtext("name") or "").strip()
        if not label:
            raise ValueError(f"object {number} has no name")
        corners = [box.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        try:
            x0, y0, x1, y1 = (float(c) for c in corners if c is not None)
        except ValueError as error:
            raise ValueError(f"object {number}: {', '.join(_CORNERS)} are {corners}, expected four numbers") from error
        item.boxes.append(NamedBox(label, (x0, y0, x1, y1)))
    return item


def _image_sets(files: Sequence[Path]) -> dict[str, str]:
    """Return the part of each image that `ImageSets/Main/train.txt` and the like list."""
    splits: dict[str, str] = {}
    for root in {file.parent.parent for file in files}:
        for part in ("train", "val", "test"):
            listing = root / "ImageSets" / "Main" / f"{part}.txt"
            if listing.is_file():
                for line in listing.read_text(encoding="utf-8-sig").splitlines():
                    if line.strip():
                        splits[line.split()[0]] = part
    return splits
