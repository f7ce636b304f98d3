"""What the fast reader of checkpoints gives, and that a pickle can do no more in it than in torch's safe mode."""

from __future__ import annotations

import gc
import io
import os
import pickle
import struct
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Conv2d
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import _SafeLoad
from ultralytics.utils import IterableSimpleNamespace

from meddet_yolo import load_detector
from meddet_yolo.registry.plain_pickle import NotPlain, names_in, read_plain


def checkpoint(path: Path, content: bytes) -> Path:
    """Write a checkpoint whose pickle is made by hand."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as sound, zipfile.ZipFile(path.with_suffix(".zip"), "w") as made:
        for name in sound.namelist():
            made.writestr(name, content if name.endswith("/data.pkl") else sound.read(name))
    return path.with_suffix(".zip").rename(path)


def test_it_reads_what_torch_reads(tiny_teachers: list[Path]) -> None:
    for path in tiny_teachers:
        with _SafeLoad.loading(path):  # tells torch's safe mode of the layers
            theirs = torch.load(path, map_location="cpu", weights_only=True)
        ours = read_plain(path)
        assert ours.keys() == theirs.keys() and ours["train_args"] == theirs["train_args"]
        pairs = list(zip(ours["model"].named_modules(), theirs["model"].named_modules(), strict=True))
        assert len(pairs) > 50
        for (name, one), (same_name, other) in pairs:
            assert name == same_name and type(one) is type(other)
            assert list(vars(one)) == list(vars(other)) and one.training == other.training
        want = theirs["model"].state_dict()
        assert all(torch.equal(value, want[key]) for key, value in ours["model"].state_dict().items())


def test_a_model_reads_the_same_object_at_two_places(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    arguments = IterableSimpleNamespace(imgsz=64)
    torch.save({"model": torch.nn.Sequential(layer, layer), "sets": {1, 2}, "args": arguments}, tmp_path / "a.pt")
    read = read_plain(tmp_path / "a.pt")
    assert read["model"][0] is read["model"][1] and read["model"][0].weight.requires_grad
    assert type(read["args"]) is IterableSimpleNamespace and read["args"].imgsz == 64
    assert read["sets"] == {1, 2}
    assert read["model"](torch.ones(1, 2)).shape == (1, 2)


def test_nothing_keeps_a_model_that_nobody_needs(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pt")
    gc.disable()
    try:
        read = read_plain(tmp_path / "a.pt")
        weight = weakref.ref(read["model"].weight)
        del read
        assert weight() is None and not gc.isenabled()
    finally:
        gc.enable()


def name(of: Any) -> bytes:
    return f"c{of.__module__}\n{of.__qualname__}\n".encode()


ATTACKS: dict[str, bytes] = {
    "calls a function": b"\x80\x02cos\nmkdir\n(X\x05\x00\x00\x00proofo.",
    "calls another function": b"\x80\x02cos\nmkdir\nX\x05\x00\x00\x00proof\x85R.",
    "calls a function of torch": b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00a\x85R.",
    "names what a layer's module has imported": b"\x80\x02ctorch.nn.modules.conv\nreproducibility_notes\n.",
    "names an attribute": b"\x80\x02ctorch.nn.modules.conv\nConv2d.forward\n.",
    "makes a layer": b"\x80\x02" + name(Conv2d) + b"K\x01K\x01K\x01\x87R.",
    "gives a layer arguments": b"\x80\x02" + name(Conv2d) + b"K\x01\x85\x81}b.",
    "leaves a layer without a state": b"\x80\x02" + name(Conv2d) + b")\x81.",
    "gives a layer two states": b"\x80\x02" + name(Conv2d) + b")\x81}b}b.",
    "calls a layer": b"\x80\x02" + name(Conv) + b")\x81}bK\x01\x85R.",
    "changes a layer's class": b"\x80\x02" + name(Conv) + b"N}X\x05\x00\x00\x00proofK\x01s\x86b.",
    "changes the namespace": b"\x80\x02" + name(IterableSimpleNamespace) + b"N}X\x05\x00\x00\x00proofK\x01s\x86b.",
    "changes a function": b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x05\x00\x00\x00proofK\x01sb.",
    "changes the dictionary's class": b"\x80\x02ccollections\nOrderedDict\nN}X\x05\x00\x00\x00proofK\x01s\x86b.",
    "changes the size's class": b"\x80\x02ctorch\nSize\nN}X\x05\x00\x00\x00proofK\x01s\x86b.",
    "asks for a place far away": b"\x80\x02]r\xff\xff\xff\x7f.",
    "asks for a long text": b"\x80\x02X\xff\xff\xff\xffa.",
    "asks for long bytes": b"\x80\x02\x96\xff\xff\xff\xff\xff\x00\x00\x00a.",
    "ends too early": b"\x80\x02]",
    "is of another protocol": pickle.dumps({"a": 1}, protocol=4),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_can_do_nothing_else(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = checkpoint(tmp_path / "a.pt", ATTACKS[attack])
    worlds = [Conv, IterableSimpleNamespace, torch._utils._rebuild_parameter, torch.Size]
    if attack in {"changes a function", "changes the namespace"}:  # the pickle's own, which nobody else has
        read_plain(path)
    else:
        with pytest.raises((NotPlain, TypeError, AttributeError)):
            read_plain(path)
    assert not any(hasattr(thing, "proof") for thing in worlds)
    assert not (tmp_path / "proof").exists()
    with pytest.raises((ValueError, TypeError)):  # nor by the way around
        load_detector(path)
    assert not (tmp_path / "proof").exists()


def test_torch_alone_reads_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": 1}, tmp_path / "a.pt")
    assert read_plain(tmp_path / "a.pt") == {"a": 1}
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(NotPlain):
        read_plain(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 300, 70_000, -1, 2**40, -(2**70), 1.5, None, True, False], "b" * 300: ("x", (1, 2, 3))},
        [[] for _ in range(300)],
        [Conv2d, os.mkdir],
    ],
)
def test_names_are_those_that_pickle_asks_for(value: Any) -> None:
    asked: set[tuple[str, str]] = set()

    class Asking(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Callable[..., Any]:
            asked.add((module, name))
            return dict

    content = pickle.dumps(value, protocol=2)
    Asking(io.BytesIO(content)).load()
    assert names_in(content) == asked


def test_only_places_near_by_are_let_through() -> None:
    assert not names_in(b"\x80\x02]r" + struct.pack("<I", 2**20 - 1) + b".")
    with pytest.raises(NotPlain, match="0x72"):
        names_in(b"\x80\x02]r" + struct.pack("<I", 2**20) + b".")
