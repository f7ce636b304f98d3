"""Small pictures with boxes, written in every format that convert reads."""

import json

import cv2
import numpy as np

SIZE = (80, 60)  # width, height
BOXES = {
    "p1_a": [("disc", (10, 20, 30, 40)), ("hernia", (40, 10, 60, 30))],
    "p1_b": [("disc", (12, 22, 30, 40))],
    "p2_a": [("disc", (5, 5, 25, 20)), ("hernia", (30, 30, 50, 50))],
    "p3_a": [("hernia", (8, 8, 20, 20))],
    "p4_a": [],
    "p5_a": [("disc", (50, 10, 79, 50)), ("hernia", (1, 1, 30, 30))],
}
PATIENT = r"(p\d+)_"


def picture(name):
    noise = np.random.default_rng(list(map(ord, name))).uniform(0, 255, SIZE[::-1]).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def rows(header, make):
    lines = [header]
    for name, boxes in BOXES.items():
        lines += [make(name, label, *box) for label, box in boxes] or [f"{name}.png" + "," * (header.count(","))]
    return "\n".join(lines) + "\n"


def coco(folder):
    names = ["disc", "hernia"]
    images = [{"id": i, "file_name": f"{n}.png", "width": 80, "height": 60} for i, n in enumerate(BOXES)]
    annotations = [
        {"id": 100 * i + j, "image_id": i, "category_id": 7 + names.index(label),
         "bbox": [x0, y0, x1 - x0, y1 - y0]}
        for i, boxes in enumerate(BOXES.values())
        for j, (label, (x0, y0, x1, y1)) in enumerate(boxes)
    ]  # fmt: skip
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))


def voc(folder):
    (folder / "Annotations").mkdir()
    for name, boxes in BOXES.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for label, (x0, y0, x1, y1) in boxes
        )
        text = f"<annotation><filename>{name}.png</filename><size><width>80</width><height>60</height></size>{objects}"
        (folder / "Annotations" / f"{name}.xml").write_text(f"{text}</annotation>")


def masks(folder):
    (folder / "masks").mkdir()
    for name, boxes in BOXES.items():
        mask = np.zeros(SIZE[::-1], np.uint8)
        for label, (x0, y0, x1, y1) in boxes:
            mask[y0:y1, x0:x1] = 1 + ["disc", "hernia"].index(label)
        cv2.imwrite(str(folder / "masks" / f"{name}_mask.png"), mask)


def corners(folder):
    header = "filename,width,height,class,xmin,ymin,xmax,ymax"
    text = rows(header, lambda n, c, *b: f"{n}.png,80,60,{c},{','.join(map(str, b))}")
    (folder / "boxes.csv").write_text(text)


def spider_like(folder):
    text = rows("image,patient,class,x0,y0,x1,y1", lambda n, c, *b: f"{n}.png,{n[:2]},{c},{','.join(map(str, b))}")
    lines = text.splitlines()
    lines = [f"{line.split(',')[0]},{line[:2]},,,,," if ",,," in line else line for line in lines]
    (folder / "boxes.csv").write_text("\n".join(lines))


def sizes(folder):
    def make(name, label, x0, y0, x1, y1):
        return f"{name};{x0};{y0};{x1 - x0};{y1 - y0};{label}"

    (folder / "boxes.csv").write_text(rows("Image ID;x;y;Width;Height;Label", make).replace(",", ";"))


def fractions(folder):
    def make(name, label, x0, y0, x1, y1):
        return f"{name}.png,{label},{(x0 + x1) / 160},{(y0 + y1) / 120},{(x1 - x0) / 80},{(y1 - y0) / 60}"

    (folder / "boxes.csv").write_text(rows("image,label,x_center,y_center,width,height", make))


def headless(folder):
    text = rows("", lambda n, c, *b: f"sub/{n}.png,{','.join(map(str, b))},{c}")
    (folder / "boxes.csv").write_text("\n".join(x for x in text.splitlines() if x) + "\np4_a.png,,,,,\n")


def written(out):
    """Return every image's boxes in pixels by class name, as the labels of a data set say."""
    import yaml

    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    found = {}
    for label in out.glob("labels/*/*.txt"):
        values = [[float(v) for v in line.split()] for line in label.read_text().splitlines()]
        found[label.stem] = sorted(
            (names[int(c)], (80 * (x - w / 2), 60 * (y - h / 2), 80 * (x + w / 2), 60 * (y + h / 2)))
            for c, x, y, w, h in values
        )
        found[label.stem] = [(name, tuple(round(v, 3) for v in box)) for name, box in found[label.stem]]
    return found


EXPECTED = {name: sorted((c, tuple(map(float, b))) for c, b in boxes) for name, boxes in BOXES.items()}


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
