"""Pictures and volumes to convert."""

import cv2
import numpy as np
import pytest

from tests.data.convert._sources import BOXES, picture


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "source" / "pictures"
    folder.mkdir(parents=True)
    for name in BOXES:
        cv2.imwrite(str(folder / f"{name}.png"), picture(name))
    return folder


@pytest.fixture
def volumes(tmp_path):
    """Two volumes of 6 sagittal slices of 20 x 30 voxels, one per subject, with masks; axes are those of RAS."""
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path / "source"
    for seed, subject, affine in ((0, "sub-01", np.diag([3.0, 1, 1, 1])), (1, "sub-02", np.diag([-3.0, 1, 1, 1]))):
        (folder / subject).mkdir(parents=True)
        image = np.random.default_rng(seed).integers(100, 900, (6, 20, 30)).astype(np.int16)
        labels = np.zeros(image.shape, np.uint8)
        labels[2, 4:9, 10:13] = 1
        labels[3, 4:9, 10:14] = 2
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / subject / f"{subject}_T2w.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / subject / f"{subject}_T2w_seg.nii.gz")
    return folder
