"""What exporting and running engines lean on inside Ultralytics; see `test_canary.py`."""

import inspect

import cv2
import pytest
import torch
from ultralytics.engine import exporter
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.backends import TensorRTBackend
from ultralytics.nn.backends.base import BaseBackend
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import ASSETS

from tests.registry.test_canary import holds, parameters


def test_backends_are_chosen_from_a_map() -> None:
    found = getattr(AutoBackend, "_BACKEND_MAP", {}).get("engine")
    holds(found is not None, "AutoBackend._BACKEND_MAP has no entry for engines", "registry/engines.py")
    holds(AutoBackend._model_type("a/student.engine") == "engine", "*.engine is no engine", "registry/engines.py")
    source = inspect.getsource(AutoBackend.__init__)
    holds(
        "self._BACKEND_MAP[format](model, **backend_kwargs)" in source,
        "AutoBackend calls backends otherwise",
        "backend.py",
    )


def test_the_openvino_backend_compiles_by_a_function_that_it_keeps() -> None:
    stock = next(c for c in AutoBackend._BACKEND_MAP["openvino"].__mro__ if c.__module__.startswith("ultralytics"))
    holds(
        "self.compile_model = partial(core.compile_model, device_name=device_name, config=config)"
        in inspect.getsource(stock.load_model),
        "OpenVINOBackend compiles otherwise",
        "registry/engines.py (openvino_backend)",
    )


def test_backends_have_their_interface() -> None:
    got = parameters(BaseBackend.__init__)
    holds(got == ["self", "weight", "device", "fp16"], f"BaseBackend takes {got}", "backend.py (RTXBackend)")
    for name in ("load_model", "forward", "apply_metadata", "read_metadata", "engine_header"):
        holds(hasattr(BaseBackend, name), f"BaseBackend has no {name}()", "backend.py and the test of engine files")
    holds(hasattr(TensorRTBackend, "load_model"), "TensorRTBackend has no load_model()", "tests/test_backend.py")


def test_the_exporter_keeps_what_it_traced_and_with_what() -> None:
    source = inspect.getsource(exporter.Exporter.__call__)
    for line in ("self.model = model", "self.file = file", '"pt_path"', "on_export_start"):
        holds(line in source, f"Exporter.__call__ has no {line!r}", "trt/original.py (ultralytics_export)")
    holds(
        parameters(exporter.NMSModel.__init__) == ["self", "model", "args"],
        "NMSModel changed",
        "trt/original.py",
    )


def test_the_argument_nms_chooses_the_head() -> None:
    source = inspect.getsource(exporter.Exporter.__call__)
    holds(
        "model.end2end = self.args.nms is False" in source,
        "nms=False no longer selects the end-to-end head",
        "trt/original.py (nms_argument)",
    )
    head = DetectionModel("yolo26n.yaml", verbose=False).model[-1]
    holds(getattr(head, "one2one_cv2", None) is not None, "the end-to-end head has no one2one_cv2", "trt/original.py")
    holds(hasattr(head, "max_det"), "heads have no max_det", "trt/original.py (reference_predictor)")


@pytest.mark.parametrize(
    ("name", "end2end", "shape"), [("yolo26n.yaml", True, (1, 84, 6)), ("yolo11n.yaml", False, (1, 84, 84))]
)
def test_models_in_eval_give_what_exports_give(name: str, end2end: bool, shape: tuple[int, ...]) -> None:
    net = DetectionModel(name, verbose=False).eval()
    if end2end:
        net.end2end, net.model[-1].max_det = True, 84
    out = net(torch.zeros(1, 3, 64, 64))
    holds(
        isinstance(out, tuple) and tuple(out[0].shape) == shape,
        f"{name} in eval gives something else",
        "trt/original.py",
    )


def test_there_are_photographs_to_compare_with() -> None:
    files = sorted(ASSETS.glob("*.jpg"))
    holds(
        bool(files) and cv2.imread(str(files[0])) is not None,
        "the package has no pictures",
        "trt/original.py (sample_images)",
    )
