"""A TensorRT that builds without a GPU: the builder's API of TensorRT 10 and 11, its rules and its known accident.

A "plan" is the list of the engine's layers. Types come from the graph where the network is strongly typed, from the
flags where it is not; `dishonest` builds FP32 whatever was asked for and reports success, as `fp16=True` once did.
"""

from __future__ import annotations

import json
from enum import IntEnum
from types import SimpleNamespace

import onnx

from meddet_yolo.trt.backends import Backend

FLAGS = ["REFIT", "TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL"]
FLAGS_OF_10 = ["FP16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS"]
WORDS = {
    "fp32": "Row major linear FP32",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp8": "Row major linear FP8 format",
}


class _Logger:
    pass


class _Config:
    def __init__(self, trt):
        self.trt, self.flags, self.pools, self.profiles = trt, {trt.BuilderFlag.TF32}, {}, []
        self.profiling_verbosity = None
        self.cache = None

    def set_flag(self, flag):
        assert isinstance(flag, self.trt.BuilderFlag)
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)

    def create_timing_cache(self, blob):
        return SimpleNamespace(blob=blob, serialize=lambda: b"cache of " + self.trt.__version__.encode())

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.blob and cache.blob != cache.serialize():
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class _Network:
    def __init__(self, flags):
        self.flags, self.model, self.layers = flags, None, []

    @property
    def num_layers(self):
        return len(self.layers)

    num_inputs = num_outputs = 1

    def get_layer(self, k):
        return self.layers[k]

    def _tensor(self, value):
        shape = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
        return SimpleNamespace(name=value.name, shape=shape, dtype="DataType.FLOAT")

    def get_input(self, k):
        return self._tensor(self.model.graph.input[k])

    def get_output(self, k):
        return self._tensor(self.model.graph.output[k])


class _Layer:
    def __init__(self, trt, node):
        self.trt, self.name, self.node = trt, node.name, node
        self.type = trt.LayerType.CONVOLUTION if node.op_type == "Conv" else trt.LayerType.ELEMENTWISE
        self.num_outputs, self.precision, self.outputs = 1, None, {}

    def get_output_type(self, k):
        return self.trt.int32 if self.node.op_type in {"Cast", "Shape"} else self.trt.float32

    def set_output_type(self, k, dtype):
        self.outputs[k] = dtype


class _Parser:
    def __init__(self, network, logger):
        self.network, self.errors = network, []

    def parse_from_file(self, path):
        self.network.model = onnx.load(path)
        self.network.layers = [_Layer(self.trt, n) for n in self.network.model.graph.node]
        self.errors = [
            f"In node {k} with name: {n.name} and operator: {n.op_type} (import{n.op_type}): UNSUPPORTED_NODE"
            for k, n in enumerate(self.network.model.graph.node)
            if n.op_type in self.trt.unsupported
        ]
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, k):
        return self.errors[k]


def _conv_types(trt, network, config):
    """The precision of every convolution, as TensorRT's rules for typed and flagged networks have it."""
    graph = network.model.graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    strongly_typed = network.flags & 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    fp16 = getattr(trt.BuilderFlag, "FP16", None) in config.flags
    for node in (n for n in graph.node if n.op_type == "Conv"):
        weights = makers.get(node.input[1])
        if trt.dishonest:
            kind = "fp32"
        elif weights is not None and weights.op_type == "DequantizeLinear":
            kind = "int8" if kinds[weights.input[2]] == onnx.TensorProto.INT8 else "fp8"
        elif strongly_typed:
            kind = "fp16" if kinds.get(node.input[1]) == onnx.TensorProto.FLOAT16 else "fp32"
        else:
            kind = "fp16" if fp16 else "fp32"
        yield node, kind


class _Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        self.trt.networks.append(_Network(flags))
        return self.trt.networks[-1]

    def create_builder_config(self):
        self.trt.configs.append(_Config(self.trt))
        return self.trt.configs[-1]

    def create_optimization_profile(self):
        profile = SimpleNamespace(shapes={})
        profile.set_shape = lambda name, low, best, high: profile.shapes.update({name: (low, best, high)})
        return profile

    def build_serialized_network(self, network, config):
        if self.trt.fails:
            self.logger.log("Severity.ERROR", "Error Code 2: OutOfMemory (no room\n for tactic)")
            return None
        if -1 in network.get_input(0).shape and not config.profiles:
            self.logger.log("Severity.ERROR", "dynamic input without an optimization profile")
            return None
        layers = [
            {
                "Name": node.name,
                "LayerType": "CaskConvolution",
                "Inputs": [{"Name": "x", "Format/Datatype": WORDS[kind]}],
                "Outputs": [{"Name": "y", "Format/Datatype": WORDS["fp32"]}],
                "ParameterType": "Convolution",
            }
            for node, kind in _conv_types(self.trt, network, config)
        ]
        if config.profiling_verbosity is not self.trt.ProfilingVerbosity.DETAILED:
            layers = [layer["Name"] for layer in layers]
        return json.dumps({"Layers": layers, "Bindings": ["images", "output0"]}).encode()


class _Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, plan):
        def inspector():
            return SimpleNamespace(get_engine_information=lambda form: plan.decode())

        return SimpleNamespace(create_engine_inspector=inspector)


def fake_tensorrt(version="10.13.0", *, dishonest=False, fails=False, unsupported=()):
    """A TensorRT module of a version, with what it was asked for in `networks` and `configs`."""
    old = int(version.split(".")[0]) < 11
    trt = SimpleNamespace(
        __version__=version,
        BuilderFlag=IntEnum("BuilderFlag", FLAGS + (FLAGS_OF_10 if old else []), start=0),
        NetworkDefinitionCreationFlag=IntEnum(
            "NetworkDefinitionCreationFlag", (["EXPLICIT_BATCH"] if old else []) + ["STRONGLY_TYPED"], start=0
        ),
        ProfilingVerbosity=IntEnum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "NONE", "DETAILED"], start=0),
        HardwareCompatibilityLevel=IntEnum(
            "HardwareCompatibilityLevel", ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"], start=0
        ),
        MemoryPoolType=IntEnum("MemoryPoolType", ["WORKSPACE"], start=0),
        LayerInformationFormat=IntEnum("LayerInformationFormat", ["ONELINE", "JSON"], start=0),
        LayerType=IntEnum("LayerType", ["CONVOLUTION", "CONSTANT", "SHAPE", "ELEMENTWISE"], start=0),
        float32="float32",
        int32="int32",
        ILogger=type("ILogger", (_Logger,), {"__init__": lambda self: None}),
        networks=[],
        configs=[],
        dishonest=dishonest,
        fails=fails,
        unsupported=set(unsupported),
    )
    for name, base in (("Builder", _Builder), ("OnnxParser", _Parser), ("Runtime", _Runtime)):
        setattr(trt, name, type(name, (base,), {"trt": trt}))
    return Backend("tensorrt", trt)
