import numpy as np
import pytest

from meddet_yolo.compare.predictions import SeenImage, load_predictions, save_predictions


def test_boxes_come_back_with_their_patients_also_of_images_without_any(tmp_path):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 64, (3, 2, 2)), 1).reshape(3, 4)
    detected = np.concatenate([corners, rng.uniform(0, 1, (3, 1)), [[0], [1], [1]]], 1).astype(np.float32)
    true = np.array([[1, 2, 30, 40, 1]], np.float32)
    nothing = np.zeros((0, 6), np.float32), np.zeros((0, 5), np.float32)
    seen = {
        "/d/b.png": SeenImage(detected, true, (64, 48)),
        "/d/a.png": SeenImage(*nothing, (32, 32)),
        "/d/c.png": SeenImage(nothing[0], true, (64, 64)),
    }
    save_predictions(tmp_path / "found.npz", seen, {"/d/a.png": "p1", "/d/b.png": "p2", "/d/c.png": "p1"})
    loaded = load_predictions(tmp_path / "found.npz")
    assert [(f.name, t.name, t.patient, t.size) for f, t in loaded] == [
        ("/d/a.png", "/d/a.png", "p1", (32, 32)),
        ("/d/b.png", "/d/b.png", "p2", (64, 48)),
        ("/d/c.png", "/d/c.png", "p1", (64, 64)),
    ]
    for found, truth in loaded:
        np.testing.assert_array_equal(found.boxes, seen[found.name].detected[:, :4])
        np.testing.assert_array_equal(found.scores, seen[found.name].detected[:, 4])
        np.testing.assert_array_equal(found.classes, seen[found.name].detected[:, 5])
        np.testing.assert_array_equal(truth.boxes, seen[found.name].true[:, :4])
    assert [p.name for p in tmp_path.iterdir()] == ["found.npz"]


def test_an_image_of_nobody_is_refused(tmp_path):
    image = SeenImage(np.zeros((0, 6), np.float32), np.zeros((0, 5), np.float32), (8, 8))
    with pytest.raises(KeyError, match=r"a\.png"):
        save_predictions(tmp_path / "found.npz", {"a.png": image}, {})
