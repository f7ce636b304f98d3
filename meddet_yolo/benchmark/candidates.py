"""What a benchmark runs: every model in every back end and precision, exported where necessary, or why not."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meddet_yolo.benchmark.sessions import TorchSession
from meddet_yolo.evaluate.info import build_model, measure_size
from meddet_yolo.export.calibration import images_for
from meddet_yolo.export.exporter import on_gpu
from meddet_yolo.export.formats import FORMATS, Format, format_of
from meddet_yolo.trt.backends import gpu_info
from meddet_yolo.trt.engine_file import sha256
from meddet_yolo.trt.original import channels_of
from meddet_yolo.trt.request import ExportRequest
from meddet_yolo.trt.runner import Runner

__all__ = ["BACKENDS", "Candidate", "Skipped", "Source", "Workshop"]

_FORMATS: dict[str, Format] = {form.backend: form for form in FORMATS.values()}
BACKENDS: dict[str, tuple[str, ...]] = {  # and the precisions that each is measured in
    "pytorch": ("fp32", "fp16"),
    **{backend: form.measured for backend, form in _FORMATS.items()},
}


class Skipped(Exception):
    """A combination that cannot be had here, and why."""


@dataclass
class Source:
    """A model that was asked for.

    Attributes:
        name: What the tables call it.
        path: Where it stands, or the name of a model file.
        trained: Whether its accuracy means anything: a model from a YAML has random weights.
        nc: Number of classes of a model from a YAML; what the file says where None.
        parameters: Number of parameters, once it is loaded.
    """

    name: str
    path: str
    trained: bool = True
    nc: int | None = None
    parameters: int | None = None
    _model: Any = None

    @property
    def kind(self) -> str:
        """Return "model" (checkpoint or YAML) or how an exported one is spelled: "onnx", "openvino" or "engine"."""
        form = format_of(self.path)
        return form.spellings[0] if form else "model"

    def own_precision(self) -> str | None:
        """Return the precision that an exported file says it has; None for a model, or where it says nothing."""
        form = format_of(self.path)
        if form is None:
            return None
        try:
            return form.precision_of(self.path)
        except (OSError, ValueError):  # opening it will say what is wrong with it
            return None

    def model(self) -> Any:
        """Return a fresh copy of the loaded model; it is loaded once."""
        if self._model is None:
            self._model = _load(self.path) if self.trained else _untrained(self.path, self.nc)
            self.parameters = sum(p.numel() for p in self._model.model.parameters())
        return deepcopy(self._model)

    def gflops(self, imgsz: int) -> float | None:
        """Return 10^9 floating point operations for an image (two a multiply-add); None for an exported file."""
        if self.kind != "model":
            return None
        return measure_size(self.model().model.float().eval(), imgsz).gflops

    def has_end2end(self) -> bool:
        """Return whether the model has a head that needs no NMS."""
        return getattr(self.model().model.model[-1], "one2one_cv2", None) is not None


@dataclass
class Candidate:
    """One combination, ready to run.

    Attributes:
        runner: From images to boxes; None where it was built but cannot run here.
        file: What runs; None for PyTorch.
        build_seconds: Time that exporting took; None where it was there already.
        reason: Why it cannot run here.
    """

    source: Source
    backend: str
    precision: str
    imgsz: int
    batch: int
    runner: Runner | None = None
    file: Path | None = None
    build_seconds: float | None = None
    memory_bytes: int | None = None
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Model, back end and precision in a line."""
        return f"{self.source.name} {self.backend} {self.precision} {self.imgsz}px b{self.batch}"

    def bytes(self) -> int | None:
        """Return the size of what runs on disk."""
        if self.file is None:
            return None
        if self.file.is_dir():
            return sum(f.stat().st_size for f in self.file.iterdir())
        return self.file.stat().st_size


class Workshop:
    """Makes candidates; what was exported before, from the same model and settings, is taken again.

    Args:
        folder: Where exported files go.
        device: Number of the GPU.
        threads: CPU threads; 0 lets each back end choose.
        data: Data set to calibrate int8 and fp8 on, as an export does; None without one.
        compute_capability: GPU generations that RTX engines are built for; this machine's where None.
        end2end: Whether models that have a head without NMS run with it.
        trust: Whether to load given engines that have no sidecar with their hash.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: int = 0,
        threads: int = 0,
        data: str | None = None,
        compute_capability: Any = None,
        end2end: bool = False,
        trust: bool = False,
    ) -> None:
        self.folder = folder
        self.device = device
        self.threads = threads
        self.data = data
        self._calibration: tuple[tuple[int, int], list[NDArray[np.float32]]] | None = None
        self.compute_capability = compute_capability
        self.end2end = end2end
        self.trust = trust
        self.gpu = torch.cuda.is_available()

    def unavailable(self, backend: str) -> str:
        """Return why a back end cannot be used here at all; empty where it can."""
        return _FORMATS[backend].unavailable(self.gpu) if backend in _FORMATS else ""

    def make(self, source: Source, backend: str, precision: str, imgsz: int, batch: int) -> Candidate:
        """Make a candidate.

        Raises:
            Skipped: If there is no such combination.
        """
        if precision not in BACKENDS[backend] and precision != source.own_precision():
            why = "no faster than fp32 on a CPU" if backend != "pytorch" else "PyTorch quantizes by other tools"
            why = "measured in OpenVINO" if precision == "bf16" else why
            *most, last = BACKENDS[backend]
            raise Skipped(f"{backend} is measured in {', '.join(most)} and {last} ({precision}: {why})")
        if backend == "pytorch" and precision == "fp16" and not self.gpu:
            raise Skipped("PyTorch in half precision needs a GPU")
        candidate = Candidate(source, backend, precision, imgsz, batch)
        start = time.perf_counter()
        used = self._gpu_memory()
        if backend == "pytorch":
            self._pytorch(candidate)
        else:
            made = self._file(candidate)
            candidate.build_seconds = time.perf_counter() - start if made else None
            self._open(candidate)
        after = self._gpu_memory()
        candidate.memory_bytes = after - used if used is not None and after is not None else None
        return candidate

    def _end2end(self, source: Source) -> bool:
        return self.end2end and source.has_end2end()

    def _gpu_memory(self) -> int | None:
        """Return the bytes in use on the GPU."""
        if not self.gpu:
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    def _pytorch(self, candidate: Candidate) -> None:
        """Open a model in PyTorch."""
        if candidate.source.kind != "model":
            raise Skipped(f"{candidate.source.path} is exported already: PyTorch needs the checkpoint")
        size = (candidate.imgsz, candidate.imgsz)
        device = f"cuda:{self.device}" if self.gpu else "cpu"
        model = candidate.source.model()
        net = model.model
        net.names = model.names
        if self._end2end(candidate.source):
            net.end2end = True
        session = TorchSession(net, size, candidate.batch, device, candidate.precision == "fp16")
        candidate.runner = Runner(session)

    def _file(self, candidate: Candidate) -> bool:
        """Find or make the file that runs; return whether it was made now."""
        source, backend = candidate.source, candidate.backend
        if source.kind != "model":
            self._take(candidate)
            return False
        form = _maker(_FORMATS[backend], candidate.precision)
        name = f"{_safe(source.name)}-{candidate.imgsz}-b{candidate.batch}-{candidate.precision}"
        if self._end2end(source):
            name += "-end2end"
        if form.on_gpu:
            name += f"-{backend}"
        file = self.folder / f"{name}{form.suffix}"
        key = self._key(candidate)
        candidate.file = file
        mark = file.with_name(f"{file.name}.key")
        if file.exists() and mark.is_file() and mark.read_text() == key:
            return False
        mark.unlink(missing_ok=True)
        self._export(candidate, form, file)
        mark.write_text(key)
        return True

    def _key(self, candidate: Candidate) -> str:
        """Return what an exported file depends on."""
        source = candidate.source
        path = Path(source.path)
        identity = (
            sha256(path) if path.is_file() else hashlib.sha256(repr(source.model().model.yaml).encode()).hexdigest()
        )
        calibration = ""
        if candidate.precision in ("int8", "fp8"):
            digest = hashlib.sha256()
            for image in self._images(candidate) or ():
                digest.update(image.tobytes())
            calibration = digest.hexdigest()
        form = _FORMATS[candidate.backend]
        modules = ("torch", "ultralytics", "meddet_yolo", form.module)
        versions = {module: getattr(import_module(module), "__version__", "") for module in modules}
        gpu = None
        if form.on_gpu and self.gpu:  # engines are made for the GPU at hand
            with on_gpu(self.device):
                gpu = gpu_info()
        return json.dumps([identity, calibration, str(self.compute_capability), versions, gpu, self._end2end(source)])

    def _request(self, candidate: Candidate) -> ExportRequest:
        """Return what the export shall be."""
        capability = self.compute_capability
        if candidate.backend == "rtx" and capability is None and self.gpu:
            capability = "{}.{}".format(*torch.cuda.get_device_capability(self.device))
        return ExportRequest(
            precision=candidate.precision,
            imgsz=candidate.imgsz,
            batch=candidate.batch,
            end2end=self._end2end(candidate.source),
            compute_capability=capability if candidate.backend == "rtx" else None,
        )

    def _images(self, candidate: Candidate) -> list[NDArray[np.float32]] | None:
        """Return the images that an export with the same data set is compared and calibrated with.

        Raises:
            Skipped: If there is no data set to take them from.
        """
        request = self._request(candidate)
        if self.data is None and request.quantized:
            raise Skipped(f"{candidate.precision} is calibrated on images: give data=")
        model = candidate.source.model()
        if not request.quantized:
            return images_for(model, request, self.data)
        wanted = (candidate.imgsz, channels_of(model))
        if (
            self._calibration is None or self._calibration[0] != wanted
        ):  # the last ones are kept, not all: they are large
            self._calibration = (wanted, images_for(model, request, self.data) or [])
        return self._calibration[1]

    def _export(self, candidate: Candidate, form: Format, file: Path) -> None:
        """Export a model as `meddet export` does."""
        request = replace(self._request(candidate), images=self._images(candidate))
        with on_gpu(self.device if form.on_gpu and self.gpu else None):
            form.export(candidate.source.model(), file, request)

    def _take(self, candidate: Candidate) -> None:
        """Take a file that was exported before, if it fits the combination."""
        source, backend = candidate.source, candidate.backend
        path = Path(source.path)
        form = format_of(path)
        assert form is not None  # or it would be a model
        fitting = [f.backend for f in FORMATS.values() if form.suffix in (f.suffix, *f.also)]
        if form.on_gpu:
            fitting = [str(form.facts(path).get("meddet_runtime") or "tensorrt")]
        if backend not in fitting:
            raise Skipped(f"{path.name} runs in {' and '.join(fitting)} only")
        own = source.own_precision()
        if own not in (None, candidate.precision):
            raise Skipped(f"{path.name} is {own}")
        candidate.file = path

    def _open(self, candidate: Candidate) -> None:
        """Open the exported file."""
        file = candidate.file
        assert file is not None
        form = _FORMATS[candidate.backend]
        if form.on_gpu:
            candidate.facts["audit"] = form.facts(file).get("meddet_audit")
        if form.on_gpu and not self.gpu:
            candidate.reason = "built; no CUDA GPU to run it on"
            return
        options = {"device": self.device, "trust": self.trust} if form.on_gpu else {"threads": self.threads}
        candidate.runner = Runner(form.open(file, **options))
        shape = candidate.runner.session.limits
        wanted = (candidate.batch, candidate.imgsz, candidate.imgsz)
        if any(not a <= b <= c for a, b, c in zip(_bhw(shape[0]), wanted, _bhw(shape[2]), strict=True)):
            candidate.runner.close()
            candidate.runner = None
            raise Skipped(f"{file.name} takes {shape[2]}, not {candidate.imgsz} px in batches of {candidate.batch}")
        candidate.runner.imgsz = (candidate.imgsz, candidate.imgsz)


def _maker(form: Format, precision: str) -> Format:
    """Return the format whose files a back end runs in a precision: its own, or one that it reads too."""
    others = (other for other in FORMATS.values() if other.suffix in form.also)
    return next(each for each in (form, *others) if precision in each.precisions)


def _load(path: str) -> Any:
    """Return a loaded checkpoint."""
    from meddet_yolo.model import MedDet

    return MedDet(path, task="detect")


def _untrained(path: str, nc: int | None) -> Any:
    """Return a model of a model file with random weights, the same every time, without fetching any."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    torch.manual_seed(0)
    net: Any = build_model(path, nc)
    net.task, net.args = "detect", dict(DEFAULT_CFG_DICT)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / f"{Path(path).stem}.pt"
        train_args = {**DEFAULT_CFG_DICT, "task": "detect", "model": Path(path).name}
        torch.save({"epoch": -1, "model": net, "train_args": train_args}, checkpoint)
        return _load(str(checkpoint))


def _bhw(shape: Sequence[int]) -> tuple[int, int, int]:
    return shape[0], shape[2], shape[3]


def _safe(name: str) -> str:
    """Return a name that can be a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
