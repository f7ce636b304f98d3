"""A student and its ONNX files, made once for all tests of this folder."""

from __future__ import annotations

import numpy as np
import pytest

from meddet_yolo.trt.onnx_export import export_onnx


@pytest.fixture(scope="session")
def student():
    """`meddet-n` with random weights whose output layers are lively enough for scores to differ from place to place."""
    import torch

    from meddet_yolo import MedDet
    from meddet_yolo.nn.nmode import NmODE2Gate

    torch.manual_seed(0)
    model = MedDet("meddet-n.yaml")
    head = model.model.model[-1]
    for branch in (*head.cv3, *head.one2one_cv3):
        torch.nn.init.normal_(branch[-1].weight, std=2.0)
        torch.nn.init.constant_(branch[-1].bias, -2.0)
    for module in head.modules():
        if isinstance(module, NmODE2Gate):
            torch.nn.init.normal_(module.out.weight, std=0.1)  # at its start, 0, it would hide what nmODE² computes
    model.model.eval()
    return model


@pytest.fixture(scope="session")
def calibration():
    """Sixteen smooth random images, (3, 64, 64) in [0, 1]."""
    rng = np.random.default_rng(0)
    coarse = rng.random((16, 3, 8, 8)).astype(np.float32)
    return list(coarse.repeat(8, 2).repeat(8, 3))


@pytest.fixture(scope="session")
def whole(student, tmp_path_factory):
    """Its ONNX file in single precision, 64 pixels."""
    return export_onnx(student, tmp_path_factory.mktemp("onnx") / "student.onnx", imgsz=64)


@pytest.fixture(scope="session")
def dynamic(student, tmp_path_factory):
    """Its ONNX file with dynamic shapes."""
    return export_onnx(student, tmp_path_factory.mktemp("onnx") / "dynamic.onnx", imgsz=96, dynamic=True, batch=2)
