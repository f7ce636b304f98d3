"""Every form of the nmODE² head in every export: the parity gate and the audit of the precision pass."""

import pytest
import torch
from ultralytics.nn import tasks
from ultralytics.utils import YAML

from meddet_yolo import MedDet
from meddet_yolo.nn.nmode import NmODE2Beside, NmODE2Gate
from meddet_yolo.trt.builder import build_engine
from meddet_yolo.trt.engine_file import read_engine
from meddet_yolo.trt.graph import load_onnx, nmode_nodes
from meddet_yolo.trt.onnx_export import export_onnx
from meddet_yolo.trt.openvino_export import export_openvino

FORMS = [(f"meddet{v}-p.yaml", form) for v, form in (("", "beside"), ("11", "beside"), ("", "gate"), ("11", "act"))]


@pytest.fixture(scope="module", params=FORMS, ids=["-".join(form) for form in FORMS])
def model(request, tmp_path_factory):
    """A student of the smallest scale, with what starts at zero moved away from it, and lively scores."""
    name, inject = request.param
    layout = tasks.yaml_model_load(name) | {"nc": 2}
    layout["head"][-1][3][1]["inject"] = inject
    del layout["yaml_file"]
    path = tmp_path_factory.mktemp("layout") / name
    YAML.save(path, layout)
    torch.manual_seed(0)
    made = MedDet(path)
    for module in made.model.modules():
        if isinstance(module, NmODE2Beside):
            torch.nn.init.normal_(module.factor)
        elif isinstance(module, NmODE2Gate):
            torch.nn.init.normal_(module.out.weight)
    for level in made.model.model[-1].cv3:
        torch.nn.init.normal_(level[-1].weight, std=0.5)
        torch.nn.init.constant_(level[-1].bias, -1.0)
    made.model.eval()
    return made


def test_onnx_half_and_an_engine(model, tmp_path):
    path = export_onnx(model, tmp_path / "whole.onnx", imgsz=64)
    graph = load_onnx(path)
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}
    assert len({name.rsplit("/", 1)[0] for name in nmode_nodes(graph)}) == 6  # two branches on three levels
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    engine = build_engine(path, tmp_path / "half.engine", runtime="rtx", compute_capability=8.6)
    assert set(read_engine(engine).metadata["meddet_audit"]["matrix"]) == {"fp16"}


@pytest.mark.slow("converts")
def test_openvino(model, tmp_path):
    pytest.importorskip("openvino")
    assert any(export_openvino(model, tmp_path / "student_openvino_model", imgsz=64).glob("*.xml"))
