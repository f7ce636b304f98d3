"""Which form of nmODE² runs fastest in ONNX Runtime and OpenVINO on a CPU?

Each candidate is exported alone, as Ultralytics exports a model (torch.onnx.export for ONNX Runtime, a traced module
for OpenVINO), and timed on one (1, 64, 80, 80) map in turn with SiLU and GELU. "as exported" is what `NmODE2Activation`
does: lines by GatherElements in ONNX, lines by Gather with the channels last in every other trace. The latter pays
alone for two reorderings that a detector, whose convolutions have the channels last anyway, does not need.

    python benchmarks/nmode2_export.py --threads 2
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
import torch.nn.functional as F
from nmode2_timing import CLOCKS, header, interleave, ratio, summary, write
from torch import Tensor, nn

from meddet_yolo.nn.nmode import NmODE2Activation
from meddet_yolo.nn.nmode.closed import closed_form, plain_table

FORM = closed_form(1.0)


def reduced(g: Tensor) -> Tensor:
    """Return g minus the nearest multiple of pi, in units of pi."""
    turns = g * (1 / math.pi)
    return turns - torch.round(turns)


def fourier_series(g: Tensor) -> Tensor:
    """Fourier series of f by Clenshaw's recurrence, truncated at 1e-7."""
    terms = [complex(c) for c in FORM.coefficients if abs(c) > 1e-8]
    cos, sin = torch.cos(2 * math.pi * reduced(g)), torch.sin(2 * math.pi * reduced(g))
    even = even_next = odd = odd_next = torch.zeros_like(cos)
    for term in terms[:0:-1]:
        even, even_next = term.real + 2 * cos * even - even_next, even
        odd, odd_next = -term.imag + 2 * cos * odd - odd_next, odd
    return terms[0].real + cos * even - even_next + sin * odd


def warped_polynomial(g: Tensor) -> Tensor:
    """Polynomials in the cosine and sine of a Moebius-warped angle, in which 16 harmonics suffice for 1e-6."""
    pole, degree, points = complex(-0.0928, -0.2853), 16, 1024
    circle = np.exp(2j * np.pi * np.arange(points) / points)
    samples = FORM(np.angle((circle + pole) / (1 + np.conj(pole) * circle)) / 2)
    spectrum = np.fft.rfft(samples)[: degree + 1] / points
    spectrum[1:] *= 2
    even = np.polynomial.chebyshev.cheb2poly(spectrum.real)
    odd, older, newer = np.zeros(degree), np.array([0.0]), np.array([1.0])  # sin(k a) = sin(a) U_{k-1}(cos a)
    for k in range(1, degree + 1):
        odd[: len(newer)] -= spectrum.imag[k] * newer
        older, newer = newer, np.polynomial.polynomial.polysub(2 * np.append(0.0, newer), older)
    x, y = torch.cos(2 * math.pi * reduced(g)), torch.sin(2 * math.pi * reduced(g))
    square = pole**2
    scale = 1 / ((1 + abs(pole) ** 2) - 2 * pole.real * x - 2 * pole.imag * y)
    u = ((1 + square.real) * x + square.imag * y - 2 * pole.real) * scale
    v = ((1 - square.real) * y + square.imag * x - 2 * pole.imag) * scale
    return horner(u, even) + v * horner(u, odd)


def horner(x: Tensor, coefficients: np.ndarray) -> Tensor:
    """Evaluate a polynomial, lowest coefficient first."""
    result = coefficients[-1].item() * x + coefficients[-2].item()
    for coefficient in coefficients[-3::-1]:
        result = result * x + coefficient.item()
    return result


def lines_by_gather(g: Tensor) -> Tensor:
    """The lines that `NmODE2Activation` exports, with ONNX Gather, which keeps the shape of its index."""
    table = plain_table(1.0, 0)
    u = reduced(g)
    cell = (u * table.size + table.size / 2).to(torch.int32)
    return torch.from_numpy(table.intercepts)[cell] + u * torch.from_numpy(table.slopes)[cell]


def lines_through_their_middle(g: Tensor) -> Tensor:
    """Value and slope in the middle of each cell: exact to more digits, for two more operations."""
    table = plain_table(1.0, 0)
    middle = (torch.arange(table.size + 1) + 0.5) / table.size - 0.5
    slopes = torch.from_numpy(table.slopes)
    values = torch.from_numpy(table.intercepts) + slopes * middle
    x = reduced(g) * table.size + table.size / 2
    k = torch.floor(x)
    cell = k.to(torch.int64).reshape(-1)
    value, slope = (torch.gather(part, 0, cell).reshape(g.shape) for part in (values, slopes / table.size))
    return value + (x - k - 0.5) * slope


def nearest_of_65536(g: Tensor) -> Tensor:
    """Nearest entry of a long table, without interpolation: an error of 3.5e-5."""
    size = 65536
    values = torch.from_numpy(FORM((np.arange(size + 257) - size // 2 - 128) * np.pi / size).astype(np.float32))
    index = (torch.round(reduced(g) * size) + (size // 2 + 128)).to(torch.int64)
    return torch.gather(values, 0, index.reshape(-1)).reshape(g.shape)


CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU": F.gelu,
    "SiLU": F.silu,
    "Fourier series": fourier_series,
    "warped polynomial": warped_polynomial,
    "65,536 entries, no interpolation": nearest_of_65536,
    "lines through the middle, GatherElements": lines_through_their_middle,
    "lines, Gather": lines_by_gather,
    "as exported": NmODE2Activation(),
}


class Wrapped(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, g: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(g)


def onnx_call(path: Path, g: Tensor, threads: int) -> Callable[[], np.ndarray]:
    """Return a run of an ONNX file in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"g": g.numpy()})[0]


def openvino_call(module: nn.Module, g: Tensor, threads: int) -> Callable[[], np.ndarray]:
    """Return a run of a traced module in OpenVINO."""
    model = openvino.convert_model(module.eval(), example_input=g, input=[tuple(g.shape)])
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(g.numpy()))

    def call() -> np.ndarray:
        request.infer()
        return request.get_output_tensor().data

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    head = header(("torch", "onnxruntime", "openvino"), args.threads, args.clock)
    g = 2 * torch.randn((1, 64, 80, 80), generator=torch.Generator().manual_seed(0))
    exact = FORM(g.double().numpy())
    calls: dict[str, dict[str, Callable[[], np.ndarray]]] = {"ONNX Runtime": {}, "OpenVINO": {}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (name, function) in enumerate(CANDIDATES.items()):
            path = Path(folder) / f"{number}.onnx"
            names: dict[str, Any] = {"input_names": ["g"], "output_names": ["y"]}
            torch.onnx.export(Wrapped(function), (g,), path, opset_version=17, dynamo=False, **names)
            calls["ONNX Runtime"][name] = onnx_call(path, g, args.threads)
            calls["OpenVINO"][name] = openvino_call(Wrapped(function), g, args.threads)
        tables = {}
        for runtime, candidates in calls.items():
            times = interleave(candidates, args.rounds, args.clock)
            tables[runtime] = [
                {
                    "form": name,
                    **summary(times[name]),
                    "times SiLU": ratio(times[name], times["SiLU"]),
                    "error": None if name in ("GELU", "SiLU") else float(np.abs(call() - exact).max()),
                }
                for name, call in candidates.items()
            ]
    write("nmode2_export", "Forms of nmODE² for export, (1, 64, 80, 80)", head, tables)


if __name__ == "__main__":
    main()
