"""nmODE² in graphs: torch.compile, torch.export, TorchScript, ONNX, and the Triton kernels."""

import math
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from meddet_yolo.nn.nmode import NmODE2, NmODE2Activation, nmode2

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile on a CPU needs a C++ compiler"
)


@pytest.fixture
def g() -> torch.Tensor:
    return torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(1)) * 3


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_in_one_graph_with_gradient(g, dtype):
    wide = g.to(dtype).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(nmode2, fullgraph=True)
    eager, fast = wide.clone().requires_grad_(), wide.clone().requires_grad_()
    y = compiled(fast)
    assert y.stride() == wide.stride() and y.dtype == dtype
    torch.testing.assert_close(y, nmode2(eager), rtol=0, atol=1e-6)
    y.sum().backward()
    nmode2(eager).sum().backward()
    torch.testing.assert_close(fast.grad, eager.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_of_several_intervals_and_orders_share_a_graph(g, dtype):
    def layers(x: torch.Tensor) -> torch.Tensor:
        return nmode2(x) + nmode2(2 * x, 0.5) + nmode2(-x)

    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    leaves = [g.to(dtype, copy=True).requires_grad_() for _ in range(2)]
    results = [function(leaf) for function, leaf in zip((layers, compiled), leaves, strict=True)]
    for result in results:
        result.sum().backward()
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=0, atol=1e-4)


@pytest.mark.slow("compiles")
@needs_compiler
def test_compiled_block_takes_changing_sizes():
    block = NmODE2(8, t_end=0.9375).eval()  # a t_end whose tables are made while compiling
    compiled = torch.compile(block, dynamic=True, fullgraph=True)
    for side in (5, 8, 13):
        x = torch.randn(1, 8, side, side + 1)
        torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_program(g, strict):
    program = torch.export.export(NmODE2Activation().eval(), (g,), strict=strict)
    torch.testing.assert_close(program.module()(g), nmode2(g), rtol=0, atol=1e-6)


def test_building_tables_inside_an_export_leaves_none_behind(g):
    t_end = 0.625  # a t_end that no other test has built tables for
    torch.export.export(NmODE2Activation(t_end).eval(), (g,), strict=False)
    assert nmode2(g, t_end).isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_trace_serves_other_sizes(g):
    traced = torch.jit.trace(NmODE2Activation(), g)
    other = torch.randn(1, 8, 4, 11) * 3
    torch.testing.assert_close(traced(other), nmode2(other), rtol=0, atol=2e-6)


def onnx_session(module, example, path, opset, **options):
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(
        module, (example,), path, opset_version=opset, input_names=["x"], output_names=["y"], dynamo=False, **options
    )
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("opset", [17, 20])
def test_onnx_round_trip(tmp_path, opset):
    onnx = pytest.importorskip("onnx")
    block = NmODE2(8)
    x = torch.randn(2, 8, 9, 7) * 3
    block(x)
    block.eval()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    session = onnx_session(block, x, tmp_path / "block.onnx", opset, dynamic_axes=axes)
    for shape in ((2, 8, 9, 7), (1, 8, 5, 12)):
        x = torch.randn(shape) * 3
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], block(x).detach(), rtol=0, atol=1e-5)
    model = onnx.load(tmp_path / "block.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}  # no custom operator
    assert (tmp_path / "block.onnx").stat().st_size < 150_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_holds_one_pair_of_tables_however_often_it_is_used(tmp_path):
    onnx_session(
        torch.nn.Sequential(*(NmODE2(4) for _ in range(5))).eval(), torch.zeros(1, 4, 3, 3), tmp_path / "m", 17
    )
    assert (tmp_path / "m").stat().st_size < 150_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("channels", [1, 6, 7, 16])  # which make 1, 2, 1 and 4 rows
def test_onnx_of_any_width(tmp_path, channels):
    x = torch.randn(2, channels, 5, 3) * 3
    y = onnx_session(NmODE2Activation(), x, tmp_path / "act.onnx", 17).run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(y, nmode2(x), rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_survives_what_has_no_index(tmp_path):
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -1e20, 4.0, 0.0])
    y = onnx_session(NmODE2Activation(), x, tmp_path / "act.onnx", 17).run(None, {"x": x.numpy()})[0]
    assert np.isnan(y[:3]).all() and np.isfinite(y[3:]).all()
    np.testing.assert_allclose(y[5:], nmode2(x[5:]), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_of_a_half_precision_model_computes_in_single_precision(tmp_path):
    x = torch.linspace(-100, 100, 4 * 64 * 64).reshape(1, 4, 64, 64).half()
    y = onnx_session(NmODE2Activation().half(), x, tmp_path / "half.onnx", 17).run(None, {"x": x.numpy()})[0]
    assert y.dtype == np.float16
    exact = nmode2(x.double())
    # Half a unit in the last place, and what the single multiplication of the range reduction leaves at |g| = 100.
    assert (torch.from_numpy(y).double() - exact).abs().max() <= 2**-12 + 2e-5


def openvino_output(model, x, precision="f32"):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return torch.from_numpy(compiled([x.numpy()])[0].copy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_openvino_agrees_whatever_its_precision(g, precision):
    openvino = pytest.importorskip("openvino")
    model = openvino.convert_model(NmODE2Activation().eval(), example_input=g, input=[g.shape])
    x = g.clone()
    x[0, 0, 0] = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -1e20, 4.0, 0.0])
    y = openvino_output(model, x, precision)
    usual = x.abs() < 20
    torch.testing.assert_close(y[usual], nmode2(x)[usual], rtol=0, atol=5e-6)
    assert y[0, 0, 0, 3:5].isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensorrt_rtx_builds_the_exported_graph(tmp_path, dtype):
    tensorrt = pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnxruntime")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), NmODE2Activation(), torch.nn.Conv2d(8, 2, 1)).to(dtype)
    onnx_session(layers, torch.zeros(1, 3, 8, 8, dtype=dtype), tmp_path / "m.onnx", 17)
    builder = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR))
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, tensorrt.Logger(tensorrt.Logger.ERROR))
    assert parser.parse((tmp_path / "m.onnx").read_bytes()), parser.get_error(0).desc()
    lookups = [layer for layer in map(network.get_layer, range(network.num_layers)) if "Gather" in layer.name]
    assert lookups and all(layer.get_output(0).dtype == tensorrt.float32 for layer in lookups)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None


@pytest.mark.slow("interprets GPU kernels")
def test_triton_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    script = """
        import torch
        from meddet_yolo.nn.nmode.cpu import evaluate_on_cpu
        from meddet_yolo.nn.nmode.triton import launch

        for dtype, reach in ((torch.float32, 3.0), (torch.float32, 1e4), (torch.float16, 3.0), (torch.bfloat16, 3.0)):
            g = (torch.randn(2, 3, 50, 7) * reach).clamp(-1e4, 1e4).to(dtype)
            g = g.contiguous(memory_format=torch.channels_last)
            g[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
            weight = torch.randn(2, 3, 50, 7).to(dtype)
            for order in (0, 1):
                for scale in (None, weight):
                    result, expected = launch(g, 1.0, order, scale), evaluate_on_cpu(g, 1.0, order, scale)
                    assert result.stride() == g.stride()
                    tolerance = 2e-2 if dtype == torch.bfloat16 and scale is not None else 1e-5
                    torch.testing.assert_close(result, expected, rtol=tolerance, atol=1e-5, equal_nan=True)
        assert launch(torch.zeros(0), 1.0, 0, None).shape == (0,)
        print("same")
    """
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "same", done.stderr


def cuda_pair(g, dtype):
    """The same leaf on the GPU and on the CPU."""
    g = g.to(dtype)
    return g.cuda().requires_grad_(), g.clone().requires_grad_()


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("reach", [3.0, 1e4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(g, dtype, memory_format, reach, compiled):
    scaled = (g / 3 * reach).contiguous(memory_format=memory_format)
    there, here = cuda_pair(scaled, dtype)
    result = (torch.compile(nmode2) if compiled else nmode2)(there)
    result.sum().backward()
    nmode2(here).sum().backward()
    assert result.stride() == here.stride()
    torch.testing.assert_close(result.cpu(), nmode2(here), rtol=0, atol=1e-6)
    torch.testing.assert_close(there.grad.cpu(), here.grad, rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_cuda_kernels_pass_nan_on(g):
    g[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    torch.testing.assert_close(nmode2(g.cuda()).cpu(), nmode2(g), rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.gpu
def test_cuda_graph_replays_the_kernels(g):
    static = g.cuda()
    nmode2(static)  # builds the tables and compiles the kernel, which a capture must not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = nmode2(static)
    static.copy_(-g)
    graph.replay()
    torch.testing.assert_close(result.cpu(), nmode2(-g), rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_cuda_makes_one_tensor_each_way():
    g = torch.randn(8, 64, 80, 80, device="cuda", requires_grad=True)
    weight = torch.ones_like(g)
    nmode2(g).backward(weight)
    g.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nmode2(g).backward(weight)
    assert torch.cuda.max_memory_allocated() - before <= 2 * g.numel() * g.element_size() + 2**20
