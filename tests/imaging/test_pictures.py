from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from meddet_yolo.cli import main
from meddet_yolo.imaging.volumes import Slice, open_volume
from tests.dicom_files import make_dicom, make_enhanced


def test_pictures_are_those_that_a_detector_sees(tmp_path: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    path = make_dicom(tmp_path / "in" / "a.dcm", rng.integers(0, 99, (9, 12)).astype(np.uint16), spacing=(2, 1))
    frames = rng.integers(0, 99, (5, 9, 12)).astype(np.uint16)
    make_enhanced(tmp_path / "in" / "m.dcm", frames, [(4.0 * i, 0, 0) for i in range(5)])
    out = tmp_path / "out"
    assert main(["slices", f"source={tmp_path / 'in'}", f"out={out}"]) == 0
    assert capsys.readouterr().out.strip() == f"4 pictures in {out}"
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "m_s001.png", "m_s002.png", "m_s003.png"]
    shown = next(iter(open_volume(path).read()))
    assert isinstance(shown, Slice) and shown.image.shape == (18, 12)
    np.testing.assert_array_equal(cv2.imread(str(out / "a.png"), cv2.IMREAD_UNCHANGED), shown.image)


def test_bad_files_are_named_after_the_rest_is_written(tmp_path: Path, capsys: Any) -> None:
    make_dicom(tmp_path / "in" / "a.dcm", np.eye(9, dtype=np.uint16))
    (tmp_path / "in" / "b.dcm").write_text("no DICOM")
    assert main(["slices", f"source={tmp_path / 'in'}", f"out={tmp_path / 'out'}", "slices=all"]) == 1
    assert "b.dcm: not a DICOM file; 1 pictures are in" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["slices", f"source={tmp_path / 'empty'}", f"out={tmp_path / 'out'}"]) == 1
    assert "no DICOM or NIfTI" in capsys.readouterr().err
