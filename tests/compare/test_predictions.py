import numpy as np
import pytest

from meddet_yolo.compare.predictions import load_predictions, save_predictions
from meddet_yolo.evaluate.detections import Found, Truth
from meddet_yolo.evaluate.validator import SeenImage


def test_boxes_come_back_with_their_patients_also_of_images_without_any(tmp_path):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 64, (3, 2, 2)).astype(np.float32), 1).reshape(3, 4)
    scores = rng.uniform(0, 1, 3).astype(np.float32)
    boxes = {"a": corners[:0], "b": corners, "c": corners[:0]}
    true = {"a": corners[:0], "b": corners[:1] / 2, "c": corners[:1] / 2}
    sizes = {"a": (32, 32), "b": (64, 48), "c": (64, 64)}
    seen = {
        (path := f"/d/{name}.png"): SeenImage(
            Found(path, boxes[name], np.array([0, 1, 1])[: len(boxes[name])], scores[: len(boxes[name])]),
            Truth(path, true[name], [1] * len(true[name]), sizes[name]),
        )
        for name in "bac"
    }
    save_predictions(tmp_path / "found.npz", seen, {"/d/a.png": "p1", "/d/b.png": "p2", "/d/c.png": "p1"})
    loaded = load_predictions(tmp_path / "found.npz")
    assert [(f.name, t.name, t.patient, t.size) for f, t in loaded] == [
        ("/d/a.png", "/d/a.png", "p1", (32, 32)),
        ("/d/b.png", "/d/b.png", "p2", (64, 48)),
        ("/d/c.png", "/d/c.png", "p1", (64, 64)),
    ]
    for found, truth in loaded:
        expected = seen[found.name]
        np.testing.assert_array_equal(found.boxes, expected.found.boxes)
        np.testing.assert_array_equal(found.scores, expected.found.scores)
        np.testing.assert_array_equal(found.classes, expected.found.classes)
        np.testing.assert_array_equal(truth.boxes, expected.true.boxes)
        np.testing.assert_array_equal(truth.classes, expected.true.classes)
    assert [p.name for p in tmp_path.iterdir()] == ["found.npz"]


def test_an_image_of_nobody_is_refused(tmp_path):
    image = SeenImage(Found("a.png", [], [], []), Truth("a.png", [], [], (8, 8)))
    with pytest.raises(KeyError, match=r"a\.png"):
        save_predictions(tmp_path / "found.npz", {"a.png": image}, {})
