import json

import pytest

from meddet_yolo.trt.precision import Layer, PrecisionAudit, PrecisionError, parse_layers, precision_of

# Words of the engine inspector in TensorRT 8.5 to 11 and TensorRT-RTX.
WORDS = [
    ("Row major linear FP32", "fp32"),
    ("Row major linear FP16 format", "fp16"),
    ("Channel major FP16 format where channel % 4 == 0", "fp16"),
    ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
    ("Float", "fp32"),
    ("Half", "fp16"),
    ("BFloat16", "bf16"),
    ("Int8", "int8"),
    ("FP8", "fp8"),
    ("Int32", "int32"),
    ("Int64", "int64"),
    ("Bool", "bool"),
    ("N/A due to dynamic shapes", "unknown"),
]


def inspector(*layers):
    return json.dumps(
        {
            "Layers": [
                {
                    "Name": name,
                    "LayerType": kind,
                    "Inputs": [{"Name": "x", "Dimensions": [1, 8, 4, 4], key: text} for text in inputs],
                    "Outputs": [{"Name": "y", "Dimensions": [1, 8, 4, 4], key: "Row major linear FP32"}],
                }
                for name, kind, key, inputs in layers
            ],
            "Bindings": ["images", "output0"],
        }
    )


def audit(requested, *layers):
    return PrecisionAudit.of(parse_layers(inspector(*layers)), requested, "inspector")


@pytest.mark.parametrize(("text", "precision"), WORDS)
def test_words_of_the_inspector(text, precision):
    assert precision_of(text) == precision


@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype"])
def test_layers_are_counted_by_kind_and_precision(key):
    found = audit(
        "fp16",
        ("model.0", "CaskConvolution", key, ["Row major linear FP16 format"]),
        ("model.1", "CaskConvolution", key, ["Half"]),
        ("Reformatting CopyNode for Input Tensor 0 to model.0/conv/Conv", "Reformat", key, ["Float"]),
        ("attn", "CaskGemmMatrixMultiply", key, ["Half", "Half"]),
        ("PWN(silu)", "PointWiseV2", key, ["Half"]),
    )
    assert found.kinds["CaskConvolution"] == {"fp16": 2}
    assert found.matrix == {"fp16": 3}
    assert found.check({"fp16": 3}) is found
    assert "CaskConvolution" in str(found) and found.as_dict()["matrix"] == {"fp16": 3}


def test_the_known_accident_is_an_error():
    found = audit("fp16", *(("c", "CaskConvolution", "Format/Datatype", ["Row major linear FP32"]),) * 80)
    with pytest.raises(PrecisionError, match=r"fp16 was not honoured: .* 80 .* fp32 80; expected at least 95% in fp16"):
        found.check({"fp16": 80})


def test_a_few_layers_may_be_fused_away_but_not_many():
    layers = [("c", "CaskConvolution", "Datatype", ["Half"])] * 96 + [
        ("c", "CaskConvolution", "Datatype", ["Float"])
    ] * 4
    audit("fp16", *layers).check({"fp16": 100})
    with pytest.raises(PrecisionError):
        audit("fp16", *layers[:80], *layers[96:] * 5).check({"fp16": 100})


def test_flags_of_tensorrt_10_bind_less_than_types():
    layers = [("c", "CaskConvolution", "Datatype", ["Half"])] * 6 + [
        ("c", "CaskConvolution", "Datatype", ["Float"])
    ] * 4
    audit("fp16", *layers).check({"fp16": 10}, flagged=True)
    with pytest.raises(PrecisionError):
        audit("fp16", *layers).check({"fp16": 10})
    with pytest.raises(PrecisionError):
        audit("fp16", *layers[4:]).check({"fp16": 10}, flagged=True)


def test_int8_is_held_against_the_quantized_convolutions():
    layers = [("c", "correlation", "Datatype", ["Int8"])] * 75 + [("c", "correlation", "Datatype", ["Half"])] * 13
    attention = [("m", "gemm", "Datatype", ["Half"])] * 20
    audit("int8", *layers, *attention).check({"int8": 75, "fp16": 13})
    with pytest.raises(PrecisionError, match="int8 was not honoured"):
        audit("int8", *layers[30:], *attention).check({"int8": 75, "fp16": 13})
    with pytest.raises(PrecisionError):
        audit("int8", *layers).check({"fp16": 88})  # a graph without Q/DQ nodes cannot become an INT8 engine


def test_tf32_is_fp32_to_the_inspector():
    audit("tf32", ("c", "CaskConvolution", "Datatype", ["Float"])).check({"fp32": 1})


def test_what_cannot_be_read_back_is_an_error():
    with pytest.raises(PrecisionError, match="without detailed profiling verbosity"):
        parse_layers('{"Layers": ["conv1", "conv2"], "Bindings": []}')
    with pytest.raises(PrecisionError, match="cannot be read back"):
        audit("fp16", ("r", "Reformat", "Datatype", ["Half"])).check()
    with pytest.raises(PrecisionError, match="cannot be read back"):
        PrecisionAudit.of([], "fp16", "build log").check()


# Printed by TensorRT-RTX 1.7 (first three) and by TensorRT 8 (last two), shortened.
LOG = """Layers:
Name: __myl_CorrSilu_myl0_1, LayerType: runtime_fusion, Inputs: [ { Name: a, Dimensions: [1,4,192,192], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [16,4,3,3], Datatype: Int8, Format: (NHWC) }], Outputs: [ { Name: b, Dimensions: [1,16,96,96], Datatype: Float, Format: (NHWC) }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: /model.0/conv/Conv]
Name: __mye17280_myl0_155, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0
Name: /model.9/Concat, LayerType: runtime_function, Inputs: [ { Name: a, Dimensions: [1,128,6,6], Datatype: Half, Format: (NHWC) }, { Name: b, Dimensions: [1,128,6,6], Datatype: Half, Format: (NHWC) }], Constants: [], Outputs: [ { Name: c, Dimensions: [1,256,6,6], Datatype: Half, Format: (NHWC) }], TacticName: x
Layer(CaskConvolution): conv1_h + conv1_relu, Tactic: 1062367460111450758, data[Half(-2,3,300,300)] -> conv1_h[Float(-2,32,150,150)]
Layer(Reformat): Reformatting CopyNode for Output Tensor 0 to conv1_pool, Tactic: 0, a[Float(-2,32,75,75)], b[Int8(3)] -> c[Half(-2,32,75,75)]

I/O Tensors:
 Name: images, IOMode: Input, DataType: Float, Dimensions: [1,3,128,128]
"""  # noqa: E501


def test_the_builders_log_is_read():
    found = parse_layers(LOG)
    assert [(layer.kind, layer.inputs, layer.outputs) for layer in found] == [
        ("runtime_fusion", ("fp16",), ("fp32",)),
        ("signal", (), ()),
        ("runtime_function", ("fp16", "fp16"), ("fp16",)),
        ("CaskConvolution", ("fp16",), ("fp32",)),
        ("Reformat", ("fp32", "int8"), ("fp16",)),
    ]
    assert PrecisionAudit.of(found, "fp16", "build log").matrix == {"fp16": 2}


def test_data_movement_is_no_convolution_whatever_its_name():
    for kind in ("kgen", "Reformat", "NoOp", "Constant", "runtime_function", "signal"):
        assert not Layer("/model.0/conv/Conv_myl0_3", kind, ("fp32",), ()).is_matrix
    assert Layer("__myl_CorrSilu_myl0_4", "runtime_fusion", ("fp16",), ()).is_matrix
    assert not Layer("__myl_MulAdd_myl0_4", "runtime_fusion", ("fp16",), ()).is_matrix
