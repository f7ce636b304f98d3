"""Put weights into an engine: into one that was built without them, or other ones into a refittable one."""

from __future__ import annotations

from pathlib import Path

from meddet_yolo.trt.backends import BuildLog, gpu_info, load_backend, make_logger
from meddet_yolo.trt.compile import BuildError
from meddet_yolo.trt.engine_file import read_engine, sha256, write_engine

__all__ = ["refit_engine"]


def refit_engine(engine: str | Path, onnx: str | Path | None = None, out: str | Path | None = None) -> Path:
    """Fill an engine with the weights of an ONNX file and write it as a whole engine.

    Args:
        engine: An engine built with ``strip=True`` or ``refit=True``.
        onnx: The graph whose weights it gets, of the same structure and types as the one it was built from; by default
            the file that a stripped engine was written with, beside it.
        out: Where to write; by default over the engine.

    Returns:
        The path of the engine.

    Raises:
        ValueError: If the engine cannot take weights, or the ONNX file is missing from its arguments.
        FileNotFoundError: If a file is not there.
        BuildError: If there is no GPU, or TensorRT refuses the weights.

    Examples:
        >>> refit_engine("student.engine", "student-v2.onnx", "student-v2.engine")  # doctest: +SKIP
        PosixPath('student-v2.engine')
    """
    path = Path(engine)
    file = read_engine(path)
    if not (file.metadata.get("meddet_strip") or file.metadata.get("meddet_refit")):
        raise ValueError(f"{path} takes no weights: it was built without refit=True and strip=True; export it again")
    kept = file.metadata.get("meddet_onnx")
    if onnx is None and not kept:
        raise ValueError(f"onnx= is missing: {path} names no ONNX file that it was built from")
    source = Path(onnx) if onnx is not None else path.with_name(str(kept))
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; it holds the weights of {path.name}")
    backend = load_backend(str(file.metadata.get("meddet_runtime") or "tensorrt"))
    if gpu_info() is None:
        raise BuildError(f"{path} is refitted on the GPU it is for, and this machine has none")
    trt, log = backend.module, BuildLog()
    logger = make_logger(backend, log)
    loaded = trt.Runtime(logger).deserialize_cuda_engine(file.plan)
    if loaded is None:
        raise BuildError(f"{backend.title} cannot load {path} on this GPU: {log.why()}")
    refitter = trt.Refitter(loaded, logger)
    if not (trt.OnnxParserRefitter(refitter, logger).refit_from_file(str(source)) and refitter.refit_cuda_engine()):
        raise BuildError(f"{backend.title} does not take the weights of {source} for {path}: {log.why()}")
    config = loaded.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    plan = loaded.serialize_with_config(config)
    facts = {"meddet_strip": False, "meddet_weights_sha256": sha256(source)}
    return write_engine(out or path, bytes(plan), {**file.metadata, **facts})
