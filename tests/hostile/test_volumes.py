"""DICOM and NIfTI whose headers claim what no scanner makes: refused with a reason, at once and in little memory."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from meddet_yolo.imaging.dicom import read_header
from meddet_yolo.imaging.limits import MAX_SLICES, checked_max_pixels
from meddet_yolo.imaging.pictures import write_pictures
from meddet_yolo.imaging.search import ListError, find_volumes, holds_volumes
from meddet_yolo.imaging.slice_cache import cache_slices
from meddet_yolo.imaging.volumes import Skipped, VolumeError, open_volume
from tests.dicom_files import make_dicom
from tests.hostile.made import deflated_dicom, nifti1, nifti2

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


def dicom(**attributes: object) -> Callable[[Path], Path]:
    return lambda folder: make_dicom(folder / "a.dcm", PIXELS, **attributes)


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a million frames": (dicom(NumberOfFrames=1_000_000), "announces 1000000 slices, but the file has room for"),
    "frames of nothing": (dicom(NumberOfFrames=-3), "NumberOfFrames is -3"),
    "spacing 1e-300": (dicom(PixelSpacing=["1e-300", "1e-300"]), "PixelSpacing is 1e-300 x 1e-300 mm, expected"),
    "spacing 1e-9 x 1e9": (dicom(PixelSpacing=["1e-9", "1e9"]), "expected positive distances of 0.001 to 100 mm"),
    "spacing 1e6": (dicom(PixelSpacing=["1e6", "1e6"]), "expected positive distances of 0.001 to 100 mm"),
    "three spacings": (dicom(PixelSpacing=["1", "1", "1"]), "expected positive distances"),
    "a place beyond the moon": (dicom(position=(4e8, 0, 0)), "lies 4e+08 mm from the origin"),
    "zooms 1e30": (lambda f: nifti1(f / "a.nii", zooms=(1e30, 1e30, 1e30)), "voxel size is 1e+30 x 1e+30 x 1e+30 mm"),
    "zooms 1e-30": (lambda f: nifti1(f / "a.nii", zooms=(1e-30, 1e-30, 1e-30)), "voxel size is 1e-30"),
    "zooms 1e12": (lambda f: nifti1(f / "a.nii", zooms=(1e12, 1.0, 1.0)), "voxel size is 1e+12 x 1 x 1 mm"),
    "no number as zoom": (lambda f: nifti1(f / "a.nii", zooms=(float("nan"), 1, 1)), "voxel size is nan x 1 x 1 mm"),
    "a place of 1e30": (lambda f: nifti1(f / "a.nii", place=1e30), "lies 1e+30 mm from the origin"),
    "an offset of 1e37": (lambda f: nifti1(f / "a.nii", offset=1e37), "its voxels begin at byte 1e+37"),
    "an offset of -8": (lambda f: nifti1(f / "a.nii", offset=-8), "its header is damaged (HeaderDataError)"),
    "an offset of 2^62": (lambda f: nifti2(f / "a.nii", (4, 5, 6), offset=2**62), "its voxels begin at byte 4.6"),
    "two billion slices": (lambda f: nifti2(f / "a.nii", (2**31, 1, 1)), "2147483648 x 1 x 1 voxels of 1 bytes do not"),
    "more than a number": (lambda f: nifti2(f / "a.nii", (2**40, 2**40, 2**40)), "do not fit into the file"),
    "thin slices": (lambda f: nifti1(f / "a.nii", (12_000, 2, 2)), f"at most {MAX_SLICES} are read"),
    "half a volume": (
        lambda f: nifti1(f / "a.nii", (40, 50, 60), voxels=bytes(60_000)),
        "truncated or damaged: 40 x 50 x 60 voxels",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of what is made here
def test_an_impossible_header_is_refused_at_once_and_the_rest_is_read(case: str, tmp_path: Path) -> None:
    make, reason = CASES[case]
    make_dicom(tmp_path / "sound" / "b.dcm", PIXELS)
    start = time.process_time()
    found = find_volumes([make(tmp_path), tmp_path / "sound"], "all")
    assert time.process_time() - start < 2
    assert [volume.name for volume in found.volumes] == ["b"]
    assert reason in found.skipped[0].reason


def test_a_picture_stretched_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.zeros((256, 256), np.uint8), bits=8, spacing=(0.001, 50.0))
    with pytest.raises(VolumeError, match="make a picture of 3276800000 pixels, more than max_pixels=33554432"):
        open_volume(path)


def test_max_pixels_is_where_a_picture_ends(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", PIXELS)
    assert len(open_volume(path, max_pixels=64)) == 1
    with pytest.raises(VolumeError, match="make a picture of 64 pixels, more than max_pixels=63"):
        open_volume(path, max_pixels=63)
    for wrong in (0, -1, 1.5, True, "many", float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no whole number from 1"):
            checked_max_pixels(wrong)


def test_a_deflated_file_is_not_inflated_beyond_the_bound(tmp_path: Path) -> None:
    path = deflated_dicom(tmp_path / "bomb.dcm", 1 << 30)
    assert path.stat().st_size < 1.2e6
    tracemalloc.start()
    with pytest.raises(VolumeError, match="is deflated and would take"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    (image,) = open_volume(deflated_dicom(tmp_path / "sound.dcm", 0)).read()
    assert not isinstance(image, Skipped)


def test_a_gzip_bomb_is_not_read_further_than_its_voxels(tmp_path: Path) -> None:
    path = nifti1(tmp_path / "bomb.nii.gz", (8, 8, 8), voxels=bytes(300 << 20))
    tracemalloc.start()
    assert not any(isinstance(item, Skipped) for item in open_volume(path).read())
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_volume_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = nifti1(tmp_path / "large.nii.gz", (1024, 1024, 1024), voxels=bytes(2 << 20))
    with pytest.raises(VolumeError, match="truncated or damaged"):  # so much cannot be in it
        open_volume(path)
    path = nifti1(tmp_path / "large.nii.gz", (64, 64, 64))
    with pytest.raises(VolumeError, match="64 x 64 x 64 voxels, which take 262144 bytes, more than 80000"):
        open_volume(path, max_pixels=5000)
    assert len(open_volume(path, max_pixels=16384)) == 64  # as the message says


def test_a_damaged_end_of_a_compressed_volume_is_noticed(tmp_path: Path) -> None:
    path = nifti1(tmp_path / "a.nii.gz", (64, 64, 64))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    (skipped,) = open_volume(path).read()
    assert isinstance(skipped, Skipped)
    assert "truncated or damaged voxel data" in skipped.reason


def test_a_stream_that_announces_another_picture_never_reaches_its_decoder(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.arange(64 * 64, dtype=np.uint16).reshape(64, 64))
    dataset = pydicom.dcmread(path)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    dataset.save_as(path)
    (sound,) = open_volume(path).read()
    assert not isinstance(sound, Skipped)
    content = path.read_bytes()
    size = content.index(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(content[:size] + (60_000).to_bytes(4, "big") * 2 + content[size + 8 :])
    (skipped,) = open_volume(path).read()
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "its compressed pixels are a picture of 60000 x 60000 x 1, its header says 64 x 64 x 1"


def test_run_lengths_of_another_picture_are_not_unrolled(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", PIXELS)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([b"\x02" + bytes(63) + b"\x81\x00" * (4 << 20)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.save_as(path)
    (skipped,) = open_volume(path).read()
    assert isinstance(skipped, Skipped)
    assert "more than a 8 x 8 picture can" in skipped.reason


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what is made here
def test_numbers_of_a_patient_in_one_another_are_no_way_to_a_crash(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", PIXELS)
    dataset = pydicom.dcmread(path)
    inner = pydicom.Dataset()
    inner.PatientID = "DEEP-4711"
    for _ in range(100):
        outer = pydicom.Dataset()
        outer.PatientID, outer.OtherPatientIDsSequence = "OUTER-1", [inner]
        inner = outer
    dataset.OtherPatientIDsSequence = [inner]
    dataset.PatientName = "^".join(f"n{i}" for i in range(20_000))
    dataset.save_as(path)
    start = time.process_time()
    (frame,) = read_header(path)
    assert "outer-1" in frame.words
    assert len(frame.words) <= 50
    assert time.process_time() - start < 1


def test_whatever_a_library_raises_is_the_reason_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a text that quotes the file")

    for name in ("a.dcm", "b.dcm"):
        make_dicom(tmp_path / name, PIXELS)
    nifti1(tmp_path / "c.nii")
    monkeypatch.setattr("meddet_yolo.imaging.search.read_header", fail)
    monkeypatch.setattr("meddet_yolo.imaging.volumes.read_nifti", fail)
    found = find_volumes(tmp_path)
    assert {s.path.name for s in found.skipped} == {"a.dcm", "b.dcm", "c.nii"}
    assert {s.reason for s in found.skipped} == {"damaged, or of a kind that is not known (ZeroDivisionError)"}


def test_lists_that_list_lists(tmp_path: Path) -> None:
    one, two, three = (tmp_path / f"{name}.txt" for name in ("one", "two", "three"))
    make_dicom(tmp_path / "a.dcm", PIXELS)
    one.write_text("a.dcm\none.txt\n")
    for search in (find_volumes, lambda path: holds_volumes([path])):
        with pytest.raises(ListError, match=r"one\.txt lists itself"):
            search(one)
    one.write_text("two.txt\n")
    two.write_text(f"a.dcm\n{'x' * 5000}\n")
    with pytest.raises(FileNotFoundError, match="no such file"):
        find_volumes(one)
    two.write_text("a.dcm\n")
    assert len(find_volumes(one).volumes) == 1
    two.write_text("three.txt\n")
    three.write_text("a.dcm\n")
    with pytest.raises(ListError, match="a list in a list in a list"):
        find_volumes(one)
    one.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ListError, match="no text"):
        find_volumes(one)


def test_a_file_name_of_bytes_that_are_no_text_can_be_told(tmp_path: Path) -> None:
    import os

    (tmp_path / os.fsdecode(b"\xff.dcm")).write_bytes(b"nothing")
    make_dicom(tmp_path / os.fsdecode(b"\xfe.dcm"), PIXELS)
    found = find_volumes(tmp_path)
    str(found.skipped[0]).encode()
    assert found.volumes[0].name.startswith("image-")


def test_a_pipe_named_as_an_image_is_not_waited_for(tmp_path: Path) -> None:
    import os

    for name in ("a.dcm", "b.nii", "1.2.3"):
        os.mkfifo(tmp_path / name)
    make_dicom(tmp_path / "c.dcm", PIXELS)
    found = find_volumes(tmp_path)
    assert [volume.name for volume in found.volumes] == ["c"]
    assert [s.reason for s in found.skipped] == ["is a pipe, socket or device, expected a file"] * 2


def test_a_link_in_the_target_of_slices_is_replaced_and_not_followed(tmp_path: Path) -> None:
    make_dicom(tmp_path / "in" / "a.dcm", PIXELS)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(victim)
    write_pictures(tmp_path / "in", tmp_path / "out")
    assert victim.read_text() == "mine"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert not (tmp_path / "out" / "a.png").is_symlink()


def _build_cache(folder: Path) -> list[str]:
    found = cache_slices(
        sorted((folder / "images").glob("*.dcm")),
        label_folder=lambda _: folder / "labels",
        fallback=folder / "fallback",
        slices="all",
    )
    return sorted(path.name for path in found.labels)


def test_two_processes_that_build_one_cache_find_the_same(tmp_path: Path) -> None:
    for number in range(12):
        make_dicom(tmp_path / "images" / f"{number:02d}.dcm", np.stack([PIXELS + number] * 3))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        first, second = pool.map(_build_cache, [tmp_path] * 2)
    assert first == second
    assert len(first) == 36
    folder = tmp_path / "labels.slices"
    assert all(cv2.imread(str(path)) is not None for path in folder.glob("*.png"))
    assert sorted(path.name for path in folder.iterdir()) == [".lock", *first, "slices.json"]


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    make_dicom(tmp_path / "images" / "a.dcm", PIXELS)
    _build_cache(tmp_path)
    manifest = tmp_path / "labels.slices" / "slices.json"
    (tmp_path / "secret.png").write_bytes((tmp_path / "labels.slices" / "a.png").read_bytes())
    manifest.write_text(manifest.read_text().replace("a.png", "../secret.png"))
    assert _build_cache(tmp_path) == ["a.png"]
    for content in ("[", "[]", "[" * 5000, '{"version": 1, "files": 5}', '{"version": 1, "files": {"x": [1]}}'):
        manifest.write_text(content)
        assert _build_cache(tmp_path) == ["a.png"]
