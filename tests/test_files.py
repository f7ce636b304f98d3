"""Files appear whole or not at all, whoever else writes them."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from meddet_yolo.files import alone, sha256_of, write_whole


def test_readers_see_one_content_or_the_other(tmp_path: Path) -> None:
    path, contents = tmp_path / "a.bin", [bytes([value]) * 200_000 for value in (1, 2)]
    write_whole(path, contents[0])

    def write(content: bytes) -> None:
        for _ in range(50):
            write_whole(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 255), "text")
    assert (tmp_path / ("n" * 255)).read_text() == "text"
    with pytest.raises(OSError, match="cannot be written: File name too long"):
        write_whole(tmp_path / ("n" * 256), "text")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none/a\.txt cannot be written: No such file or directory"):
        write_whole(tmp_path / "none" / "a.txt", "text")


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(ZeroDivisionError), alone(lock, "busy"):
        raise ZeroDivisionError
    with alone(lock, "busy"), pytest.raises(BlockingIOError, match="busy"), alone(lock, "busy"):
        raise AssertionError("two at a time")


def test_the_hash_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.xml").write_bytes(b"<net/>")
    (tmp_path / "m" / "b.bin").write_bytes(b"weights")
    assert sha256_of(tmp_path / "m" / "a.xml") == hashlib.sha256(b"<net/>").hexdigest()
    assert sha256_of(tmp_path / "m") == hashlib.sha256(b"<net/>weights").hexdigest()
