"""Shared fixtures, and the surroundings every test runs in: no network, no settings of the user's, no integrations.

Ultralytics reads its settings while it is imported, so the environment is set before anything imports it.
"""

import atexit
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_CONFIG_DIR = tempfile.mkdtemp(prefix="meddet-tests-")
atexit.register(shutil.rmtree, _CONFIG_DIR, ignore_errors=True)
os.environ.update(
    YOLO_CONFIG_DIR=_CONFIG_DIR,
    YOLO_OFFLINE="true",
    YOLO_AUTOINSTALL="false",
    MPLBACKEND="Agg",
    WANDB_MODE="disabled",
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),  # tensors are tiny here: threads would only wait
)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import settings as hypothesis_settings  # noqa: E402
from ultralytics import settings  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER, YAML  # noqa: E402
from ultralytics.utils.checks import check_yaml  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Hypothesis, too, tries the same examples every time; others with `./run-tests --all --hypothesis-profile=explore`.
hypothesis_settings.register_profile("repeat", derandomize=True, database=None)
hypothesis_settings.register_profile("explore")
hypothesis_settings.load_profile("repeat")
settings.update({key: False for key, value in settings.items() if isinstance(value, bool)})

ROOT = Path(__file__).resolve().parents[1]
# What tools keep in a checkout: no test's doing.
_NO_LITTER = ("__pycache__", "venv", "build", "dist", "*.egg-info", "*.pyc")
# Stock layouts of two families, narrower than any scale that is shipped, so that a training step takes milliseconds.
_TINY_LAYOUTS = {"yolov8": [0.33, 0.125, 1024], "yolo11": [0.50, 0.1875, 1024]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin every test, its fixtures too, with the same random numbers: what fails once fails again."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def tree_files(root: Path) -> set[str]:
    """Files of a checkout relative to its root, git-ignored ones too; without caches, hidden files, environments."""

    def kept(name: str) -> bool:
        return not name.startswith(".") and not any(Path(name).match(pattern) for pattern in _NO_LITTER)

    files: set[str] = set()
    for folder, folders, names in os.walk(root):
        folders[:] = filter(kept, folders)
        files |= {Path(folder, name).relative_to(root).as_posix() for name in filter(kept, names)}
    return files


class LitterCheck:
    """Fails a session in which the checkout got new files: a test writes to its `tmp_path` alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before = tree_files(root)
        self.new: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.new = sorted(tree_files(self.root) - self.before)
        if self.new and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.new:
            terminalreporter.section("new files in the checkout", red=True)
            terminalreporter.line("A test may write to its tmp_path only. If you made these files yourself, run again.")
            for name in self.new:
                terminalreporter.line(name)


def pytest_configure(config: pytest.Config) -> None:
    """Watch the checkout, in the process that also reports the results."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LitterCheck(ROOT), "litter-check")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Fill a folder once for all worker processes of a session; the first to ask does it while the others wait.

    The tests share it: none may change what lies in it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def folder(name: str, fill: Callable[[Path], None]) -> Path:
        target, filled = shared / name, shared / f"{name}.filled"
        with FileLock(shared / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(target, ignore_errors=True)  # what a failure left
                target.mkdir()
                fill(target)
                filled.touch()
        return target

    return folder


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What Ultralytics' logger says; it does not propagate to pytest's own collector."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    yield lines
    LOGGER.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of a few generated spine images of 64 px: 6 for training, 2 for validation, two classes."""
    from meddet_yolo.phantom import generate_phantom

    folder = tmp_path_factory.mktemp("tiny") / "data"
    return generate_phantom(folder, preset="tiny", patients=4, imgsz=64, val_fraction=0.25, test_fraction=0.0)


@pytest.fixture(scope="session")
def tiny_teachers(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints of two tiny detectors of different family and width for the classes of `tiny_data`.

    They are not trained; their batch statistics are set on the data, so that their features are of a normal size.
    """
    import cv2

    names = YAML.load(tiny_data)["names"]
    files = sorted((tiny_data.parent / "images" / "train").glob("*.png"))
    images = torch.stack([torch.from_numpy(cv2.imread(str(f))).permute(2, 0, 1) for f in files]).float() / 255
    folder = tmp_path_factory.mktemp("teachers")
    paths = []
    for seed, (layout, scale) in enumerate(_TINY_LAYOUTS.items()):
        torch.manual_seed(seed)
        config = YAML.load(check_yaml(f"{layout}.yaml"))
        config.update(scales={"n": scale}, scale="n")
        model = DetectionModel(config, nc=len(names), verbose=False)
        model.names, model.nc = names, len(names)
        model.task = "detect"
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # the plain average over all batches seen
        model.train()
        with torch.no_grad():
            model(images)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 0.03
        paths.append(folder / f"{layout}-tiny.pt")
        train_args = {**DEFAULT_CFG_DICT, "task": "detect", "model": f"{layout}.yaml", "imgsz": 64}
        torch.save({"epoch": -1, "ema": None, "model": model.half().eval(), "train_args": train_args}, paths[-1])
    return paths


@pytest.fixture(scope="session")
def spider() -> Path:
    """The data.yaml of the real spine MRI data set where it stands beside the repository."""
    data = ROOT.parent / "shared" / "data" / "spider_disc2" / "data.yaml"
    if not data.is_file():
        pytest.skip("the spine MRI data set is not beside the repository")
    return data
