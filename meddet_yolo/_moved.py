"""Old names of modules that have moved: programs and checkpoints of earlier versions import them still."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

__all__ = ["MOVED", "install"]

_IMAGING = (
    "dicom",
    "geometry",
    "grey",
    "nifti",
    "pictures",
    "privacy",
    "search",
    "slice_cache",
    "structured_report",
    "volumes",
)
_PHANTOM = ("acquisition", "anatomy", "drawing", "head", "patient", "shapes", "spine", "study", "tissues", "writer")
MOVED: dict[str, str] = {
    "backend": "registry.rtx_backend",
    "data.phantom": "phantom",
    "distill.adversary": "distill.methods.meddet.adversary",
    "distill.align": "distill.methods.meddet.align",
    "distill.distiller": "distill.methods.meddet.method",
    "distill.fusion": "distill.methods.meddet.fusion",
    "distill.reconstruction": "distill.methods.meddet.reconstruction",
    "exporter": "export.exporter",
    "nn.gfl_assign": "nn.gfl.assign",
    "nn.gfl_loss": "nn.gfl.loss",
    "nn.nmode_closed": "nn.nmode.closed",
    "nn.nmode_cpu": "nn.nmode.cpu",
    "nn.nmode_eval": "nn.nmode.eval",
    "nn.nmode_graph": "nn.nmode.graph",
    "nn.nmode_forms": "nn.nmode.forms",
    "nn.nmode_start": "nn.nmode.start",
    "nn.nmode_tables": "nn.nmode.tables",
    "nn.nmode_triton": "nn.nmode.triton",
    "predictor": "predict.predictor",
    "trainer": "train.trainer",
    **{f"data.{name}": f"imaging.{name}" for name in _IMAGING},
    **{f"data.phantom.{name}": f"phantom.{name}" for name in _PHANTOM},
}
"""By old name, the new one; both without the package's."""

_PACKAGE = __name__.rpartition(".")[0]


def install() -> None:
    """Let the old names be imported; any number of calls has the effect of one."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedFinder())


class _MovedFinder(MetaPathFinder):
    """Finds modules by their old names; first of all, since a moved package leads to its files by itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, old = fullname.partition(".")
        if package != _PACKAGE or old not in MOVED:
            return None
        return spec_from_loader(fullname, _MovedLoader(f"{_PACKAGE}.{MOVED[old]}"))


class _MovedLoader(Loader):
    """Gives the module of the new name, which then is known by both."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.name)
        self.kept = module.__spec__, module.__loader__  # which the import system is about to overwrite
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__, module.__loader__ = self.kept
