from __future__ import annotations

import errno
import os
import traceback
import warnings
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meddet_yolo.imaging.dicom import VolumeError
from meddet_yolo.imaging.structured_report import ReportedBox, read_structured_report, write_structured_report
from meddet_yolo.imaging.volumes import Part, open_volume
from tests.dicom_files import make_dicom, make_enhanced

HEAD_LAST = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0)  # columns run to the head, rows to the back: the picture is turned


def opened(path: Path) -> Part:
    return open_volume(path).parts[0]


def reported(part: Part, box: tuple[float, ...], name: str = "herniation", confidence: float = 0.5) -> ReportedBox:
    assert part.frame is not None
    return ReportedBox(part.frame.reference, part.geometry.box_to_stored(box), name, confidence)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.floats(0, 40)] * 4), st.floats(0, 1), st.sampled_from([(1.0, 1.0), (0.5, 2.0)]), st.booleans())
def test_boxes_return_within_a_pixel(
    tmp_path: Path, box: tuple[float, ...], confidence: float, spacing: tuple[float, float], turned: bool
) -> None:
    orientation = {"orientation": HEAD_LAST} if turned else {}
    path = make_dicom(tmp_path / "a.dcm", np.ones((40, 40), np.uint16), spacing=spacing, **orientation)
    part = opened(path)
    x1, x2, y1, y2 = *sorted(box[:2]), *sorted(box[2:])
    file = write_structured_report(
        tmp_path / "sr.dcm", [path], [reported(part, (x1, y1, x2, y2), "C5/6 disc", confidence)]
    )
    (back,) = read_structured_report(file)
    np.testing.assert_allclose(part.geometry.box_from_stored(back.box), (x1, y1, x2, y2), atol=0.01)
    assert (back.name, back.confidence) == ("C5/6 disc", pytest.approx(confidence, abs=1e-4))
    assert part.frame is not None and back.reference == part.frame.reference


def test_a_report_is_a_tid_1500_with_one_planar_region_a_box(tmp_path: Path) -> None:
    paths = [make_dicom(tmp_path / f"{i}.dcm", np.ones((9, 9), np.uint16), StudyInstanceUID="1.2") for i in range(3)]
    boxes = [reported(opened(paths[i]), (1, 2, 5, 6), name, 0.9) for i, name in enumerate(["normal", "herniation"])]
    report = hd.sr.srread(write_structured_report(tmp_path / "sr.dcm", paths, boxes, version="1.0"))
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = report.content.get_planar_roi_measurement_groups()
    assert [g.finding_type.meaning for g in groups] == ["normal", "herniation"]
    assert [g.roi.graphic_type.value for g in groups] == ["POLYLINE"] * 2
    assert (report.VerificationFlag, report.CompletionFlag, report.PreliminaryFlag) == (
        "UNVERIFIED",
        "PARTIAL",
        "PRELIMINARY",
    )
    cited = [
        item.ReferencedSOPInstanceUID
        for keyword in ("CurrentRequestedProcedureEvidenceSequence",)
        for study in report[keyword].value
        for s in study.ReferencedSeriesSequence
        for item in s.ReferencedSOPSequence
    ]
    assert len(cited) == 3  # also the image without a box


def test_frames_of_a_multi_frame_object_are_cited(tmp_path: Path) -> None:
    path = make_enhanced(tmp_path / "mf.dcm", np.ones((3, 8, 8), np.uint16), [(4.0 * i, 0, 0) for i in range(3)])
    parts = open_volume(path).parts
    write_structured_report(tmp_path / "sr.dcm", [path], [reported(p, (1, 1, 4, 4)) for p in parts])
    assert [b.reference.frame for b in read_structured_report(tmp_path / "sr.dcm")] == [1, 2, 3]


def test_only_what_dicom_requires_identifies_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = {
        "ReferringPhysicianName": "SECRET^Doctor",
        "OtherPatientNames": "SECRET^Other",
        "PatientAddress": "SECRET street",
        "PatientComments": "SECRET comment",
        "InstitutionName": "SECRET clinic",
        "OperatorsName": "SECRET^Operator",
        "StudyDescription": "SECRET study",
    }
    path = make_dicom(tmp_path / "a.dcm", np.ones((9, 9), np.uint16), PatientName="Quietus", PatientSex="M", **secret)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        write_structured_report(tmp_path / "sr.dcm", [path], [reported(opened(path), (1, 1, 3, 3))])
    assert not seen  # highdicom quotes a name that it finds odd
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert (str(report.PatientName), report.PatientSex) == ("Quietus", "M")
    assert b"SECRET" not in (tmp_path / "sr.dcm").read_bytes()
    assert (tmp_path / "sr.dcm").read_bytes().count(b"Quietus") == 1
    assert "Quietus" not in caplog.text


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    paths = [make_dicom(tmp_path / f"{i}.dcm", np.ones((9, 9), np.uint16)) for i in range(2)]
    boxes = [reported(opened(path), (1, 1, 3, 3)) for path in paths]
    out = tmp_path / "sr.dcm"
    for sources, found in (([], boxes), (paths[:1], [])):
        with pytest.raises(ValueError, match="a report needs one of each"):
            write_structured_report(out, sources, found)
    with pytest.raises(ValueError, match="1 boxes lie on images that are not among the sources"):
        write_structured_report(out, paths[:1], boxes)
    with pytest.raises(VolumeError, match="several studies"):
        write_structured_report(out, paths, boxes)
    bare = make_dicom(tmp_path / "b.dcm", np.ones((9, 9), np.uint16), StudyInstanceUID=None)
    with pytest.raises(VolumeError, match="no StudyInstanceUID"):
        write_structured_report(out, [bare], boxes)
    assert not out.exists()
    for path in (paths[0], tmp_path / "none.dcm"):
        with pytest.raises(VolumeError, match="no DICOM Structured Report with planar regions"):
            read_structured_report(path)


@pytest.mark.parametrize("attribute", ["PatientBirthDate", "StudyDate", "StudyTime"])
def test_a_value_that_no_report_may_have_is_named_but_not_quoted(tmp_path: Path, attribute: str) -> None:
    with pydicom.config.disable_value_validation():
        path = make_dicom(tmp_path / "a.dcm", np.ones((9, 9), np.uint16), **{attribute: "2001-02-03"})
    with pytest.raises(VolumeError, match=f"its {attribute} is not as DICOM writes it") as caught:
        write_structured_report(tmp_path / "sr.dcm", [path], [reported(opened(path), (1, 1, 3, 3))])
    trace = "".join(traceback.format_exception(caught.value))
    assert "2001" not in trace
    assert [p.name for p in tmp_path.iterdir()] == ["a.dcm"]


def test_a_refusal_of_highdicom_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((9, 9), np.uint16), PatientName="Quietus")

    def refuse(*_: Any, **__: Any) -> None:
        raise TypeError("Quietus is no name")

    monkeypatch.setattr("highdicom.sr.ComprehensiveSR", refuse)
    with pytest.raises(VolumeError, match=r"^highdicom refuses the images' headers \(TypeError\)$") as caught:
        write_structured_report(tmp_path / "sr.dcm", [path], [reported(opened(path), (1, 1, 3, 3))])
    assert "Quietus" not in "".join(traceback.format_exception(caught.value))


def test_a_source_that_vanished_is_refused(tmp_path: Path) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((9, 9), np.uint16))
    boxes = [reported(opened(path), (1, 1, 3, 3))]
    path.unlink()
    with pytest.raises(VolumeError, match="cannot be opened"):
        write_structured_report(tmp_path / "sr.dcm", [path], boxes)


def test_half_a_report_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_dicom(tmp_path / "a.dcm", np.ones((9, 9), np.uint16))

    def full(_: Any, target: Any, *__: Any, **___: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    boxes = [reported(opened(path), (1, 1, 3, 3))]
    monkeypatch.setattr("meddet_yolo.files.os.replace", full)
    with pytest.raises(OSError, match=r"sr\.dcm cannot be written: the disk at /.* is full \([\d.]+ GB free\)"):
        write_structured_report(tmp_path / "sr.dcm", [path], boxes)
    assert [p.name for p in tmp_path.iterdir()] == ["a.dcm"]
