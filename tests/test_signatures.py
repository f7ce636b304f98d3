"""What is read from source must be what Python itself says of the imported thing."""

import dataclasses
import functools
import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from meddet_yolo import signatures
from meddet_yolo.commands import OWN_COMMANDS
from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.signatures import REQUIRED, Expression, find_file, read_constant, read_signature

TARGETS = [
    *OWN_COMMANDS.values(),
    "meddet_yolo.model:_Guarded.train",
    "meddet_yolo.model:MedDet.val",
    "meddet_yolo.distill.config:RunOptions",
    "meddet_yolo.data.mri_noise:MRINoiseConfig",
    "meddet_yolo.predict.source:VolumeSource",
    "meddet_yolo.trt.request:ExportRequest",
    *(f"{method}.Options" for method in read_constant("meddet_yolo.distill.method:METHODS").values()),
]


def imported(target: str) -> Any:
    module, _, path = target.partition(":")
    return functools.reduce(getattr, path.split("."), import_module(module))


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_read_is_what_python_says(target):
    read, thing = read_signature(target), imported(target)
    real = {k: p for k, p in inspect.signature(thing).parameters.items() if k != "self"}
    more = [k for k, p in real.items() if p.kind is p.VAR_KEYWORD]
    assert [p.name for p in read.parameters] == [k for k in real if k not in more]
    assert read.takes_more == bool(more)
    defaults = {k: p.default for k, p in real.items()}
    if dataclasses.is_dataclass(thing):
        made = {f.name: f.default_factory for f in dataclasses.fields(thing)}
        defaults |= {k: make() for k, make in made.items() if make is not dataclasses.MISSING}
    for parameter in read.parameters:
        expected = defaults[parameter.name]
        if expected is inspect.Parameter.empty:
            assert parameter.default is REQUIRED
        elif not isinstance(parameter.default, Expression):
            assert parameter.default == expected
    assert read.summary == " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def test_meanings_are_those_that_the_options_tell_themselves():
    for name, kind in DistillConfig.kinds().items():
        target = "meddet_yolo.distill.config:RunOptions"
        if name != "run":
            target = read_constant("meddet_yolo.distill.method:METHODS")[name] + ".Options"
        assert {p.name: p.meaning for p in read_signature(target).parameters} == kind.meanings()


def test_choices_are_those_that_the_code_accepts():
    choices = {p.name: p.choices for p in read_signature("meddet_yolo.distill.config:RunOptions").parameters}
    assert choices["distill"] == tuple(DistillConfig.kinds())[1:]
    assert choices["distill_schedule"] == ("constant", "cosine")
    assert choices["inherit"] == ("auto", "none")
    assert choices["teachers"] == ()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a package whose import would fail."""

    def write(text: str) -> str:
        (tmp_path / "unread_package").mkdir()
        (tmp_path / "unread_package" / "__init__.py").touch()
        (tmp_path / "unread_package" / "a.py").write_text("SIZE, RATE = 4, 0.5\n" + text)
        monkeypatch.syspath_prepend(str(tmp_path))
        return "unread_package.a"

    for function in (find_file, read_signature, signatures._tree):
        function.cache_clear()
    yield write
    sys.modules.pop("unread_package", None)


def test_defaults_are_computed_where_they_are_plain(module):
    text = "def f(a, *args, b=2 * SIZE, c=RATE, d=print(), e=tuple({'x': print}), f={**{}}, g=1 << SIZE, **k): ...\n"
    name = module(f"raise ImportError\n{text}")
    read = {p.name: p.default for p in read_signature(f"{name}:f").parameters}
    assert read == {"a": REQUIRED, "b": 8, "c": 0.5, "d": "print()", "e": ("x",), "f": "{**{}}", "g": 16}
    assert {key for key, default in read.items() if isinstance(default, Expression)} == {"d", "f"}


def test_bases_in_other_files_and_wrapped_functions_are_followed(module):
    name = module(
        "import functools\nfrom meddet_yolo.distill.config import RunOptions as Base, nowhere\n"
        "class C(Base, nowhere.D):\n    kind: ClassVar[str] = 'c'\n    extra: int = 3\n"
        "def f(x, y=1): 'Do it.'\n@functools.wraps(f)\ndef g(*args): ...\n"
    )
    names = [p.name for p in read_signature(f"{name}:C").parameters]
    assert names == [*(f.name for f in dataclasses.fields(imported("meddet_yolo.distill.config:RunOptions"))), "extra"]
    assert read_signature(f"{name}:g").summary == "Do it."


@pytest.mark.parametrize(
    "target", ["meddet_yolo.nowhere:f", "meddet_yolo.model:nowhere", "meddet_yolo.model:MedDet.nowhere"]
)
def test_what_is_not_there_is_named(target):
    with pytest.raises(LookupError, match="nowhere"):
        read_signature(target)


def test_reading_imports_nothing():
    code = (
        "import sys; from meddet_yolo.commands import keys_of, OWN_COMMANDS, MODES\n"
        "for command in (*OWN_COMMANDS, *MODES, 'cfg'): keys_of(command)\n"
        "print([name for name in ('torch', 'ultralytics', 'numpy', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
