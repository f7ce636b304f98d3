from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddet_yolo.imaging.dicom import VolumeError
from meddet_yolo.imaging.nifti import read_nifti
from meddet_yolo.imaging.volumes import Slice, open_volume


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


def slices(path: Path) -> list[Slice]:
    read = list(open_volume(path).read())
    assert all(isinstance(item, Slice) for item in read)
    return [item for item in read if isinstance(item, Slice)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.integers(0, 2**32 - 1))
def test_slices_are_those_of_nibabels_canonical_orientation(
    tmp_path: Path, order: list[int], signs: tuple[int, ...], seed: int
) -> None:
    """However a file lays its axes: right, front, head after `as_closest_canonical`."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs + rng.uniform(-0.1, 0.1, (3, 3))
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    path = save(tmp_path / "v.nii", rng.integers(0, 1000, (4, 5, 6)).astype(np.int16), affine)
    canonical = nib.as_closest_canonical(nib.load(path))
    voxels = np.asanyarray(canonical.dataobj)
    found = slices(path)
    assert len(found) == voxels.shape[0]
    # In anatomical order, to the patient's left.
    for number, item in enumerate(sorted(found, key=lambda s: s.offset_mm or 0.0)):
        i = voxels.shape[0] - 1 - number
        want = voxels[i].T[::-1, ::-1].astype(float)  # head up, front at the viewer's left
        low, high = np.percentile(want, (0.5, 99.5))
        np.testing.assert_allclose(item.image, np.clip((want - low) / (high - low), 0, 1) * 255, atol=0.51)
        # The centre of the picture's first pixel: frontmost and uppermost.
        j, k = voxels.shape[1] - 1, voxels.shape[2] - 1
        ras = (canonical.affine @ [i, j, k, 1])[:3]
        np.testing.assert_allclose(item.geometry.to_patient([[0.5, 0.5]])[0], ras * [-1, -1, 1], atol=1e-4)
        assert item.geometry.edges == {"left": "A", "right": "P", "top": "H", "bottom": "F"}


def test_left_and_right_are_told_apart(tmp_path: Path) -> None:
    array = np.zeros((5, 4, 4), np.float32)
    for i in range(5):
        array[i, 0, 0] = i
    rightwards = slices(save(tmp_path / "a.nii", array))
    leftwards = slices(save(tmp_path / "b.nii", array, np.diag([-1.0, 1, 1, 1])))
    assert [(s.index, s.offset_mm) for s in rightwards] == [(4, -2.0), (3, -1.0), (2, 0.0), (1, 1.0), (0, 2.0)]
    assert [(s.index, s.offset_mm) for s in leftwards] == [(0, -2.0), (1, -1.0), (2, 0.0), (3, 1.0), (4, 2.0)]


def test_scaled_values_and_thick_slices(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.diag([5.0, 0.5, 2.0, 1]))
    image.header.set_slope_inter(2.0, -7.0)
    image.to_filename(tmp_path / "v.nii.gz")
    first = slices(tmp_path / "v.nii.gz")[0]
    assert first.image.shape == (12, 3)  # 3 x 2 mm at 0.5 mm
    assert first.geometry.spacing == pytest.approx((0.5, 0.5))
    assert first.name == "v_s002"


def test_a_last_dimension_of_one_is_dropped(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, 5, 6, 1)).astype(np.float32)
    assert [s.image.shape for s in slices(save(tmp_path / "v.nii", array))] == [(6, 5)] * 4


@pytest.mark.parametrize(
    ("array", "affine", "reason"),
    [
        (np.zeros((4, 4, 4, 3), np.int16), np.eye(4), r"has 4 dimensions \(4 x 4 x 4 x 3\)"),
        (np.zeros((4, 4), np.int16), np.eye(4), "has 2 dimensions"),
        (np.zeros((3, 3, 3), np.complex64), np.eye(4), "holds complex64, expected grey"),
        (np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4), "holds colours, expected grey"),
        (np.zeros((3, 3, 3), np.int16), np.diag([1.0, 0, 1, 1]), "voxel size is 1 x 0 x 1 mm"),
        (np.full((3, 3, 3), np.nan, np.float32), np.eye(4), "27 of 27 voxels are NaN"),
        (np.pad([[[np.inf]]], 1).astype(np.float32), np.eye(4), "1 of 27 voxels are NaN or infinite"),
    ],
)
def test_volumes_that_cannot_be_used_are_refused(
    tmp_path: Path, array: np.ndarray, affine: np.ndarray, reason: str
) -> None:
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_sform(affine, 1)
    image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    image.header.set_data_offset(352)
    path = tmp_path / "v.nii"
    with path.open("wb") as file:  # nibabel would mend the header
        image.header.write_to(file)
        file.write(b"\0" * (352 - file.tell()) + np.asarray(array).tobytes(order="F"))
    with pytest.raises(VolumeError, match=reason):
        read_nifti(path).voxels()


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 9999, (20, 20, 20)).astype(np.int16)
    for name in ("v.nii", "v.nii.gz"):
        whole = save(tmp_path / name, array).read_bytes()
        for share in (0.1, 0.5, 0.99):
            (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(VolumeError, match=r"truncated|damaged"):
                read_nifti(tmp_path / name).voxels()
    (tmp_path / "t.nii").write_text("not a volume")
    (tmp_path / "t.nii.gz").write_bytes(gzip.compress(b"not a volume"))
    for name in ("t.nii", "t.nii.gz", "none.nii"):
        with pytest.raises(VolumeError, match=r"no NIfTI file|no such file"):
            read_nifti(tmp_path / name)


def test_an_unsaid_orientation_is_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.int16), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    image.to_filename(tmp_path / "v.nii")
    assert not read_nifti(tmp_path / "v.nii").located
