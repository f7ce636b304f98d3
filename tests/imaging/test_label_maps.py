from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from meddet_yolo.imaging.label_maps import is_label_map
from meddet_yolo.imaging.volumes import Skipped, Slice, open_volume

REAL = Path(__file__).parents[3] / "shared" / "data" / "volumes"


def regions(labels: int, kind: type) -> np.ndarray:
    """A volume of blobs with labels, background between them."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((12, 48, 48)), 2.5)
    blobs, _ = ndimage.label(smooth > np.median(smooth))
    return (blobs % (labels + 1)).astype(kind)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("labels", [1, 3, 20])
def test_regions_are_labels(kind: type, labels: int) -> None:
    assert is_label_map(regions(labels, kind))


def test_single_points_are_labels() -> None:
    points = np.zeros((10, 32, 32), np.int16)
    points[5, 4:30:5, 16] = np.arange(1, 7)
    assert is_label_map(points)


@pytest.mark.parametrize("levels", [16, 200, 4000])
def test_images_of_few_levels_are_none(levels: int) -> None:
    """An image of eight bits, or four, is still one: its noise tells."""
    rng = np.random.default_rng(0)
    body = np.zeros((8, 40, 40))
    body[:, 6:34, 6:34] = 0.5 + 0.3 * ndimage.gaussian_filter(rng.standard_normal((8, 28, 28)), 2) / 0.1
    image = np.clip(body + 0.1 * rng.standard_normal(body.shape) * (body > 0), 0, 1)
    assert not is_label_map(np.rint(image * levels).astype(np.int16))


def test_other_volumes_are_none() -> None:
    assert not is_label_map(np.zeros((4, 8, 8), np.uint8))  # blank
    assert not is_label_map(regions(3, np.int16) - 1)  # negative, as CT has it
    assert not is_label_map(regions(3, np.float32) * 0.5)  # no whole numbers
    assert not is_label_map(np.zeros((0, 8, 8), np.uint8))


def test_a_label_map_is_left_out_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "t2_seg.nii.gz"
    nib.Nifti1Image(regions(3, np.uint8), np.eye(4)).to_filename(path)
    (found,) = open_volume(path).read()
    assert isinstance(found, Skipped) and found.reason == "is a label map (4 whole values in regions), no image"


@pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")
@pytest.mark.parametrize("path", sorted(REAL.glob("*.nii*")), ids=lambda path: path.name)
def test_real_volumes(path: Path) -> None:
    found = list(open_volume(path, "mid").read())
    assert all(isinstance(item, Skipped if "label" in path.name else Slice) for item in found)
