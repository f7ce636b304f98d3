"""What a step takes of the device that it runs on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["peak_memory", "wait_for"]


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given, so that a step's time is its own."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Return the most memory so far in bytes: of the GPU, or of this process where there is none; 0 where unknown.

    Examples:
        >>> import torch
        >>> peak_memory(torch.device("cpu")) >= 0
        True
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_reserved(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
