"""How far ahead an inherited student starts."""

import cv2
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils import YAML
from ultralytics.utils.checks import check_yaml

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import CHANNELS, inherit, recalibrate
from tests.distill.inherit._models import SHARED


def drawn(number: int, seed: int) -> dict[str, torch.Tensor]:
    """Return a batch of grey images (number, 3, 64, 64) with one bright or dark rectangle each, two classes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(number, 1, 64, 64, generator=generator) * 0.2 + 0.4
    boxes, classes = [], torch.arange(number) % 2
    for image, label in zip(images, classes, strict=True):
        w, h = torch.randint(12, 36, (2,), generator=generator).tolist()
        x, y = (int(torch.randint(0, 64 - side, (1,), generator=generator)) for side in (w, h))
        image[0, y : y + h, x : x + w] += 0.35 if label else -0.35
        boxes.append([(x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64])
    batch_idx = torch.arange(number).float()
    return {
        "img": images.repeat(1, 3, 1, 1),
        "cls": classes.float()[:, None],
        "bboxes": torch.tensor(boxes),
        "batch_idx": batch_idx,
    }


def loss_of(model: DetectionModel, batch: dict[str, torch.Tensor]) -> float:
    model.args, model.criterion = get_cfg(), None
    with torch.no_grad():
        return float(model.eval().loss(batch, model(batch["img"]))[0].sum()) / len(batch["img"])


def plain(width: float, seed: int) -> DetectionModel:
    """Return a detector as it starts without a teacher."""
    torch.manual_seed(seed)
    config = YAML.load(check_yaml("yolo11.yaml"))
    config.update(scales={"n": [0.5, width, 1024]}, scale="n")
    return DetectionModel(config, nc=2, verbose=False)


@pytest.fixture(scope="module")
def trained() -> DetectionModel:
    """A detector of drawn rectangles, trained for a few seconds."""
    model = plain(0.1875, seed=0)
    model.args = get_cfg()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(60):
        optimizer.zero_grad()
        (model.train().loss(drawn(8, step))[0].sum() / 8).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("channels", CHANNELS)
def test_an_inherited_student_starts_ahead_of_fresh_ones(trained, channels):
    batch, images = drawn(16, 1000), [drawn(16, 2000 + i)["img"] for i in range(4)]
    student, *fresh = (plain(0.125, seed) for seed in (1, 2, 3))
    inherit(student, trained, channels=channels)
    for model in (student, *fresh):
        recalibrate(model, images)
    assert loss_of(student, batch) < 0.9 * min(loss_of(model, batch) for model in fresh)


def real(split: str, number: int) -> dict[str, torch.Tensor]:
    """Return the first images of the real set, squeezed to 192 px, and their boxes."""
    folder = SHARED / "spider_disc2"
    images, boxes = [], []
    for i, file in enumerate(sorted((folder / "images" / split).glob("*.jpg"))[:number]):
        images.append(torch.from_numpy(cv2.resize(cv2.imread(str(file)), (192, 192))).permute(2, 0, 1))
        labels = (folder / "labels" / split / f"{file.stem}.txt").read_text().splitlines()
        boxes += [[i, *map(float, line.split())] for line in labels]
    table = torch.tensor(boxes)
    image = torch.stack(images).float() / 255
    return {"img": image, "batch_idx": table[:, 0], "cls": table[:, 1:2], "bboxes": table[:, 2:]}


@pytest.mark.skipif(not (SHARED / "teachers" / "yolo11s_spider_disc2.pt").exists(), reason="no trained teacher here")
@pytest.mark.parametrize("channels", CHANNELS)
def test_an_inherited_student_starts_ahead_of_a_fresh_one_on_real_images(channels):
    teacher, _ = load_checkpoint(str(SHARED / "teachers" / "yolo11s_spider_disc2.pt"))
    fresh, student = (DetectionModel("yolo11n.yaml", nc=2, verbose=False) for _ in range(2))
    inherit(student, teacher.float(), channels=channels)
    images, val = real("train", 64)["img"].split(16), real("val", 16)
    for model in (fresh, student):
        recalibrate(model, images)
    assert loss_of(student, val) < 0.9 * loss_of(fresh, val)
