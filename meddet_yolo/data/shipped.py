"""The data YAMLs that the package ships, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["find_data"]


def find_data(data: Any) -> Any:
    """Return the path of a data YAML that is shipped, for its bare name; anything else as it is.

    A local file of that name wins.

    Examples:
        >>> Path(find_data("cdh1848.yaml")).is_file(), find_data("mine.yaml"), find_data(None)
        (True, 'mine.yaml', None)
    """
    if not isinstance(data, (str, Path)) or Path(data).exists() or Path(data).name != str(data):
        return data
    import meddet_yolo.cfg

    path = Path(meddet_yolo.cfg.__file__).parent / "datasets" / Path(data).with_suffix(".yaml").name
    return str(path) if path.is_file() else data
