"""What data YAMLs are refused for: a `download:`, which Ultralytics runs as code, and classes that are not numbered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from meddet_yolo.registry.trust import is_trusted

__all__ = ["wrap_check_det_dataset"]


def wrap_check_det_dataset(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `check_det_dataset` that runs and fetches nothing a data YAML names, unless files are trusted."""

    @functools.wraps(original)
    def check_det_dataset(dataset: Any, autodownload: bool = True, split: str = "") -> dict[str, Any]:
        try:
            return dict(original(dataset, autodownload and is_trusted(), split))
        except FileNotFoundError as error:
            if autodownload and not is_trusted() and _content(dataset).get("download"):
                missing = str(error).strip().partition("\n")[0]
                raise FileNotFoundError(
                    f"{missing}; its YAML has a `download:`, which could run any code: read it, then pass trust=true, "
                    "or fetch the images yourself"
                ) from error
            raise
        except (TypeError, ValueError) as error:
            names = _content(dataset).get("names")
            strange = [key for key in names if not _is_number(key)] if isinstance(names, dict) else []
            if not strange:
                raise
            raise ValueError(
                f"{dataset}: `names` has the key {strange[0]!r}, expected a number for each class, from 0"
            ) from error

    return check_det_dataset


def _is_number(key: Any) -> bool:
    try:
        return int(key) == float(key)
    except (TypeError, ValueError):
        return False


def _content(dataset: Any) -> dict[str, Any]:
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_file

    try:
        return dict(YAML.load(check_file(str(dataset))))
    except (OSError, TypeError, ValueError):  # an archive or a folder, which Ultralytics has looked into
        return {}
