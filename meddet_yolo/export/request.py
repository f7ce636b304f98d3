"""From the keys of `meddet export`, Ultralytics' and ours, to one checked request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meddet_yolo.export.formats import FORMATS, Format, find_format
from meddet_yolo.trt.request import ENGINE_KEYS, PASSED_ON, ExportRequest

__all__ = ["EXPORT_KEYS", "gpu_number", "read_request"]

# The keys of `meddet export` besides Ultralytics' own.
EXPORT_KEYS = ENGINE_KEYS | {"runtime", "precision", "calibration", "calibration_images", "end2end", "out"}
_QUANTIZE = {16: "fp16", 8: "int8", 32: "fp32", "16": "fp16", "8": "int8", "32": "fp32"}
_PRECISION_KEYS = frozenset({"precision", "quantize", "half", "int8"})
_UNREAD = frozenset({"verbose", "mode", "task", "model", "fraction", "name", "project", "exist_ok"})
_COPIED = frozenset({"imgsz", "dynamic", "workspace", "opset"})


def read_request(options: Mapping[str, Any]) -> tuple[Format, ExportRequest]:
    """Read what is asked for.

    Args:
        options: `format`, `runtime` and the keys of the request, in Ultralytics' spelling or in ours: `quantize`,
            `half` and `int8` are read as `precision`, ``nms=False`` as `end2end`. A key that is None is not given.

    Returns:
        The format and the request for it.

    Raises:
        ValueError: If keys do not fit the format or one another.

    Examples:
        >>> form, request = read_request({"format": "onnx", "half": True, "imgsz": 512, "max_det": 50})
        >>> form.name, request.precision, request.imgsz, request.options
        ('onnx', 'fp16', 512, {'max_det': 50})
    """
    given = {key: value for key, value in options.items() if value is not None and key not in _UNREAD}
    spelling = str(given.pop("format")).lower()
    form = find_format(spelling, given.pop("runtime", None))
    _check_keys(form, spelling, given.keys())
    own = set().union(*(each.keys for each in FORMATS.values())) | _COPIED
    known = own | PASSED_ON | _PRECISION_KEYS | {"batch", "nms", "end2end"}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"{unknown[0]}= has no meaning for this export")
    precision = _precision(given, form.plain)
    form.check(precision)
    nms = given.get("nms")
    request = ExportRequest(
        precision=precision,
        batch=_whole("batch", given.get("batch", 1)),
        end2end=bool(given.get("end2end", False)) or nms is False,
        nms=bool(nms),
        options={key: given[key] for key in PASSED_ON & given.keys()},
        **{key: given[key] for key in own & given.keys()},
    )
    return form, request


def gpu_number(device: Any) -> int | None:
    """Return the number of the GPU that `device` names in one of Ultralytics' spellings; None where it names no GPU.

    Raises:
        ValueError: If it names several, or none that could be there.

    Examples:
        >>> gpu_number("cuda:1"), gpu_number([0]), gpu_number("cpu"), gpu_number(None)
        (1, 0, None, None)
    """
    text = str(device).lower()
    for part in ("cuda:", *"()[]' "):
        text = text.replace(part, "")
    if text in {"", "none", "cpu", "mps"}:
        return None
    number = "0" if text == "cuda" else text.rstrip(",")
    if "dla" in number:
        raise ValueError("device=dla: export for DLA cores with `yolo export`, this builder has none of it")
    if not number.isdigit():
        raise ValueError(f"device={device}: expected the number of one GPU, such as device=0, or device=cpu")
    return int(number)


def _check_keys(form: Format, spelling: str, keys: Any) -> None:
    """Refuse keys of other formats."""
    for key in sorted(keys):
        owners = dict.fromkeys(each.spellings[0] for each in FORMATS.values() if key in each.keys)
        if owners and key not in form.keys:
            owner = f"is for format={next(iter(owners))}, " if len(owners) == 1 else "is "
            raise ValueError(f"{key}= {owner}not for format={spelling}")


def _precision(given: Mapping[str, Any], plain: str) -> str:
    """Read the precision from our key or from Ultralytics'."""
    quantize = given.get("quantize")
    if quantize is not None and quantize not in _QUANTIZE:
        raise ValueError(f"quantize={quantize} is not possible here: use precision=fp32, fp16, int8 or fp8")
    found = {"precision": given.get("precision"), "quantize": _QUANTIZE.get(quantize) if quantize else None}
    found |= {key: value for key, value in (("half", "fp16"), ("int8", "int8")) if given.get(key)}
    asked = {key: str(value) for key, value in found.items() if value is not None}
    if len(set(asked.values())) > 1:
        raise ValueError(f"{', '.join(asked)} ask for different precisions ({', '.join(asked.values())}): give one")
    return next(iter(asked.values()), plain)


def _whole(key: str, value: Any) -> int:
    """Return a whole number, also one that is spelled."""
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}={value}: expected a whole number") from error
