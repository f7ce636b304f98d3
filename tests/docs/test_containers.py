"""The Dockerfiles: built where Docker is at hand, held against the package everywhere."""

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from tests.trt._toy_model import META, toy_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings there

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "containers").glob("*.Dockerfile"))
# Installed into an empty environment by the runner's Dockerfile; the rest of this environment is hidden.
CLEAN = """
import re, sys
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

queue, wanted = {wanted!r}, set()
while queue:
    name = re.sub("[-_.]+", "-", queue.pop()).lower()
    if name in wanted:
        continue
    wanted.add(name)
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        continue
    queue += [re.match("[A-Za-z0-9_.-]+", line)[0] for line in requires if "extra ==" not in line]
hidden = {{
    module for module, names in packages_distributions().items()
    if not wanted & {{re.sub("[-_.]+", "-", name).lower() for name in names}}
}} - {{"meddet_yolo", "__pycache__"}}

class Clean:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

assert {{"torch", "ultralytics", "scipy"}} <= hidden
sys.meta_path.insert(0, Clean())
sys.path.insert(0, {site!r})
"""


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def pip_installs(dockerfile: Path) -> list[str]:
    """Arguments of `pip install` in the order of the image's lines."""
    lines = [arguments for name, arguments in instructions(dockerfile) if name == "RUN" and "pip install" in arguments]
    return [line.split("pip install", 1)[1].partition("&&")[0] for line in lines]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_suffices_to_build_the_package(dockerfile):
    lines = [arguments.split()[:-1] for name, arguments in instructions(dockerfile) if name == "COPY"]
    copied = {source for line in lines for source in line}
    assert not [source for source in copied if not (ROOT / source).exists()]
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "meddet_yolo", "cfg", "trt"}
    assert instructions(dockerfile)[0][0] in {"FROM", "ARG"}


def test_training_installs_extras_that_exist():
    (install,) = pip_installs(ROOT / "containers" / "train.Dockerfile")
    extras = re.search(r"/src\[([\w,]+)\]", install)
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


def test_runner_works_with_what_its_container_installs_and_nothing_else(tmp_path):
    """The image's pip lines: first its packages, of which only these stay importable here, then ours without others."""
    packages, ours = pip_installs(ROOT / "containers" / "runner.Dockerfile")
    lines = instructions(ROOT / "containers" / "runner.Dockerfile")
    (runtime,) = [a.partition("=")[2].strip('"') for n, a in lines if n == "ARG" and a.startswith("RUNTIME=")]
    wanted = packages.replace("${RUNTIME}", runtime).split()
    assert wanted == ["numpy", "opencv-python-headless", "onnxruntime"]
    assert ours.split() == ["--no-deps", "/src"]
    tree, site = tmp_path / "src", tmp_path / "site"
    for name in ("meddet_yolo", "cfg", "trt"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", str(site), str(tree)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model = toy_model(tmp_path / "toy.onnx", ["b", 3, 64, 64])
    described = onnx.load(str(model))
    onnx.helper.set_model_props(described, {key: str(value) for key, value in META.items()})
    onnx.save(described, str(model))
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.full((64, 64, 3), 90, np.uint8))
    code = CLEAN.format(wanted=[*wanted, "opencv-python"], site=str(site)) + textwrap.dedent(f"""
        import meddet_yolo
        assert meddet_yolo.__file__.startswith({str(site)!r}), meddet_yolo.__file__
        from meddet_yolo.trt.runner import main
        raise SystemExit(main([{str(model)!r}, {str(image)!r}]))
    """)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "image.png" in ran.stdout
    assert '"disc"' in ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "dockerfile", [pytest.param(f, marks=[pytest.mark.gpu] if f.name.startswith("train") else []) for f in DOCKERFILES]
)
def test_images_are_built_and_run(dockerfile):
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("Docker is not at hand: no command, or no daemon that answers")
    tag = f"meddet-test-{dockerfile.name.partition('.')[0]}"
    built = subprocess.run(
        ["docker", "build", "-q", "-f", str(dockerfile), "-t", tag, str(ROOT)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-3000:]
    arguments = ["help"] if "train" in tag else ["--help"]
    ran = subprocess.run(["docker", "run", "--rm", "--network=none", tag, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "meddet" in ran.stdout
