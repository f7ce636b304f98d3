import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from meddet_yolo.trt.cpu_graph import split_convolutions
from meddet_yolo.trt.graph import load_onnx
from meddet_yolo.trt.onnx_export import export_onnx


def block(sizes=(16, 8), *, silu=True, group=1, axis=1, bias=True, extra_use=None, constant_sizes=True):
    """A convolution of 24 channels, perhaps a SiLU, and a Split; the parts are outputs of the graph."""
    rng = np.random.default_rng(0)
    width = sum(sizes) if axis == 1 else 24
    weights = [numpy_helper.from_array(rng.normal(size=(width, 24 // group, 3, 3)).astype(np.float32), "w")]
    weights += [numpy_helper.from_array(rng.normal(size=width).astype(np.float32), "b")] if bias else []
    nodes = [helper.make_node("Conv", ["x", *(t.name for t in weights)], ["c"], "conv", pads=[1] * 4, group=group)]
    last = "c"
    if silu:
        nodes += [helper.make_node("Sigmoid", ["c"], ["s"], "sig"), helper.make_node("Mul", ["s", "c"], ["m"], "mul")]
        last = "m"
    size = numpy_helper.from_array(np.array(sizes), "sizes")
    if constant_sizes:
        weights.append(size)
    else:
        nodes.insert(0, helper.make_node("Constant", [], ["sizes"], "sizes_node", value=size))
    nodes.append(
        helper.make_node("Split", [last, "sizes"], [f"part{k}" for k in range(len(sizes))], "split", axis=axis)
    )
    outputs = [f"part{k}" for k in range(len(sizes))]
    if extra_use:
        nodes.append(helper.make_node("Relu", [extra_use], ["other"], "relu"))
        outputs.append("other")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list("nchw")) for name in outputs]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 24, 24, 24])], infos, weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model):
    x = np.random.default_rng(1).normal(size=(1, 24, 24, 24)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def count(model, kind):
    return sum(node.op_type == kind for node in model.graph.node)


@pytest.mark.parametrize(
    "options",
    [{}, {"silu": False}, {"bias": False}, {"sizes": (8, 8, 8)}, {"constant_sizes": False}],
    ids=["silu", "no activation", "no bias", "three parts", "sizes in a node"],
)
def test_the_numbers_stay_the_same(options):
    model = block(**options)
    expected = run(model)
    parts = len(expected)
    assert split_convolutions(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert count(model, "Split") == 0 and count(model, "Conv") == parts and count(model, "Constant") == 0
    assert {t.name for t in model.graph.initializer} == {i for n in model.graph.node for i in n.input if "conv." in i}
    for before, after in zip(expected, run(model), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"sizes": (12, 12)},
        {"group": 2},
        {"axis": 2},
        {"extra_use": "m"},
        {"extra_use": "c"},
        {"extra_use": "s"},
        {"silu": False, "extra_use": "c"},
    ],
    ids=[
        "no multiple of eight",
        "grouped",
        "other axis",
        "output used",
        "before SiLU used",
        "sigmoid used",
        "conv used",
    ],
)
def test_what_does_not_fit_is_left_alone(options):
    model = block(**options)
    before = model.SerializeToString()
    assert split_convolutions(model) == 0
    assert model.SerializeToString() == before


def test_weights_that_are_an_input_are_left_alone():
    model = block()
    weight = next(t for t in model.graph.initializer if t.name == "w")
    model.graph.initializer.remove(weight)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, list(weight.dims)))
    assert split_convolutions(model) == 0 and count(model, "Split") == 1


def test_convolutions_that_share_a_bias_keep_it():
    model = block(extra_use="x2")
    model.graph.node.insert(0, helper.make_node("Conv", ["x", "w", "b"], ["x2"], "twin", pads=[1] * 4))
    expected = run(model)
    assert split_convolutions(model) == 1
    assert {"w", "b"} <= {t.name for t in model.graph.initializer}
    for before, after in zip(expected, run(model), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_a_student_for_a_cpu_says_the_same(student, whole, tmp_path):
    plain = load_onnx(export_onnx(student, tmp_path / "plain.onnx", imgsz=64, for_cpu=False))
    shaped = load_onnx(whole)
    blocks = 9  # C2f, C3k2 and C2PSA blocks of yolo26
    assert count(plain, "Split") - count(shaped, "Split") == blocks
    assert count(shaped, "Conv") - count(plain, "Conv") == blocks
    images = np.random.default_rng(0).random((1, 3, 64, 64)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"images": images}
        )
        for m in (plain, shaped)
    ]
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4, atol=1e-4)
