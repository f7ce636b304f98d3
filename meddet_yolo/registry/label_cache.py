"""Ultralytics' label caches, which it writes beside the labels."""

from __future__ import annotations

from typing import Any

__all__ = ["keep_no_label_caches"]


def keep_no_label_caches() -> None:
    """Let no data set of this process write its label cache into the folder of the labels; valid ones are still read.

    For data that are not to be written to, and for several processes that read the same folder by different lists.
    """
    from ultralytics.data import dataset

    def discard(prefix: str, path: Any, x: dict[str, Any], version: str) -> None:
        x["version"] = version

    dataset.save_dataset_cache_file = discard
