from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddet_yolo.imaging.search import find_volumes, holds_volumes, volume_files
from meddet_yolo.imaging.volumes import Skipped, Slice, VolumeError, choose, open_volume
from tests.dicom_files import make_dicom, make_enhanced

VOLUMES = Path(__file__).resolve().parents[3] / "shared" / "data" / "volumes"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def series(folder: Path, count: int, uid: str = "1.2.3", spacing: float = 4.0, **attributes: object) -> list[Path]:
    """A sagittal series from the patient's left to the right."""
    rng = np.random.default_rng(0)
    return [
        make_dicom(
            folder / f"IM{i:03d}.dcm",
            rng.integers(0, 500, (16, 12)).astype(np.uint16),
            position=(10.0 - spacing * i, 0, 0),
            SeriesInstanceUID=uid,
            InstanceNumber=i + 1,
            **attributes,  # type: ignore[arg-type]
        )
        for i in range(count)
    ]


@given(st.lists(st.integers(-200, 200), min_size=1, max_size=40, unique=True), st.integers(1, 50))
def test_chosen_slices_lie_around_the_middle(places: list[int], wanted: int) -> None:
    chosen = choose(places, wanted)
    assert len(chosen) == len(set(chosen)) == min(wanted, len(places))
    picked = [places[i] for i in chosen]
    assert picked == sorted(picked)
    middle = (min(places) + max(places)) / 2
    if wanted == 1:
        assert abs(picked[0] - middle) == min(abs(p - middle) for p in places)
    assert sorted(choose(places, "all")) == list(range(len(places)))


def test_mid_is_three_slices_about_four_millimetres_apart() -> None:
    assert choose(list(range(41)), "mid") == [16, 20, 24]
    assert choose([0.0, 5.5, 11.0, 16.5, 22.0], "mid") == [1, 2, 3]
    assert choose([0, 1], "mid") == [0, 1]
    assert choose([None, None, None, None, None], "mid") == [1, 2, 3]
    assert choose([0, 0, 4, 4, 8, 8], "mid") == [0, 2, 4]  # two echoes at every place


@pytest.mark.parametrize("slices", ["middle", 0, -1, True, ""])
def test_other_selections_are_refused(slices: object) -> None:
    with pytest.raises(ValueError, match="neither 'mid', 'all' nor a number"):
        find_volumes(".", slices)  # type: ignore[arg-type]


def test_a_series_is_one_volume_in_anatomical_order(tmp_path: Path) -> None:
    series(tmp_path / "t2_sag", 5)
    found = find_volumes(tmp_path / "t2_sag", "all")
    assert [(v.name, len(v)) for v in found.volumes] == [("t2_sag", 5)]
    assert (found.skipped, found.notes) == ([], [])
    read = [s for s in found.volumes[0].read() if isinstance(s, Slice)]
    assert [s.name for s in read] == ["IM004", "IM003", "IM002", "IM001", "IM000"]
    assert [s.offset_mm for s in read] == [-8.0, -4.0, 0.0, 4.0, 8.0]
    assert [len(v) for v in find_volumes(tmp_path / "t2_sag").volumes] == [3]
    assert [len(v) for v in find_volumes(tmp_path, 2).volumes] == [2]  # subfolders are searched


def test_files_given_by_name_or_pattern_stand_for_themselves(tmp_path: Path) -> None:
    files = series(tmp_path, 5)
    assert len(find_volumes(str(tmp_path / "*.dcm")).volumes) == 5
    assert [v.name for v in find_volumes(files[1:3]).volumes] == ["IM001", "IM002"]
    (tmp_path / "list.txt").write_text("IM000.dcm\n\n./IM004.dcm\n")
    assert [v.name for v in find_volumes(tmp_path / "list.txt").volumes] == ["IM000", "IM004"]


def test_mixed_series_are_taken_one_by_one_and_named(tmp_path: Path) -> None:
    series(tmp_path / "mix", 4)
    make_dicom(tmp_path / "mix" / "other.dcm", np.ones((8, 8), np.uint16), SeriesInstanceUID="9.9")
    found = find_volumes(tmp_path / "mix", "all")
    assert sorted(len(v) for v in found.volumes) == [1, 4]
    assert len(found.notes) == 1
    assert "mixed series: other.dcm (1 files)" in found.notes[0]
    assert not found.skipped


def test_beside_sagittal_series_other_planes_are_left_out_with_a_reason(tmp_path: Path) -> None:
    series(tmp_path, 3)
    for i, uid in enumerate(["1.2.3", "7.7"]):  # a localizer of the same series, and a series of its own
        make_dicom(tmp_path / f"ax{i}.dcm", np.ones((8, 8), np.uint16), orientation=AXIAL, SeriesInstanceUID=uid)
    found = find_volumes(tmp_path, "all")
    assert [len(v) for v in found.volumes] == [3]
    assert sorted((s.path.name, s.reason.split(";")[0]) for s in found.skipped) == [
        ("ax0.dcm", "mixed series: axial plane, in a folder of sagittal slices"),
        ("ax1.dcm", "mixed series: axial plane, in a folder of sagittal slices"),
    ]
    assert len(find_volumes(tmp_path / "ax1.dcm").volumes) == 1


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    files = series(tmp_path / "s", 4)
    files[1].write_bytes(files[1].read_bytes()[:-50])
    files[2].write_bytes(b"nothing")
    (tmp_path / "s" / "note.txt").write_text("")
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    found = find_volumes(tmp_path / "s", "all")
    assert [s.path.name for s in found.skipped] == ["IM002.dcm"]  # by its header
    read = list(found.volumes[0].read())
    assert [str(s.reason) for s in read if isinstance(s, Skipped)] == ["truncated or damaged pixel data"]
    assert len([s for s in read if isinstance(s, Slice)]) == 2
    assert ([p.name for p in found.beside], found.images) == (["DICOMDIR", "note.txt"], [])


def test_a_multi_frame_file_is_a_volume(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 6)).astype(np.uint16)
    path = make_enhanced(tmp_path / "mf", pixels, [(4.0 * i, 0, 0) for i in range(5)])  # without a suffix
    volume = find_volumes(path).volumes[0]
    read = [s for s in volume.read() if isinstance(s, Slice)]
    assert [s.name for s in read] == ["mf_s001", "mf_s002", "mf_s003"]
    assert [s.reference.frame for s in read if s.reference] == [2, 3, 4]
    assert [s.offset_mm for s in read] == [-4.0, 0.0, 4.0]


def test_names_that_are_the_patients_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "Quietus_Anna"
    series(folder, 2, PatientName="Quietus^Anna")
    make_dicom(
        folder / "anna-t2.dcm", np.ones((8, 8), np.uint16), PatientName="Quietus^Anna", SeriesInstanceUID="1.2.3"
    )
    (folder / "IM000.dcm").write_bytes(b"broken")
    found = find_volumes(tmp_path, "all")
    names = [found.volumes[0].name, *(s.name for s in found.volumes[0].read() if isinstance(s, Slice))]
    text = " ".join([*names, *map(str, found.skipped), *found.notes])
    assert "quietus" not in text.lower() and "anna" not in text.lower()
    assert "IM001" in names
    assert any(name.startswith("image-") for name in names)


def test_what_holds_volumes() -> None:
    assert not holds_volumes(["https://example.org/a.dcm", "0", "rtsp://host/x", "screen", "a\0b"])
    with pytest.raises(FileNotFoundError, match=r"none\.dcm: no such file"):
        volume_files("none.dcm")


def test_reading_needs_neither_torch_nor_ultralytics(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.arange(64, dtype=np.uint16).reshape(8, 8))
    code = (
        "import sys, types\n"  # without the package's __init__, which registers layers
        "package = types.ModuleType('meddet_yolo'); package.__path__ = ['meddet_yolo']\n"
        "sys.modules['meddet_yolo'] = package\n"
        "from meddet_yolo.imaging import pictures, slice_cache, structured_report, volumes\n"
        f"print(next(volumes.open_volume({str(path)!r}).read()).image.shape)\n"
        "assert not {'torch', 'ultralytics'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "(8, 8)", done.stderr


def test_a_missing_library_is_named_with_its_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((8, 8), np.uint16))
    for module, file in (("pydicom", path), ("nibabel", tmp_path / "v.nii")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'{module} is needed .*pip install "meddet-yolo\[medical\]"'):
            open_volume(file)


def test_the_real_volume_and_the_series_made_of_it_show_the_same() -> None:
    if not VOLUMES.is_dir():
        pytest.skip("the real volumes are not beside the repository")
    nifti = {
        round(float(s.geometry.to_patient([[0, 0]])[0, 0]), 1): s
        for s in _slices(VOLUMES / "sct_tutorial_t2_lumbar.nii.gz")
    }
    dicom = _slices(VOLUMES / "dicom_derived_t2_lumbar")
    assert len(dicom) == 10
    for item in dicom:
        same = nifti[round(float(item.geometry.to_patient([[0, 0]])[0, 0]), 1)]
        np.testing.assert_allclose(item.geometry.to_patient([[9, 5]]), same.geometry.to_patient([[9, 5]]), atol=1e-3)
        np.testing.assert_array_equal(item.image, same.image)


def _slices(source: Path) -> list[Slice]:
    read = [s for volume in find_volumes(source, "all").volumes for s in volume.read("percentile")]
    assert all(isinstance(s, Slice) for s in read)
    return [s for s in read if isinstance(s, Slice)]


def test_real_cervical_volumes_stand_upright() -> None:
    if not VOLUMES.is_dir():
        pytest.skip("the real volumes are not beside the repository")
    for item in _slices(VOLUMES / "sct_testing_t2_cervical.nii.gz"):
        assert item.image.shape == (55, 60)
        assert item.geometry.edges == {"left": "A", "right": "P", "top": "H", "bottom": "F"}


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_text("text")
    with pytest.raises(VolumeError, match="not a DICOM file"):
        open_volume(tmp_path / "a.dcm")


def test_refused_files_do_not_tell_their_patient(tmp_path: Path) -> None:
    pixels = np.ones((8, 8), np.uint16)
    make_dicom(tmp_path / "doe_jane.dcm", pixels, PatientName="Doe^Jane", BurnedInAnnotation="YES")
    found = find_volumes(tmp_path)
    (skipped,) = found.skipped
    assert skipped.path.name == "***_***.dcm" and "burned into its pixels" in skipped.reason
    assert found.words == {"doe", "jane"}


def test_files_named_after_the_patient_of_another_get_a_number(tmp_path: Path) -> None:
    """NIfTI names nobody, and a DICOM file may have lost its name: the header of another file knows it."""
    pixels = np.ones((8, 8), np.uint16)
    make_dicom(tmp_path / "a_doe.dcm", pixels, PatientName="Nobody", SeriesInstanceUID="1.2.3")
    for name, voxel in (("doe_t1.nii", 1), ("doe_t2.nii", 2)):  # of a code 0: it does not say how it lies
        nib.Nifti1Image(np.full((3, 9, 9), voxel, np.int16), None).to_filename(tmp_path / name)
    make_dicom(tmp_path / "z.dcm", pixels, PatientName="Doe^Jane", SeriesInstanceUID="1.2.4")
    found = find_volumes(tmp_path, "all")
    assert len(found.volumes) == 4 and len(found.notes) >= 2
    names = [name for v in found.volumes for name in (v.name, *(part.name for part in v.parts))]
    assert "doe" not in " ".join([*names, *found.notes]).replace(str(tmp_path), "").lower()
    assert "z" in names and len(names) == len(set(names)) + 2  # a single image is named as its volume is
    assert {name[-5:] for name in names if "_s" in name} == {"_s000", "_s001", "_s002"}


def test_a_volume_that_vanished_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    nib.Nifti1Image(np.ones((3, 9, 9), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    make_enhanced(tmp_path / "b.dcm", np.ones((2, 8, 8), np.uint16), [(0, 0, 0), (4, 0, 0)])
    make_dicom(tmp_path / "c.dcm", np.ones((8, 8), np.uint16))
    volumes = find_volumes(tmp_path, "all").volumes
    for name in ("a.nii", "b.dcm"):
        (tmp_path / name).unlink()
    read = [item for volume in volumes for item in volume.read()]
    assert [(s.path.name, s.reason) for s in read if isinstance(s, Skipped)] == [
        ("a.nii", "no such file, or it cannot be opened"),
        *[("b.dcm", "cannot be opened: No such file or directory")] * 2,
    ]
    assert [s.name for s in read if isinstance(s, Slice)] == ["c"]
