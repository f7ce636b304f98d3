from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.pixels import get_decoder
from pydicom.uid import JPEG2000, MPEG2MPML, JPEGLSLossless

from meddet_yolo.imaging.dicom import VolumeError, is_dicom, read_frame, read_header
from meddet_yolo.imaging.geometry import oriented
from tests.dicom_files import make_dicom, make_enhanced

pytestmark = pytest.mark.filterwarnings("error")  # pydicom's warnings quote values

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
# What the wheel holds that is no grey image, or is damaged: the beginning of the file's name and of the reason.
UNREADABLE = {
    "a colour image": "ExplVR_BigEnd.dcm GDCMJ2K_TextGBR SC_ examples_jpeg2k examples_pal examples_rgb examples_ybr",
    "holds a segmentation": "liver_",
    "holds a dose grid": "rtdose badVR",
    "holds a treatment plan": "rtplan ExplVR_BigEndNoMeta ExplVR_LitEndNoMeta",
    "holds contours": "rtstruct",
    "a DICOM directory": "DICOMDIR",
    "holds no image": "UN_seq empty_charset meta_missing nested_priv priv_SQ no_meta_group reportsi test-SR wave IM00",
    "not a DICOM file": "no_meta.dcm",
    "truncated or damaged": "MR_truncated",
    "its pixel data": "JPEG-lossy",  # no decoder in existence reads it
    "its compressed pixels are a picture of 1024 x 3722445056 x 1": "JPEG2000-embedded",
}


def read(path: Path, **options: Any) -> np.ndarray:
    return read_frame(read_header(path)[0], **options)


def expected_reason(path: Path) -> str | None:
    for reason, names in UNREADABLE.items():
        if any(path.name.startswith(name) for name in names.split()):
            return reason
    return None


@pytest.mark.parametrize("name", sorted(str(f.relative_to(SHIPPED)) for f in SHIPPED.rglob("*") if f.is_file()))
def test_every_file_that_ships_with_pydicom_is_read_or_refused_with_a_reason(name: str) -> None:
    path = SHIPPED / name
    if not is_dicom(path):
        assert path.suffix.lower() in {".txt", ".icc", ".dump", ".json", ".gz", ""}
        assert path.read_bytes()[128:132] != b"DICM"
        return
    reason = expected_reason(path)
    if reason is None:
        frames = read_header(path)
        for frame in frames:
            grey = read_frame(frame)
            assert grey.shape == frame.stored_shape
            assert grey.dtype == np.uint8
            assert grey.min() < grey.max()
    else:
        with pytest.raises(VolumeError, match=re.escape(reason)):
            read(path)


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_a_picture_does_not_depend_on_its_lossless_transfer_syntax(name: str) -> None:
    np.testing.assert_array_equal(read(SHIPPED / f"MR_small_{name}.dcm"), read(SHIPPED / "MR_small.dcm"))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm"])
def test_geometry_is_that_of_the_standards_formula(name: str) -> None:
    """PS3.3 C.7.6.2.1.1, which speaks of pixel centres."""
    header = pydicom.dcmread(SHIPPED / name)
    frame = read_header(SHIPPED / name)[0]
    row_cosines, column_cosines = np.split(np.array(header.ImageOrientationPatient, float), 2)
    between_rows, between_columns = map(float, header.PixelSpacing)
    geometry = oriented(frame.stored_shape, patient=frame.patient)
    for row, column in [(0, 0), (5, 17), (63, 1)]:
        want = np.array(header.ImagePositionPatient, float)
        want = want + row_cosines * between_columns * column + column_cosines * between_rows * row
        at = geometry.from_stored([[column + 0.5, row + 0.5]])
        np.testing.assert_allclose(geometry.to_patient(at)[0], want, atol=1e-6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.floats(-1, 1)] * 6).filter(lambda v: np.linalg.norm(np.cross(v[:3], v[3:])) > 0.2),
    st.tuples(*[st.floats(-900, 900)] * 3),
    st.tuples(*[st.floats(0.1, 9)] * 2),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
def test_any_header_lies_where_nibabel_says(
    tmp_path: Path,
    axes: tuple[float, ...],
    position: tuple[float, ...],
    spacing: tuple[float, ...],
    shape: tuple[int, int],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls its DICOM readers experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data
    along_row = np.array(axes[:3]) / np.linalg.norm(axes[:3])
    along_column = np.cross(np.cross(along_row, axes[3:]), along_row)
    along_column /= np.linalg.norm(along_column)
    path = make_dicom(
        tmp_path / "a.dcm",
        np.zeros(shape, np.uint16),
        orientation=[*along_row, *along_column],
        position=position,
        spacing=spacing,
    )
    affine = wrapper_from_data(pydicom.dcmread(path)).affine  # from (row, column, 0) of a pixel's centre to LPS
    (frame,) = read_header(path)
    geometry = oriented(shape, patient=frame.patient)
    for row, column in [(0, 0), (shape[0] - 1, 0), (0, shape[1] - 1), (1, 1)]:
        at = geometry.from_stored([[column + 0.5, row + 0.5]])
        np.testing.assert_allclose(geometry.to_patient(at)[0], (affine @ [row, column, 0, 1])[:3], atol=1e-4)


grey_types = st.sampled_from([(np.uint8, 8), (np.uint16, 12), (np.uint16, 16), (np.int16, 12), (np.int16, 16)])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    grey_types,
    st.floats(0.01, 10).map(lambda v: float(f"{v:.4g}")),
    st.floats(-2000, 2000).map(lambda v: float(f"{v:.5g}")),
    st.floats(0.05, 0.95),
    st.floats(0.1, 2.0),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.booleans(),
)
def test_values_pass_slope_window_and_inversion(
    tmp_path: Path,
    kind: tuple[Any, int],
    slope: float,
    intercept: float,
    place: float,
    share: float,
    function: str,
    inverted: bool,
) -> None:
    dtype, bits = kind
    low = -(2 ** (bits - 1)) if np.dtype(dtype).kind == "i" else 0
    stored = np.linspace(low, low + 2**bits - 1, 64).round().astype(dtype).reshape(8, 8)
    measured = [float(v) * slope + intercept for v in stored.ravel()]
    extent = measured[-1] - measured[0]
    center = float(f"{measured[0] + place * extent:.8g}")
    width = float(f"{max(share * extent, 2.0):.8g}")
    path = make_dicom(
        tmp_path / "a.dcm",
        stored,
        bits=bits,
        RescaleSlope=f"{slope:.10g}",
        RescaleIntercept=f"{intercept:.10g}",
        WindowCenter=f"{center:.10g}",
        WindowWidth=f"{width:.10g}",
        VOILUTFunction=function,
        PhotometricInterpretation="MONOCHROME1" if inverted else "MONOCHROME2",
    )
    want = []
    for value in measured:  # PS3.3 C.11.2.1.2 and C.11.2.1.3, for an output from 0 to 255
        if function == "LINEAR":
            share_of = (value - (center - 0.5)) / (width - 1) + 0.5
        elif function == "LINEAR_EXACT":
            share_of = (value - center) / width + 0.5
        else:
            share_of = 1 / (1 + math.exp(min(-4 * (value - center) / width, 700)))
        want.append(255 * min(max(share_of, 0), 1))
    grey = read(path).ravel().astype(float)
    if max(want) - min(want) > 2:  # else the window lies beside every value
        np.testing.assert_allclose(255 - grey if inverted else grey, want, atol=1.01)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint16, 12), (np.int16, 16)])
def test_without_a_window_percentiles_are_taken(tmp_path: Path, dtype: Any, bits: int) -> None:
    rng = np.random.default_rng(0)
    stored = rng.normal(100, 20, (50, 40)).clip(0, 200).astype(dtype)
    stored[0, 0] = 2 ** (bits - 1) - 1  # one bright pixel must not darken the rest
    grey = read(make_dicom(tmp_path / "a.dcm", stored, bits=bits))
    assert 20 < np.percentile(grey, 10) < 120 < np.percentile(grey, 90) < 235
    assert np.mean(grey == 255) < 0.02
    np.testing.assert_array_equal(grey, read(tmp_path / "a.dcm", window="percentile"))


def test_windows_that_cannot_be_are_passed_over(tmp_path: Path) -> None:
    stored = np.arange(100, dtype=np.uint16).reshape(10, 10)
    plain = read(make_dicom(tmp_path / "a.dcm", stored))
    for center, width in [("50", "0"), ("50", "-3"), ("60000", "10")]:
        path = make_dicom(tmp_path / "b.dcm", stored, WindowCenter=center, WindowWidth=width)
        np.testing.assert_array_equal(read(path), plain)


def test_the_first_of_several_windows_counts_and_a_given_one_goes_before(tmp_path: Path) -> None:
    stored = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = make_dicom(tmp_path / "a.dcm", stored, WindowCenter=["128", "10"], WindowWidth=["256", "10"])
    assert np.abs(read(path).astype(int) - stored).max() <= 1
    given = read(path, window=(10.5, 1e-3))
    np.testing.assert_array_equal(given, 255 * (stored > 10))


def test_a_lookup_table_is_applied(tmp_path: Path) -> None:
    stored = np.arange(16, dtype=np.uint16).reshape(4, 4)
    table = pydicom.Dataset()
    table.LUTDescriptor = [16, 0, 8]
    table.LUTData = np.array([17 * (15 - i) for i in range(16)], "<u2").tobytes()
    path = make_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[table], WindowCenter="8", WindowWidth="16")
    assert read(path).ravel().tolist() == [17 * (15 - i) for i in range(16)]


def test_padding_takes_no_part_and_is_black(tmp_path: Path) -> None:
    stored = np.full((20, 20), -2000, np.int16)
    stored[5:15, 5:15] = np.arange(100).reshape(10, 10)
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        path = make_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
        grey = read(path)
        assert (grey[stored == -2000] == 0).all()
        assert np.ptp(grey[5:15, 5:15]) == 255


def test_frames_of_an_enhanced_object_have_their_own_place_scale_and_window(tmp_path: Path) -> None:
    pixels = np.stack([np.full((6, 5), v, np.uint16) for v in (0, 51, 204)])
    pixels[:, 0, 0] = 255
    positions = [(x, -10.0, 20.0) for x in (4.0, 0.0, -4.0)]
    path = make_enhanced(tmp_path / "mf.dcm", pixels, positions, spacing=(2.0, 0.5))
    frames = read_header(path)
    assert [f.reference.frame for f in frames] == [1, 2, 3]
    for frame, position in zip(frames, positions, strict=True):
        geometry = oriented(frame.stored_shape, patient=frame.patient)
        np.testing.assert_allclose(geometry.to_patient(geometry.from_stored([[0.5, 0.5]]))[0], position, atol=1e-9)
        assert geometry.spacing == pytest.approx((0.5, 0.5))
        assert geometry.edges == {"right": "P", "left": "A", "bottom": "F", "top": "H"}
    # Slope and window grow together, so that the stored values come through.
    assert [int(read_frame(frame)[3, 3]) for frame in frames] == [0, 51, 204]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"spacing": (0.0, 1.0)}, "PixelSpacing is 0"),
        ({"spacing": (1.0, -1.0)}, "expected positive distances of 0.001 to 100 mm"),
        ({"PhotometricInterpretation": "RGB"}, "a colour image (RGB)"),
        ({"orientation": (0, 0, 0, 0, 0, 0)}, "no pair of perpendicular unit vectors"),
        ({"orientation": (1, 0, 0, 1, 0, 0)}, "no pair of perpendicular unit vectors"),
        ({"Rows": 0}, "its matrix is 0 x 8"),
        ({"Rows": None}, "holds no image"),
        ({"NumberOfFrames": -1}, "NumberOfFrames is -1"),
        ({"BurnedInAnnotation": "YES"}, "burned into its pixels"),
        ({"Modality": "SEG"}, "holds a segmentation (SEG)"),
        ({"BitsAllocated": 1}, "a one-bit mask"),
    ],
)
def test_impossible_headers_are_refused(tmp_path: Path, attributes: dict[str, Any], reason: str) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.zeros((8, 8), np.uint16), **attributes)
    with pytest.raises(VolumeError, match=re.escape(reason)):
        read_header(path)


def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path) -> None:
    content = make_dicom(tmp_path / "a.dcm", np.ones((8, 8), np.uint16)).read_bytes()
    outcomes = set()
    for length in range(0, len(content), 7):
        path = tmp_path / "b.dcm"
        path.write_bytes(content[:length])
        with pytest.raises(VolumeError) as refusal:
            read(path)
        outcomes.add(str(refusal.value).split("(")[0])
    assert {"truncated or damaged pixel data", "not a DICOM file"} <= outcomes


def test_missing_pixels_and_files_are_named(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((8, 8), np.uint16))
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with pytest.raises(VolumeError, match="pixel data are missing"):
        read(path)
    with pytest.raises(VolumeError, match="cannot be opened"):
        read_header(tmp_path / "none.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM at all")
    with pytest.raises(VolumeError, match="not a DICOM file"):
        read_header(tmp_path / "text.dcm")


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [(JPEG2000, "pylibjpeg pylibjpeg-openjpeg"), (JPEGLSLossless, "pylibjpeg pylibjpeg-libjpeg")],
)
def test_a_missing_decoder_is_named_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, syntax: pydicom.uid.UID, packages: str
) -> None:
    monkeypatch.setattr(get_decoder(syntax), "_available", {})
    name = {JPEG2000: "693_J2KI.dcm", JPEGLSLossless: "MR_small_jpeg_ls_lossless.dcm"}[syntax]
    with pytest.raises(VolumeError, match=f"needs a decoder: pip install {packages}$"):
        read(SHIPPED / name)


def test_a_transfer_syntax_that_nothing_decodes_is_named(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((8, 8), np.uint16))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(VolumeError, match=r"cannot decode its transfer syntax \(MPEG2"):
        read(path)


def test_the_parser_never_quotes_what_it_reads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make_dicom(tmp_path / "a.dcm", np.ones((8, 8), np.uint16), StudyInstanceUID="quietus")
    caplog.clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_frame(read_header(path)[0])
    assert [str(warning.message) for warning in seen] == []
    assert caplog.text == ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pydicom.dcmread(path).StudyInstanceUID
    assert "quietus" in caplog.text  # which pydicom alone does


@pytest.mark.parametrize("attributes", [{"BurnedInAnnotation": "YES"}, {"Rows": 0}, {"Modality": "SEG"}])
def test_a_refused_file_says_which_words_name_its_patient(tmp_path: Path, attributes: dict[str, Any]) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((4, 4), np.uint16), PatientName="Doe^Jane", **attributes)
    with pytest.raises(VolumeError) as caught:
        read_header(path)
    assert caught.value.words == {"doe", "jane"}


@pytest.mark.parametrize("frames", [1, 2])
def test_a_file_that_vanished_is_refused(tmp_path: Path, frames: int) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((frames, 4, 4), np.uint16))
    found = read_header(path)[0]
    path.unlink()
    with pytest.raises(VolumeError, match=r"^cannot be opened: No such file or directory$"):
        read_frame(found)
