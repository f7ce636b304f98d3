"""Whether files may run code: not, unless a person has said `trust=true`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["is_trusted", "trusting"]

_TRUSTED: ContextVar[bool] = ContextVar("meddet_trusted", default=False)


def is_trusted() -> bool:
    """Return whether the code under way may load files that run code.

    Examples:
        >>> is_trusted()
        False
    """
    return _TRUSTED.get()


@contextmanager
def trusting(trust: bool = True) -> Iterator[None]:
    """Trust the files that are read inside, or do not; afterwards all is as before.

    Inside `with trusting():`, checkpoints are unpickled without safe mode, activations of model YAMLs are evaluated and
    `download:` blocks of data YAMLs are run. It holds for the current thread only, and for no process started from it
    but those of a training on several devices.

    Args:
        trust: Whether to trust.

    Raises:
        ValueError: If `trust` is neither true nor false.

    Examples:
        >>> with trusting():
        ...     is_trusted()
        True
    """
    if not isinstance(trust, bool):
        raise ValueError(f"trust must be true or false, got {trust!r}")
    token = _TRUSTED.set(trust)
    try:
        yield
    finally:
        _TRUSTED.reset(token)
