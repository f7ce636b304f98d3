"""A network small enough to know its answer: brightness is confidence."""

import onnx
from onnx import TensorProto, helper

META = {"task": "detect", "names": {0: "disc"}, "stride": 32, "imgsz": [64, 64], "meddet_runtime_version": "10.13.0"}


def toy_model(path, shape, dtype=TensorProto.FLOAT, outputs=1):
    """A network whose output is one end-to-end row an image: its mean brightness is the confidence."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("ReduceMean", ["mean", "axes"], ["grey"], keepdims=1),
        helper.make_node("Reshape", ["grey", "flat"], ["score16"]),
        helper.make_node("Cast", ["score16"], ["score"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["score"], ["dims"], start=0, end=1),
        helper.make_node("Concat", ["dims", "tail"], ["wide"], axis=0),
        helper.make_node("Expand", ["box", "wide"], ["boxes"]),
        helper.make_node("Expand", ["class", "thin"], ["one"]),
        helper.make_node("Concat", ["dims", "ones"], ["each"], axis=0),
        helper.make_node("Expand", ["one", "each"], ["classes"]),
        helper.make_node("Concat", ["boxes", "score", "classes"], ["output0"], axis=2),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("flat", TensorProto.INT64, [3], [-1, 1, 1]),
        helper.make_tensor("tail", TensorProto.INT64, [2], [1, 4]),
        helper.make_tensor("ones", TensorProto.INT64, [2], [1, 1]),
        helper.make_tensor("thin", TensorProto.INT64, [3], [1, 1, 1]),
        helper.make_tensor("box", TensorProto.FLOAT, [1, 1, 4], [8, 8, 24, 40]),
        helper.make_tensor("class", TensorProto.FLOAT, [1, 1, 1], [0]),
    ]
    results = [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["b", 1, 6])]
    if outputs == 2:
        results.append(helper.make_tensor_value_info("score", TensorProto.FLOAT, ["b", 1, 1]))
    entry = helper.make_tensor_value_info("images", dtype, shape)
    graph = helper.make_graph(nodes, "net", [entry], results, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path
