"""One table of what can be exported: how it is called, made and opened.

`meddet export`, the benchmark and the runner read it, so that what is measured and run is what users get. It stands
beside the runner, which must work where neither torch nor ultralytics is. A new format is a class here (or in a file of
its own) and a line in `FORMATS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from meddet_yolo.trt import builder, onnx_export, openvino_export
from meddet_yolo.trt.backends import RUNTIMES, gpu_info
from meddet_yolo.trt.engine_file import read_engine, read_sidecar
from meddet_yolo.trt.onnx_session import OnnxSession
from meddet_yolo.trt.openvino_session import OpenVinoSession, default_precision, model_file
from meddet_yolo.trt.precision import PRECISIONS
from meddet_yolo.trt.request import ENGINE_KEYS, ExportRequest
from meddet_yolo.trt.session import Session

__all__ = ["FORMATS", "Engine", "Format", "Onnx", "OpenVino", "format_of"]


class Format(ABC):
    """A kind of exported model.

    Attributes:
        name: Its key in `FORMATS`.
        spellings: What `format=` calls it.
        kind: What it is, for messages.
        suffix: How its files' or folders' names end.
        backend: What runs it, as the benchmark calls it.
        module: The Python module of that.
        also: Suffixes of other formats that this back end runs too.
        precisions: What it can be exported in.
        plain: The precision that is exported where none is asked for.
        measured: The precisions worth measuring here; those not among `precisions` run from a file of `also`.
        keys: Fields of `ExportRequest` that not every format takes.
        on_gpu: Whether it needs a GPU to run.
    """

    name: str
    spellings: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]
    suffix: ClassVar[str]
    backend: str
    module: str
    also: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]]
    plain: ClassVar[str] = "fp32"
    measured: ClassVar[tuple[str, ...]]
    keys: ClassVar[frozenset[str]] = frozenset()
    on_gpu: ClassVar[bool] = False

    def fits(self, path: str | Path) -> bool:
        """Return whether a path is one of this format, by its name."""
        return Path(path).suffix.lower() == self.suffix

    def unavailable(self, gpu: bool | None = None) -> str:
        """Return why it cannot be had on this machine; empty where it can.

        Args:
            gpu: Whether there is a GPU to use; None looks.
        """
        package = self.module.replace("_", "-")
        return f"{package} is not installed: pip install {package}" if find_spec(self.module) is None else ""

    def check(self, precision: str) -> None:
        """Refuse a precision that the format has not.

        Raises:
            ValueError: With those that it has.
        """
        if precision not in self.precisions:
            raise ValueError(f"precision={precision!r} is unknown: use one of {', '.join(self.precisions)}")

    @abstractmethod
    def export(self, original: Any, target: str | Path | None, request: ExportRequest) -> Path:
        """Export a model behind the parity gate.

        Args:
            original: Checkpoint, or a loaded Ultralytics (or `MedDet`) model.
            target: Where to write; None is beside the checkpoint.
            request: What it shall be; what this format does not take must be at its default.

        Returns:
            The path of what was written.

        Raises:
            ParityError: If it differs from the original; nothing is written.
            ValueError: If the request is not possible.
        """

    @abstractmethod
    def open(self, path: str | Path, **options: Any) -> Session:
        """Open an exported model.

        Args:
            path: The file or folder.
            **options: Of its session: `threads`, or on a GPU `device`, `trust`, ...
        """

    @abstractmethod
    def facts(self, path: str | Path) -> dict[str, Any]:
        """Return what its export wrote down under `meddet_...`; empty where somebody else made it."""

    def precision_of(self, path: str | Path) -> str | None:
        """Return the precision that an exported model has; None where nobody wrote it down."""
        return self.facts(path).get("meddet_precision")

    def describe(self, path: str | Path) -> list[str]:
        """Return what is to be said of an export besides its parity, in lines."""
        return []


class Onnx(Format):
    """An ONNX file, run by ONNX Runtime."""

    name = "onnx"
    spellings = ("onnx",)
    kind = "an .onnx file"
    suffix = ".onnx"
    backend = module = "onnxruntime"
    precisions = onnx_export.ONNX_PRECISIONS
    measured = ("fp32", "int8")
    keys = frozenset({"calibration", "opset"})

    def export(self, original: Any, target: str | Path | None, request: ExportRequest) -> Path:
        """Export to ONNX, see `export_onnx`."""
        own = request.changed("calibration", "opset")
        return onnx_export.export_onnx(original, target, precision=request.precision, **request.common(), **own)

    def open(self, path: str | Path, **options: Any) -> Session:
        """Open in ONNX Runtime."""
        return OnnxSession(path, **options)

    def facts(self, path: str | Path) -> dict[str, Any]:
        """Return what is in the sidecar."""
        return read_sidecar(path)


class OpenVino(Format):
    """A folder of OpenVINO's own format."""

    name = "openvino"
    spellings = ("openvino",)
    kind = "an _openvino_model folder"
    suffix = "_openvino_model"
    backend = module = "openvino"
    also = (".onnx",)  # int8 is made in ONNX; for the others its own format runs faster there
    precisions = openvino_export.OPENVINO_PRECISIONS
    measured = ("fp32", "bf16", "int8")

    def fits(self, path: str | Path) -> bool:
        """Return whether a path is a folder, or the file with the graph in it."""
        path = Path(path)
        return path.is_dir() or path.name.endswith(self.suffix) or path.suffix.lower() == ".xml"

    def check(self, precision: str) -> None:
        """Refuse what is not made in this format, and name the one that it is made in."""
        if precision not in self.precisions:
            raise ValueError(
                f"precision={precision} is not for format=openvino: use {', '.join(self.precisions[:-1])} or "
                f"{self.precisions[-1]}, or format=onnx precision={precision}, which OpenVINO runs too"
            )

    def export(self, original: Any, target: str | Path | None, request: ExportRequest) -> Path:
        """Export to OpenVINO, see `export_openvino`."""
        return openvino_export.export_openvino(original, target, precision=request.precision, **request.common())

    def open(self, path: str | Path, **options: Any) -> Session:
        """Open in OpenVINO, to be computed as the export was checked."""
        if Path(path).suffix.lower() == ".onnx":
            options = {"metadata": OnnxSession(path).metadata, **options}
        return OpenVinoSession(path, **options)

    def facts(self, path: str | Path) -> dict[str, Any]:
        """Return what is in the sidecar of the weights."""
        return read_sidecar(model_file(path).with_suffix(".bin"))

    def precision_of(self, path: str | Path) -> str | None:
        """Return the precision of an export of ours; for one of others what OpenVINO computes in here."""
        own = super().precision_of(path)
        return default_precision() if own is None and not self.unavailable() else own

    def describe(self, path: str | Path) -> list[str]:
        """Name the arithmetic, which the file alone does not decide."""
        facts = self.facts(path)
        return [f"OpenVINO, precision {facts['meddet_precision']}, computed in {facts['meddet_inference_precision']}"]


class Engine(Format):
    """An engine file of TensorRT or TensorRT-RTX.

    Args:
        name: The runtime's name.
    """

    spellings = ("engine", "tensorrt", "trt")
    kind = "an .engine file"
    suffix = ".engine"
    precisions = PRECISIONS
    plain = "fp16"
    measured = ("fp32", "fp16", "int8", "fp8")
    keys = ENGINE_KEYS | {"calibration", "opset"}
    on_gpu = True

    def __init__(self, name: str) -> None:
        self.name = self.backend = name
        self.module = RUNTIMES[name].module

    def unavailable(self, gpu: bool | None = None) -> str:
        """Return why no engine of this runtime can be built here."""
        if self.name == "tensorrt" and not (gpu_info() is not None if gpu is None else gpu):
            return "no CUDA GPU: TensorRT builds and runs engines on the GPU only"
        return super().unavailable(gpu)

    def export(self, original: Any, target: str | Path | None, request: ExportRequest) -> Path:
        """Build an engine, see `build_engine`."""
        common = request.common()
        common["options"] |= request.changed("opset")
        own = request.changed(*sorted(ENGINE_KEYS), "workspace", "calibration")
        return builder.build_engine(original, target, runtime=self.name, precision=request.precision, **common, **own)

    def open(self, path: str | Path, **options: Any) -> Session:
        """Open on a GPU, by the runtime that the file names."""
        from meddet_yolo.trt.engine_session import EngineSession

        return EngineSession(path, **options)

    def facts(self, path: str | Path) -> dict[str, Any]:
        """Return the file's header."""
        return read_engine(path, verify=False).metadata

    def describe(self, path: str | Path) -> list[str]:
        """Give the precision that was read back, by kind of layer."""
        facts = self.facts(path)
        runtime = RUNTIMES[str(facts["meddet_runtime"])].title
        lines = [f"{runtime} {facts['meddet_runtime_version']}, precision {facts['meddet_precision']} (read back)"]
        for kind, counts in {"convolutions": facts["meddet_audit"]["matrix"], **facts["meddet_audit"]["kinds"]}.items():
            lines.append(f"  {kind:<18} {', '.join(f'{name} {count}' for name, count in counts.items())}")
        return lines


FORMATS: dict[str, Format] = {form.name: form for form in (Onnx(), OpenVino(), Engine("tensorrt"), Engine("rtx"))}


def format_of(path: str | Path) -> Format | None:
    """Return the format of an exported file or folder by its name; None where it is none of the table.

    Examples:
        >>> format_of("best.onnx").name, format_of("best-bf16_openvino_model").name, format_of("best.pt")
        ('onnx', 'openvino', None)
    """
    return next((form for form in FORMATS.values() if form.fits(path)), None)
