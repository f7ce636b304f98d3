import json

import cv2
import numpy as np
import pytest
from ultralytics import YOLO

from meddet_yolo.evaluate.report import (
    Box,
    ModelReport,
    as_markdown,
    as_text,
    compare,
    draw_grid,
    labelled_boxes,
    measure_latency,
    predicted_boxes,
    read_image,
    split_images,
    write_json,
)


def report(name: str = "a", **changes: float) -> ModelReport:
    values = {"parameters": 2_500_000, "gflops": 1.5, "map50_95": 0.4, "map50": 0.7, "recall": 0.6}
    return ModelReport(name=name, **{**values, "ms_per_image": 9.0, "ms_p90": 11.0, **changes})


def test_compare_measures_every_model(tiny_data, tiny_teachers, tmp_path):
    models = {path.stem: path for path in tiny_teachers}
    reports = compare(models, tiny_data, imgsz=64, device="cpu", rounds=2, plots=False, verbose=False, project=tmp_path)
    assert [r.name for r in reports] == list(models)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == sorted(f"val-{name}" for name in models)
    for path, result in zip(tiny_teachers, reports, strict=True):
        network = YOLO(path).model.float().fuse()
        assert result.parameters == sum(p.numel() for p in network.parameters())
        assert 0 <= result.map50_95 <= result.map50 <= 1
        assert 0 <= result.recall <= 1
        assert 0 < result.ms_per_image <= result.ms_p90
    # Operations: counted by hooks here, for convolutions alone, which are nearly all of it.
    assert reports[0].gflops == pytest.approx(_convolution_gflops(tiny_teachers[0]), rel=0.05)


def _convolution_gflops(path) -> float:
    import torch

    network = YOLO(path).model.float().fuse()
    total = 0.0

    def count(layer, _, output):
        nonlocal total
        total += 2 * output.numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, 64, 64))
    return total / 1e9


def test_models_take_turns_when_timed():
    calls = []

    class Fake:
        def __init__(self, name, ms):
            self.name, self.ms = name, ms

        def predict(self, image, **_):
            calls.append((self.name, int(image[0, 0, 0])))
            return [type("Result", (), {"speed": {"preprocess": 1.0, "inference": self.ms, "postprocess": 0.5}})()]

    images = [np.full((4, 4, 3), i, np.uint8) for i in (7, 8)]
    times = measure_latency({"x": Fake("x", 2.0), "y": Fake("y", 3.0)}, images, rounds=2, warmup=1)
    assert times == {"x": [3.5] * 4, "y": [4.5] * 4}
    assert calls[2:] == [("x", 7), ("y", 7), ("x", 8), ("y", 8)] * 2


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="0 images"):
        measure_latency({}, [])


def test_text_table_lines_up():
    lines = as_text([report("a"), report("a much longer name", parameters=99_123_456)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["a", "2.50", "M", "1.50", "0.400", "0.700", "0.600", "9.0"]
    assert len(as_text([]).splitlines()) == 2


def test_markdown_table_survives_a_pipe_in_a_name():
    lines = as_markdown([report("a|b")]).splitlines()
    assert {line.count("|") for line in lines} == {8}


def test_json_holds_reports_and_context(tmp_path):
    path = write_json([report()], tmp_path / "r.json", data=tmp_path, imgsz=64)
    told = json.loads(path.read_text())
    assert told["imgsz"] == 64
    assert told["data"] == str(tmp_path)
    assert ModelReport(**told["models"][0]) == report()


def test_split_images_reads_folders_and_lists(tiny_data, tmp_path):
    files = split_images(tiny_data)
    assert files == sorted((tiny_data.parent / "images" / "val").glob("*.png"))
    (tmp_path / "val.txt").write_text("\n".join(map(str, files)) + "\n")
    data = tmp_path / "d.yaml"
    data.write_text(f"train: {tiny_data.parent}/images/train\nval: val.txt\nnames: [a, b]\n")
    assert split_images(data) == files
    with pytest.raises(FileNotFoundError, match="test"):
        split_images(tiny_data, "test")


def test_labelled_boxes_are_in_pixels(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    image = tmp_path / "images" / "a.png"
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.25 0.5 0.1\n\n")
    assert labelled_boxes(image, (100, 200)) == [Box((50.0, 20.0, 150.0, 30.0), 1)]
    assert labelled_boxes(tmp_path / "images" / "without.png", (100, 200)) == []


def test_predicted_boxes_are_ordered_by_confidence(tiny_data, tiny_teachers):
    image = read_image(split_images(tiny_data)[0])
    boxes = predicted_boxes(YOLO(tiny_teachers[0]), image, imgsz=64, conf=1e-6, max_det=5, device="cpu")
    assert 0 < len(boxes) <= 5
    assert all(0 < box.conf <= 1 and box.cls in (0, 1) for box in boxes)
    assert [b.conf for b in boxes] == sorted((b.conf for b in boxes), reverse=True)


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(OSError, match=r"x\.png"):
        read_image(tmp_path / "x.png")


def test_grid_draws_each_box_in_the_colour_of_its_class():
    image = np.full((50, 100, 3), 128, np.uint8)
    rows = [(image, {"truth": [Box((10, 10, 40, 40), 0)], "model": [Box((10, 10, 40, 40), 1, 0.5)]})]
    picture = draw_grid(rows, {0: "herniation", 1: "normal"}, tile=100)
    assert picture.dtype == np.uint8
    left, right = picture[30:130, 6:106], picture[30:130, 112:212]
    # The 50 x 100 image is fitted into the 100 x 100 tile with 25 rows above it, so the box's left edge is at x = 10.
    assert not np.array_equal(left[50, 10], right[50, 10])
    assert np.ptp(left[50, 10]) > 50
    assert np.array_equal(left[50, 60], [128] * 3)
    legend = picture[-30:]
    for pixel in (left[50, 10], right[50, 10]):
        assert (legend == pixel).all(axis=2).any()
    assert np.array_equal(image, np.full((50, 100, 3), 128, np.uint8))


@pytest.mark.parametrize("rows", [[], [(np.zeros((4, 4, 3), np.uint8), {})]])
def test_grid_without_columns_is_refused(rows):
    with pytest.raises(ValueError, match="at least one"):
        draw_grid(rows, {0: "a"})


def test_grid_takes_images_without_boxes_and_long_titles():
    image = np.zeros((64, 32, 3), np.uint8)
    picture = draw_grid([(image, {"t" * 200: [], "b": []})] * 2, {0: "c"}, tile=64)
    assert picture.shape == (30 + 2 * 70 + 30, 6 + 2 * 70, 3)
    titles = picture[:30]
    assert (titles[:, 6 + 64 : 6 + 70] == 255).all()  # the long title stays within its column
    assert cv2.imencode(".png", picture)[0]
