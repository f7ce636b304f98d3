"""Run a detector without PyTorch, from images to boxes: an engine on a GPU, an ONNX or OpenVINO model anywhere.

Needs numpy and opencv, and TensorRT with pycuda or cuda-python for an engine, or onnxruntime or openvino:
`pip install --no-deps meddet-yolo` in a container that has these. Neither torch nor ultralytics is imported.

    python -m meddet_yolo.trt.runner student.engine image.png      # prints a line of JSON an image
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from meddet_yolo.trt.decode import Detections, decode
from meddet_yolo.trt.formats import FORMATS, format_of
from meddet_yolo.trt.onnx_session import OnnxSession
from meddet_yolo.trt.preprocess import Letterbox, preprocess, smallest_shape
from meddet_yolo.trt.recalibration import Recalibration, stored
from meddet_yolo.trt.session import Session

__all__ = ["EngineRunner", "OnnxRunner", "OnnxSession", "Runner", "Session", "open_runner"]

_OPTIONS = frozenset(
    {"conf", "iou", "classes", "agnostic", "max_det", "recalibration"}
)  # of a runner, whatever its session


class Runner:
    """From images to boxes with a session; a context manager.

    Threads may share a runner: a lock lets one in at a time, and what it returns is the caller's own. For throughput
    give each thread a runner of its own, which on a GPU has a stream of its own.

    Args:
        session: The network.
        conf: Only boxes of more than this confidence, 0..1.
        iou: Boxes of a class that overlap a better one by more than this are dropped, 0..1; raw heads only.
        classes: Only these classes.
        agnostic: Whether boxes of different classes suppress each other, too.
        max_det: Most boxes an image.
        recalibration: What makes confidences probabilities; `conf` is a probability, too, then. `open_runner`,
            `EngineRunner` and `OnnxRunner` take the one in the model's sidecar; None leaves confidences as they are.

    Attributes:
        names: Class names by number.
        imgsz: (H, W) that images are resized to.
        speed: Milliseconds an image of the last call: preprocess, inference, postprocess.
    """

    def __init__(
        self,
        session: Session,
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        classes: Sequence[int] | None = None,
        agnostic: bool = False,
        max_det: int = 300,
        recalibration: Recalibration | None = None,
    ) -> None:
        self.session = session
        self.recalibration = recalibration
        metadata = session.metadata
        task = metadata.get("task") or "detect"
        if task != "detect":
            raise ValueError(f"this is a model for the task {task!r}; the runner decodes detections only")
        self.names: dict[int, str] = dict(metadata.get("names") or {})
        self._stride = int(metadata.get("stride") or 32)
        # NMS inside the model gives end-to-end rows, too; the shape tells where the metadata does not.
        self._end2end = True if metadata.get("end2end") or _argument(metadata, "nms") else None
        self._options: dict[str, Any] = {"conf": conf, "iou": iou, "classes": classes}
        self._options |= {"agnostic": agnostic, "max_det": max_det}
        low, best, high = session.limits
        size = metadata.get("imgsz") or best[2:]
        rows, columns = (size, size) if isinstance(size, int) else tuple(size)
        self.imgsz = (min(max(rows, low[2]), high[2]), min(max(columns, low[3]), high[3]))
        self.channels = best[1]
        self.speed: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(
        self, images: NDArray[np.uint8] | str | Path | Sequence[NDArray[np.uint8] | str | Path], **options: Any
    ) -> list[Detections]:
        """Detect in images.

        Args:
            images: One or several: arrays (H, W) or (H, W, 3) of uint8 in OpenCV's order BGR, or files. More than the
                largest batch are done in turn.
            **options: `conf`, `iou`, `classes`, `agnostic`, `max_det` for this call alone.

        Returns:
            Boxes in pixels of each image.

        Raises:
            FileNotFoundError: If a file is missing.
            TypeError: If an image is no uint8 array, or an option is unknown.
            ValueError: If an image or an option has no valid value.
        """
        unknown = set(options) - set(self._options)
        if unknown:
            raise TypeError(f"unknown option {min(unknown)!r}: valid are {', '.join(self._options)}")
        if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.dtype != object):
            images = [images]
        arrays = [read_image(image) if isinstance(image, (str, Path)) else image for image in images]
        largest = self.session.limits[2][0]
        results: list[Detections] = []
        totals = np.zeros(3)
        with self._lock:
            for start in range(0, len(arrays), largest):
                some, seconds = self._run(arrays[start : start + largest], {**self._options, **options})
                results += some
                totals += seconds
            each = totals * 1e3 / max(len(arrays), 1)
            self.speed = dict(zip(("preprocess", "inference", "postprocess"), each.tolist(), strict=True))
        return results

    def _run(self, images: list[NDArray[np.uint8]], options: dict[str, Any]) -> tuple[list[Detections], list[float]]:
        """Run one batch; return the boxes and the seconds that the three steps took."""
        marks = [time.perf_counter()]
        size = self._input_size(images)
        low = self.session.limits[0]
        shape = (max(len(images), low[0]), self.channels, *size)  # a static batch runs whole, whatever it holds
        buffer = self.session.buffer(shape)
        _, boxes = preprocess(images, size, limit=self.imgsz, channels=self.channels, out=buffer)
        marks.append(time.perf_counter())
        output = self.session.run(shape)[0]
        marks.append(time.perf_counter())
        results = self._decode(output, boxes, options)
        marks.append(time.perf_counter())
        return results, np.diff(marks).tolist()

    def _decode(self, output: NDArray[Any], boxes: Sequence[Letterbox], options: dict[str, Any]) -> list[Detections]:
        """Return the boxes; where there is a recalibration, with probabilities in place of confidences."""
        function, conf = self.recalibration, options["conf"]
        if function is None or not 0 <= conf <= 1:  # which decode refuses
            return decode(output, boxes, end2end=self._end2end, names=self.names, **options)
        # A little below, for rounding; exactly what is asked for is kept after it.
        least = max(0.0, function.least(conf) - 1e-4)
        results = []
        for found in decode(output, boxes, end2end=self._end2end, names=self.names, **{**options, "conf": least}):
            probability = function(found.confidence).astype(np.float32)
            keep = probability > conf
            results.append(Detections(found.xyxy[keep], probability[keep], found.class_id[keep], found.names))
        return results

    def _input_size(self, images: list[NDArray[np.uint8]]) -> tuple[int, int]:
        """Return the input's (H, W): without needless padding where it is dynamic and the images are alike."""
        low, _, high = self.session.limits
        if low[2:] == high[2:] or len({image.shape[:2] for image in images}) != 1:
            return self.imgsz
        rows, columns = smallest_shape(images[0].shape[:2], self.imgsz, self._stride)
        return max(rows, low[2]), max(columns, low[3])

    def warmup(self, runs: int = 3) -> None:
        """Run an empty image a few times, so that the first real one is not slow."""
        image = np.zeros((*self.imgsz, self.channels), np.uint8)
        for _ in range(runs):
            self(image)

    def close(self) -> None:
        """Give everything back; further calls do nothing."""
        with self._lock:
            self.session.close()

    def __enter__(self) -> Runner:
        """Return the runner."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the runner."""
        self.close()


class EngineRunner(Runner):
    """Run a TensorRT or TensorRT-RTX engine on a GPU.

    Args:
        path: An engine file of `meddet export format=engine` (or `yolo export`, with `trust=True`).
        device: Number of the GPU.
        cuda: "auto", "pycuda" or "cuda-python".
        cuda_graph: Whether to replay the engine from a CUDA graph.
        trust: Load an engine that has no sidecar with its hash. An engine is code: only for files you made yourself.
        expected_sha256: Hash that you know from a safe place; compared instead of the sidecar's.
        **options: As in `Runner`.

    Raises:
        FileNotFoundError: If there is no such file.
        EngineFileError: If it is damaged, foreign, or not the file that its sidecar describes.
        IncompatibleEngineError: If it was built for another GPU or another TensorRT.
        CudaError: If there is no GPU.

    Examples:
        >>> with EngineRunner("student.engine") as runner:  # doctest: +SKIP
        ...     for found in runner("image.png")[0]:
        ...         print(found["class"], found["confidence"], found["xyxy"])
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: int = 0,
        cuda: str = "auto",
        cuda_graph: bool = True,
        trust: bool = False,
        expected_sha256: str | None = None,
        **options: Any,
    ) -> None:
        from meddet_yolo.trt.engine_session import EngineSession

        session = EngineSession(
            path, device=device, cuda=cuda, cuda_graph=cuda_graph, trust=trust, expected_sha256=expected_sha256
        )
        try:
            super().__init__(session, **{"recalibration": stored(path), **options})
        except BaseException:
            session.close()
            raise


class OnnxRunner(Runner):
    """Run an ONNX model in ONNX Runtime, with the engine runner's interface and its preprocessing and decoding.

    Args:
        path: A model of `meddet export format=onnx`.
        threads: CPU threads; 0 lets ONNX Runtime choose.
        providers: Execution providers.
        **options: As in `Runner`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If onnxruntime is missing.
        ValueError: If it is no ONNX model that takes images.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        **options: Any,
    ) -> None:
        session = OnnxSession(path, threads=threads, providers=providers)
        super().__init__(session, **{"recalibration": stored(path), **options})


def open_runner(path: str | Path, **options: Any) -> Runner:
    """Return the runner for an exported file or folder, by the table of formats.

    Args:
        path: An `*.engine` or `*.onnx` file, or an `*_openvino_model` folder.
        **options: As in `Runner`, and those of the format's session: `threads`; on a GPU `device`, `cuda`,
            `cuda_graph`, `trust` and `expected_sha256`.

    Raises:
        ValueError: If it is none of these.
        TypeError: If an option is unknown.

    Examples:
        >>> open_runner("best.pt")
        Traceback (most recent call last):
        ...
        ValueError: best.pt is neither an .onnx file nor an _openvino_model folder nor an .engine file: export one
    """
    form = format_of(path)
    if form is None:
        kinds = " nor ".join(dict.fromkeys(form.kind for form in FORMATS.values()))
        raise ValueError(f"{path} is neither {kinds}: export one")
    own = {key: options.pop(key) for key in _OPTIONS & options.keys()}
    own.setdefault("recalibration", stored(path))
    session = form.open(path, **options)
    try:
        return Runner(session, **own)
    except BaseException:
        session.close()
        raise


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as BGR (H, W, 3).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image that OpenCV reads.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"image {path}: no such file")
    # By way of memory, because OpenCV cannot open every file name on Windows.
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if Path(path).stat().st_size else None
    if image is None:
        raise ValueError(f"image {path} cannot be read: no image, or damaged")
    return np.asarray(image, np.uint8)


def _argument(metadata: dict[str, Any], name: str) -> Any:
    """Return one of the export's arguments, which the metadata holds."""
    arguments = metadata.get("args")
    return arguments.get(name) if isinstance(arguments, dict) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the boxes of images as JSON; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m meddet_yolo.trt.runner", description="Boxes of images as JSON.")
    parser.add_argument("model", help="an .engine or .onnx file, or an _openvino_model folder")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--conf", type=float, default=0.25, help="smallest confidence, 0..1")
    parser.add_argument("--iou", type=float, default=0.7, help="most overlap of two boxes of a class, 0..1")
    parser.add_argument("--trust", action="store_true", help="load an engine that has no sidecar with its hash")
    args = parser.parse_args(argv)
    options: dict[str, Any] = {"conf": args.conf, "iou": args.iou}
    failed = 0
    try:
        with open_runner(args.model, **options, **({"trust": True} if args.trust else {})) as runner:
            for path in args.images:
                try:
                    found = runner(path)[0]
                    print(json.dumps({"image": path, "boxes": list(found)}))
                except (OSError, ValueError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    failed = 1
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
