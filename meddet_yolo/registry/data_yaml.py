"""The `download:` block of a data YAML, which Ultralytics runs as Python or in bash when images are missing."""

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
        if is_trusted():
            return dict(original(dataset, autodownload, split))
        try:
            return dict(original(dataset, False, split))
        except FileNotFoundError as error:
            if autodownload and _has_download(dataset):
                missing = str(error).strip().partition("\n")[0]
                raise FileNotFoundError(
                    f"{missing}; its YAML has a `download:`, which could run any code: read it, then pass trust=true, "
                    "or fetch the images yourself"
                ) from error
            raise

    return check_det_dataset


def _has_download(dataset: Any) -> bool:
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_file

    try:
        return bool(YAML.load(check_file(str(dataset))).get("download"))
    except (OSError, AttributeError):  # an archive or a folder, which Ultralytics has looked into
        return False
