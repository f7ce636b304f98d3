from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import nibabel as nib
import numpy as np
import pytest

from meddet_yolo.imaging import search, slice_cache, volumes
from meddet_yolo.imaging.slice_cache import CachedSlices, cache_slices
from tests.dicom_files import make_dicom, make_enhanced


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A split with a DICOM file, a multi-frame file and a volume, some slices of which have labels."""
    rng = np.random.default_rng(0)
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    make_dicom(images / "one.dcm", rng.integers(0, 99, (12, 12)).astype(np.uint16))
    make_enhanced(
        images / "many.dcm", rng.integers(0, 99, (4, 12, 12)).astype(np.uint16), [(4.0 * i, 0, 0) for i in range(4)]
    )
    nib.Nifti1Image(rng.integers(0, 99, (7, 12, 14)).astype(np.int16), np.eye(4)).to_filename(images / "v.nii.gz")
    for name in ("one", "many_s002", "v_s003", "v_s5"):
        (labels / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    return images


def cache(folder: Path, **options: Any) -> CachedSlices:
    files = search.volume_files(folder)
    return cache_slices(
        files, label_folder=lambda f: f.parent.parent / "labels" / f.name, fallback=folder.parent / "spare", **options
    )


def names(found: CachedSlices) -> dict[str, str]:
    return {picture.name: label.name for picture, label in found.labels.items()}


def test_slices_with_a_label_file_are_used(folder: Path) -> None:
    found = cache(folder)
    assert not found.skipped
    assert names(found) == {
        "one.png": "one.txt",
        "many_s002.png": "many_s002.txt",
        "v_s003.png": "v_s003.txt",
        "v_s005.png": "v_s5.txt",
    }
    assert {p.parent for p in found.labels} == {folder.parent.parent / "labels" / "train.slices"}
    want = {s.index: s.image for s in volumes.open_volume(folder / "v.nii.gz").read() if isinstance(s, volumes.Slice)}
    for picture in found.labels:
        if picture.name == "v_s003.png":
            np.testing.assert_array_equal(cv2.imread(str(picture), cv2.IMREAD_UNCHANGED), want[3])


@pytest.mark.parametrize(("slices", "count"), [("all", 1 + 4 + 7), (1, 3), ("mid", 1 + 3 + 3)])
def test_other_selections(folder: Path, slices: str | int, count: int) -> None:
    assert len(cache(folder, slices=slices).labels) == count


def test_a_wrong_selection_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="slices='labeled' is neither"):
        cache(folder, slices="labeled")


def test_nothing_is_decoded_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    original = slice_cache._decode

    def count(file: Path, *rest: Any) -> Any:
        decoded.append(file.name)
        return original(file, *rest)

    monkeypatch.setattr(slice_cache, "_decode", count)
    first = cache(folder)
    assert sorted(decoded) == ["many.dcm", "one.dcm", "v.nii.gz"]
    decoded.clear()
    assert cache(folder).labels == first.labels
    assert decoded == []
    os.utime(folder / "one.dcm", (1, 1))  # changed
    (folder.parent.parent / "labels" / "train" / "v_s001.txt").write_text("")  # a further slice is labelled
    assert len(cache(folder).labels) == 5
    assert sorted(decoded) == ["one.dcm", "v.nii.gz"]
    decoded.clear()
    cache(folder, window="percentile")
    assert len(decoded) == 3


def test_a_volume_is_decoded_once_for_all_its_slices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = volumes.NiftiVolume.voxels
    monkeypatch.setattr(volumes.NiftiVolume, "voxels", lambda self: calls.append(1) or original(self))
    cache(folder, slices="all")
    assert len(calls) == 1


def test_pictures_of_files_that_are_gone_are_removed(folder: Path) -> None:
    kept = cache(folder)
    (folder / "one.dcm").unlink()
    assert "one.png" not in names(cache(folder))
    gone = next(p for p in kept.labels if p.name == "one.png")
    assert not gone.exists()


def test_unusable_files_are_named_and_the_rest_goes_on(folder: Path) -> None:
    labels = folder.parent.parent / "labels" / "train"
    (folder / "bad.dcm").write_bytes(b"nothing")
    nib.Nifti1Image(np.ones((3, 9, 9), np.int16), np.eye(4)).to_filename(folder / "plain.nii")
    nib.Nifti1Image(np.ones((3, 9, 9), np.int16), np.eye(4)).to_filename(folder / "few.nii")
    (labels / "few_s007.txt").write_text("")
    for _ in range(2):  # also when the rest is cached
        found = cache(folder)
        assert {s.path.name: s.reason for s in found.skipped} == {
            "bad.dcm": "not a DICOM file",
            "few.nii": "has 3 slices, but a label file for slice 7",
            "plain.nii": "none of its 3 slices has a label file (such as plain_s001.txt)",
        }
        assert len(found.labels) == 4


def test_files_of_one_stem_do_not_overwrite_each_other(folder: Path) -> None:
    make_dicom(folder / "one.ima", np.eye(12, dtype=np.uint16))
    found = cache(folder)
    assert len(found.labels) == 5
    assert len([label for label in found.labels.values() if label.name == "one.txt"]) == 2


def test_names_do_not_tell_the_patient(folder: Path) -> None:
    make_dicom(folder / "quietus.dcm", np.eye(12, dtype=np.uint16), PatientName="Quietus^Anna")
    found = cache(folder)
    assert [label.name for label in found.labels.values() if label.name == "quietus.txt"]
    store = next(iter(found.labels)).parent
    assert not [p.name for p in store.iterdir() if "quietus" in p.name.lower()]
    assert "quietus" not in (store / "slices.json").read_text().lower()


def test_where_nothing_may_be_written_the_pictures_lie_elsewhere(folder: Path) -> None:
    labels = folder.parent.parent / "labels" / "train"
    labels.with_name("train.slices").write_text("a file in the way")
    found = cache(folder)
    assert len(found.labels) == 4
    assert {p.parent.parent for p in found.labels} == {folder.parent / "spare"}


def test_skipped_files_do_not_tell_the_patient(folder: Path) -> None:
    pixels = np.eye(12, dtype=np.uint16)
    who = {"PatientName": "Quietus^Anna"}
    make_dicom(folder / "quietus_text.dcm", pixels, BurnedInAnnotation="YES", **who)
    make_dicom(folder / "quietus_many.dcm", np.stack([pixels] * 3), **who)  # without a label file
    (folder / "quietus_bad.dcm").write_bytes(b"nothing")
    for _ in range(2):  # also when the rest is cached
        found = cache(folder)
        assert [str(s) for s in found.skipped if "quietus" in str(s).lower()] == []
        assert sorted(s.path.name for s in found.skipped) == ["***_bad.dcm", "***_many.dcm", "***_text.dcm"]
        assert any(s.reason.endswith("(such as ***_many_s001.txt)") for s in found.skipped)
        assert len(found.labels) == 4


def test_a_file_that_vanishes_is_named_and_the_rest_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = slice_cache._decode

    def vanish(file: Path, *rest: Any) -> Any:
        decoded = original(file, *rest)
        if file.name == "one.dcm":
            file.unlink()
        return decoded

    monkeypatch.setattr(slice_cache, "_decode", vanish)
    found = cache(folder)
    assert [str(s.path.name) for s in found.skipped] == ["one.dcm"] and "vanished" in found.skipped[0].reason
    assert "one.png" not in names(found) and len(found.labels) == 3
