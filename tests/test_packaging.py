import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings there

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ("meddet_yolo", "cfg", "trt")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel built from it; the checkout itself is not touched."""
    tree = tmp_path_factory.mktemp("tree")
    for name in PACKAGED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return tree / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    (path,) = dist.glob("*.whl")
    return zipfile.ZipFile(path)


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _sources() -> set[str]:
    """Names in the wheel of every module, YAML and template of the checkout."""
    names = set()
    for top in PACKAGED:
        for file in (ROOT / top).rglob("*"):
            if file.suffix in {".py", ".yaml"} or file.name == "py.typed" or file.parent.name == "templates":
                inside = file.relative_to(ROOT).as_posix()
                names.add(inside if top == "meddet_yolo" else f"meddet_yolo/{inside}")
    return names


def test_every_package_is_listed():
    listed = _pyproject()["tool"]["setuptools"]["packages"]
    packages = {name.rpartition("/")[0].replace("/", ".") for name in _sources() if name.endswith("/__init__.py")}
    missing, gone = sorted(packages - set(listed)), sorted(set(listed) - packages)
    assert not missing, f"add to packages in pyproject.toml, or no wheel will hold it: {', '.join(missing)}"
    assert not gone, f"remove from packages in pyproject.toml, there is no such package: {', '.join(gone)}"


def test_every_folder_with_modules_is_a_package():
    folders = {name.rpartition("/")[0] for name in _sources() if name.endswith(".py")}
    bare = sorted(folders - {name.rpartition("/")[0] for name in _sources() if name.endswith("/__init__.py")})
    assert not bare, f"a folder with modules needs an __init__.py: {', '.join(bare)}"


def test_wheel_holds_every_module_and_recipe(wheel):
    sources = _sources()
    assert {"meddet_yolo/py.typed", "meddet_yolo/cfg/models/meddet-n.yaml", "meddet_yolo/trt/__init__.py"} <= sources
    assert "meddet_yolo/cfg/distill/default.yaml" in sources
    inside = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert not sources - inside, f"the wheel lacks {', '.join(sorted(sources - inside))}"
    assert not inside - sources, f"the wheel holds what the checkout does not: {', '.join(sorted(inside - sources))}"


def test_sdist_holds_the_same(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {n.removeprefix("meddet_yolo/") if n.split("/")[1] in PACKAGED else n for n in _sources()} <= names
    assert {"LICENSE", "README.md"} <= names


def test_metadata(wheel):
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["License-Expression"] == "AGPL-3.0-only"
    assert metadata["Requires-Python"] == ">=3.10"
    project = _pyproject()["project"]
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    core = {Requirement(r) for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert core == {Requirement(r) for r in project["dependencies"]}
    assert {"ultralytics", "torch", "torchvision", "torchdiffeq", "opencv-python"} <= {r.name for r in core}
    versions = {c.split(" :: ")[-1] for c in metadata.get_all("Classifier") if "Python :: 3." in c}
    assert versions == {"3.10", "3.11", "3.12", "3.13"}
    entry_points = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "meddet = meddet_yolo.cli:main" in entry_points


def test_installed_wheel_finds_its_files(wheel, tmp_path):
    """The package works from the wheel's files alone, far from the checkout."""
    wheel.extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, 'site')\n"
        "import meddet_yolo, meddet_yolo.cfg, meddet_yolo.trt\n"
        "print(meddet_yolo.__file__, meddet_yolo.cfg.__file__, meddet_yolo.trt.__file__)\n"
        "print(meddet_yolo.resolve_model_yaml('meddet-n'))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    site = (tmp_path / "site").resolve()
    assert all(Path(p).resolve().is_relative_to(site) for p in ran.stdout.split())


def test_checkout_finds_its_files():
    """An editable install maps the folders at the root into the package."""
    import meddet_yolo.cfg
    import meddet_yolo.trt

    for module, folder in ((meddet_yolo.cfg, "cfg"), (meddet_yolo.trt, "trt")):
        assert Path(module.__file__).resolve().parent.name == folder
    assert (Path(meddet_yolo.cfg.__file__).parent / "distill" / "default.yaml").is_file()


@pytest.mark.parametrize("script", ["quickstart", "run-tests", ".ci/run", "scripts/venv.sh", "benchmarks/gpu.sh"])
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
