import numpy as np
import onnx
import onnxruntime
import pytest

from meddet_yolo.nn.nmode import NmODE2Activation
from meddet_yolo.trt import graph
from meddet_yolo.trt.graph import OnnxError, conv_precisions, float32_nodes, load_onnx, nmode_nodes, sort_nodes
from meddet_yolo.trt.half import to_half
from meddet_yolo.trt.original import sample_images
from meddet_yolo.trt.quantize import quantize_onnx, sensitive_convolutions


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture(scope="module")
def model(whole):
    return load_onnx(whole)


@pytest.fixture(scope="module")
def int8(model, calibration):
    return quantize_onnx(model, calibration)


def scopes(names):
    return {name.rsplit("/", 1)[0] for name in names}


def test_every_nmode_activation_is_found_and_nothing_else(model, student):
    used = [m for n, m in student.model.named_modules() if isinstance(m, NmODE2Activation) and "one2one" not in n]
    assert len(scopes(nmode_nodes(model))) == len(used) > 0
    assert all("/act/" in name for name in nmode_nodes(model))


def test_the_output_convolutions_and_those_before_nmode_stay_in_floating_point(model):
    found = sensitive_convolutions(model)
    outputs = {n.name for n in model.graph.node if n.op_type == "Conv" and n.name.endswith(".2/Conv")}
    assert outputs and outputs <= found
    before = {n for n in found if n not in outputs}
    assert len(before) == len(scopes(nmode_nodes(model)))
    solved = scopes(nmode_nodes(model))
    assert all(any(scope.startswith(f"{name.rsplit('/conv/', 1)[0]}/act") for scope in solved) for name in before)


def test_dfl_is_decoding():
    # yolo11 decodes its distances by a softmax and a convolution with fixed weights
    import tempfile

    from meddet_yolo import MedDet
    from meddet_yolo.trt.onnx_export import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        found = load_onnx(export_onnx(MedDet("yolo11n.yaml"), f"{folder}/y.onnx", imgsz=64))
    names = graph.decoding_nodes(found)
    assert any("/dfl/conv/Conv" in name for name in names) and any("Softmax" in name for name in names)
    assert not nmode_nodes(found)
    assert not any("attn" in name for name in names)


def types_of(model):
    inferred = onnx.shape_inference.infer_shapes(model)
    return {v.name: v.type.tensor_type.elem_type for v in [*inferred.graph.value_info, *inferred.graph.output]}


def test_half_precision_is_where_it_belongs(model):
    half = to_half(model)
    types = types_of(half)
    keep = float32_nodes(half)
    convs = [n for n in half.graph.node if n.op_type == "Conv"]
    assert {types[n.output[0]] for n in convs} == {onnx.TensorProto.FLOAT16}
    rounds = [n for n in half.graph.node if n.op_type == "Round"]
    assert rounds and {types[n.output[0]] for n in rounds} == {onnx.TensorProto.FLOAT}
    assert all(n.name in keep for n in rounds)
    assert {t.type.tensor_type.elem_type for t in (*half.graph.input, *half.graph.output)} == {onnx.TensorProto.FLOAT}
    assert conv_precisions(half) == {"fp16": len(convs)}


def test_half_precision_is_close_and_changes_the_original_not(model):
    before = model.SerializeToString()
    images = np.stack(sample_images((64, 64)))[:1]
    expected, got = run(model, images), run(to_half(model), images)
    assert model.SerializeToString() == before
    assert 0 < np.abs(expected - got)[:, 4:].max() < 0.02


def test_half_precision_of_a_dynamic_graph(dynamic):
    half = to_half(load_onnx(dynamic))
    assert run(half, np.zeros((2, 3, 64, 96), np.float32)).shape == (2, 84, 126)


def test_quantized_convolutions_are_counted(model, int8):
    counts = conv_precisions(int8)
    assert counts["fp32"] == len(sensitive_convolutions(model))
    assert counts["int8"] == conv_precisions(model)["fp32"] - counts["fp32"] > 50


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantized_and_half_together(model, calibration, precision):
    quantized = quantize_onnx(model, calibration, precision=precision)
    both = to_half(quantized)
    counts = conv_precisions(both)
    assert set(counts) == {precision, "fp16"} and counts[precision] == conv_precisions(quantized)[precision]
    images = np.stack(calibration[:1])
    error = np.abs(run(model, images) - run(both, images))[:, 4:].max()
    assert 0 < error < 0.3


def test_scales_are_per_channel_for_weights_and_symmetric(int8):
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in int8.graph.initializer}
    weights = [n for n in int8.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in tensors]
    assert weights and all(tensors[n.input[1]].shape == tensors[n.input[0]].shape[:1] for n in weights)
    zeros = [tensors[n.input[2]] for n in int8.graph.node if n.op_type == "QuantizeLinear"]
    assert all(not z.any() and z.dtype == np.int8 for z in zeros)
    for node in weights[:10]:  # the largest magnitude of a channel is what 127 stands for
        largest = np.abs(tensors[node.input[0]]).reshape(len(tensors[node.input[1]]), -1).max(1)
        np.testing.assert_allclose(tensors[node.input[1]] * 127, largest, rtol=1e-5, atol=1e-6)


def test_metadata_survives(model, int8):
    assert graph.metadata_of(model).items() <= graph.metadata_of(int8).items()
    assert graph.metadata_of(to_half(int8))["stride"] == "32"


def test_sorting_brings_inputs_before_their_users(model):
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    nodes = list(model.graph.node)
    np.random.default_rng(0).shuffle(nodes)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(shuffled)
    sort_nodes(shuffled)
    onnx.checker.check_model(shuffled)
    images = np.zeros((1, 3, 64, 64), np.float32)
    np.testing.assert_array_equal(run(model, images), run(shuffled, images))
    shuffled.graph.node[0].input[0] = "nowhere"
    with pytest.raises(OnnxError, match="missing input"):
        sort_nodes(shuffled)


@pytest.mark.parametrize("content", [b"", b"no onnx at all" * 9])
def test_corrupt_onnx(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(OnnxError, match=r"no valid ONNX model|must have one input"):
        load_onnx(tmp_path / "x.onnx")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_onnx(tmp_path / "y.onnx")


def test_a_missing_library_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'pip install "meddet-yolo\[export\]"'):
        graph.require("onnx")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "no calibration images"),
        ([np.zeros((3, 64, 64))] * 3, {}, "3 calibration images are too few"),
        ([np.zeros((1, 64, 64))] * 9, {}, "image of shape"),
        ([np.full((3, 64, 64), 255.0)] * 9, {}, r"must be in \[0, 1\]"),
        ([np.full((3, 64, 64), np.nan)] * 9, {}, r"must be in \[0, 1\]"),
        ([np.zeros((3, 64, 64))] * 9, {"precision": "int4"}, "use int8 or fp8"),
        ([np.zeros((3, 64, 64))] * 9, {"method": "magic"}, "minmax, entropy, percentile"),
    ],
)
def test_what_cannot_be_quantized(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        quantize_onnx(model, images, **options)


def test_quantized_twice(int8, calibration):
    with pytest.raises(ValueError, match="Q/DQ nodes already"):
        quantize_onnx(int8, calibration)


def test_q_dq_beside_halves_needs_opset_19(int8):
    old = onnx.ModelProto()
    old.CopyFrom(int8)
    next(o for o in old.opset_import if o.domain == "").version = 17
    with pytest.raises(ValueError, match="opset 19 or newer"):
        to_half(old)
