"""The table of formats as `format=` and `runtime=` spell it.

The table itself stands at the bottom, in `meddet_yolo.trt.formats`, because the runner reads it too, which works
without torch and ultralytics.
"""

from __future__ import annotations

from meddet_yolo.trt.formats import FORMATS, Format, format_of

__all__ = ["FORMATS", "Format", "find_format", "format_of", "is_ours"]


def is_ours(spelling: str) -> bool:
    """Return whether `format=` names a format of this table; Ultralytics has others.

    Examples:
        >>> is_ours("trt"), is_ours("torchscript")
        (True, False)
    """
    return any(spelling.lower() in form.spellings for form in FORMATS.values())


def find_format(spelling: str, runtime: str | None = None) -> Format:
    """Return the format that `format=` names.

    Args:
        spelling: Such as "onnx", "engine" or "trt".
        runtime: Which of the formats that share the spelling: for engines "tensorrt", the default, or "rtx".

    Raises:
        ValueError: If there is no such format, or `runtime` names none of it.

    Examples:
        >>> find_format("engine").name, find_format("engine", "rtx").name
        ('tensorrt', 'rtx')
    """
    found = {form.name: form for form in FORMATS.values() if spelling.lower() in form.spellings}
    if not found:
        known = dict.fromkeys(form.spellings[0] for form in FORMATS.values())
        raise ValueError(f"format={spelling} is unknown here: use one of {', '.join(known)}")
    if runtime is None:
        return next(iter(found.values()))
    if len(found) == 1:
        raise ValueError(f"runtime= is for format=engine, not for format={spelling.lower()}")
    if runtime not in found:
        raise ValueError(f"runtime={runtime!r} is unknown: use one of {', '.join(found)}")
    return found[runtime]
