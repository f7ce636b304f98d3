"""What `data/dataset.py`, `evaluate/validator.py` and `predictor.py` lean on inside Ultralytics; see test_canary.py."""

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from ultralytics.data.base import BaseDataset
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.loaders import SourceTypes
from ultralytics.data.utils import IMG_FORMATS, img2label_paths
from ultralytics.engine.model import Model
from ultralytics.engine.predictor import BasePredictor
from ultralytics.engine.results import Results
from ultralytics.models.yolo.detect import DetectionPredictor, DetectionValidator

from tests.registry.test_canary import holds, original, parameters

DATASET = "data/dataset.py"
PREDICTOR = "predictor.py"


def test_downloads_caches_and_folders_pass_through_what_we_wrap() -> None:
    from ultralytics import cfg
    from ultralytics.data import dataset, utils
    from ultralytics.engine import predictor, trainer, validator

    door = "registry"
    checked = original(utils.check_det_dataset)
    holds(parameters(checked) == ["dataset", "autodownload", "split"], "check_det_dataset changed", door)
    holds(parameters(original(utils.load_dataset_cache_file)) == ["path"], "load_dataset_cache_file changed", door)
    saved = parameters(original(utils.save_dataset_cache_file))
    holds(saved == ["prefix", "path", "x", "version"], "save_dataset_cache_file changed", door)
    holds(dataset.load_dataset_cache_file is utils.load_dataset_cache_file, "data sets read caches otherwise", door)
    holds(dataset.save_dataset_cache_file is utils.save_dataset_cache_file, "data sets write caches otherwise", door)
    for module in (trainer, validator):
        holds(module.check_det_dataset is utils.check_det_dataset, f"{module.__name__} checks data otherwise", door)
    for module in (trainer, validator, predictor):
        holds(module.get_save_dir is cfg.get_save_dir, f"{module.__name__} finds its folder otherwise", door)
    for name in ("exec(s", "subprocess.run(s.split()"):
        holds(name in inspect.getsource(checked), f"check_det_dataset has no {name} any more", "registry/data_yaml.py")
    scan = parameters(YOLODataset._load_or_scan_cache)
    holds(scan == ["self", "cache_path", "cache_hash"], "_load_or_scan_cache changed", DATASET)


def test_dicom_and_nifti_are_not_among_its_formats() -> None:
    ours = IMG_FORMATS & {"dcm", "dicom", "dic", "ima", "nii", "gz"}
    holds(not ours, f"{ours} are read by Ultralytics itself now", "data/volumes.py")


@pytest.mark.parametrize(
    ("owner", "method", "wanted", "relied"),
    [
        (BaseDataset, "get_img_files", ["self", "img_path"], DATASET),
        (YOLODataset, "get_label_files", ["self"], DATASET),
        (YOLODataset, "build_transforms", ["self", "hyp"], DATASET),
        (DetectionValidator, "build_dataset", ["self", "img_path", "mode", "batch"], "evaluate/validator.py"),
        (BasePredictor, "setup_source", ["self", "source", "stride"], PREDICTOR),
        (DetectionPredictor, "construct_results", ["self", "preds", "img", "orig_imgs"], PREDICTOR),
        (Results, "new", ["self"], PREDICTOR),
        (Results, "summary", ["self", "normalize", "decimals"], PREDICTOR),
        (Model, "predict", ["self", "source", "stream", "predictor", "kwargs"], "model.py"),
    ],
)
def test_hooks_keep_their_signature(owner: type, method: str, wanted: list[str], relied: str) -> None:
    function = getattr(owner, method, None)
    holds(function is not None, f"{owner.__name__}.{method} is gone", relied)
    got = parameters(function)
    holds(got == wanted, f"{owner.__name__}.{method} takes {got}, not {wanted}", relied)


def test_a_data_set_is_built_with_the_arguments_that_we_give() -> None:
    source = inspect.getsource(original(build_yolo_dataset))
    call = source[source.rindex("return dataset(") :]
    given = {line.strip().split("=")[0] for line in call.splitlines() if "=" in line}
    wanted = {"img_path", "imgsz", "batch_size", "augment", "hyp", "rect", "cache", "single_cls", "stride", "pad"}
    wanted |= {"prefix", "task", "classes", "data", "fraction"}
    holds(given == wanted, f"build_yolo_dataset gives {given ^ wanted} besides or not", DATASET)
    for text in ('pad = 0.0 if mode == "train" else 0.5', "rect = cfg.rect or rect", 'data.get("complete")'):
        holds(text in source, f"build_yolo_dataset no longer has `{text}`", DATASET)


def test_a_data_set_asks_for_images_then_labels(tmp_path: Path) -> None:
    order = []

    class Watched(YOLODataset):
        def get_img_files(self, img_path: Any) -> list[str]:
            order.append(("images", hasattr(self, "data"), self.fraction, self.prefix))
            return list(super().get_img_files(img_path))

        def get_label_files(self) -> list[str]:
            order.append(("labels", self.im_files))
            self.label_files = [str(tmp_path / "mine.txt")]
            return self.label_files

    image, other = tmp_path / "a.png", tmp_path / "mine.txt"
    cv2.imwrite(str(image), np.zeros((16, 16, 3), np.uint8))
    other.write_text("0 0.5 0.5 0.5 0.5\n")
    dataset = Watched(str(tmp_path), data={"names": {0: "a"}}, imgsz=32, augment=False, prefix="p: ", fraction=1.0)
    wanted = [("images", True, 1.0, "p: "), ("labels", [str(image)])]
    holds(order == wanted, f"a data set asks for {order}, not {wanted}", DATASET)
    own = dataset.label_files == [str(other)] and len(dataset.labels[0]["cls"]) == 1
    holds(own, "label files are not those that get_label_files returns", DATASET)


def test_label_files_follow_the_last_images_folder() -> None:
    got = img2label_paths(["/images/x/images/train/a.b.png"])
    holds(got == ["/images/x/labels/train/a.b.txt"], f"the label file of an image is {got}", "data/slice_cache.py")


def test_an_image_without_labels_beside_it_is_a_background() -> None:
    source = inspect.getsource(YOLODataset.verify_args)
    holds(
        "self.im_files" in source and "self.label_files" in source, "images and labels are checked otherwise", DATASET
    )


def test_a_predictor_runs_a_loader_of_ours(tiny_teachers: list[Path], tmp_path: Path) -> None:
    closed, seen = [], []

    class Loader:
        mode, bs, count, source_type = "image", 2, 0, SourceTypes()

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            image = np.zeros((32, 48, 3), np.uint8)
            yield ["one.x.png", "two.png"], [image, image], ["image 1/2: ", "image 2/2: "]

        def close(self) -> None:
            closed.append(True)

    class Predictor(DetectionPredictor):
        def setup_source(self, source: Any, stride: Any = None) -> None:
            seen.append(source)
            self.imgsz, self.dataset, self.vid_writer = [64, 64], Loader(), {}
            self.source_type = self.dataset.source_type

    from ultralytics import YOLO

    source = SimpleNamespace()  # whatever it is, it is handed on
    folder = {"project": str(tmp_path), "name": "r", "save": True, "imgsz": 64}
    results = YOLO(tiny_teachers[0]).predict(source, predictor=Predictor, **folder)
    holds(seen == [source], "Model.predict does not hand the source on to setup_source", PREDICTOR)
    holds([r.path for r in results] == ["one.x.png", "two.png"], "results do not keep a loader's paths", PREDICTOR)
    holds(closed == [True], "a predictor does not close its loader", PREDICTOR)
    names = sorted(p.name for p in (tmp_path / "r").glob("*.jpg"))
    holds(names == ["one.x.jpg", "two.jpg"], f"pictures are named {names}, not by the stems of the paths", PREDICTOR)


def test_results_are_copied_by_new() -> None:
    class Own(Results):
        def new(self) -> "Own":
            return Own(orig_img=self.orig_img, path=self.path, names=self.names)

    image = np.zeros((8, 8, 3), np.uint8)
    result = Own(image, path="a", names={0: "a"}, boxes=torch.tensor([[1.0, 2, 3, 4, 0.5, 0]]))
    holds(type(result.cpu()) is Own, "Results.cpu() does not build its copy by new()", PREDICTOR)
    keys = set(result.summary()[0])
    holds(keys == {"name", "class", "confidence", "box"}, f"a summary's row has {keys}", PREDICTOR)


def test_validation_returns_the_validators_metrics() -> None:
    source = inspect.getsource(original(Model.val))
    holds("return validator.metrics" in source, "Model.val does not return validator.metrics", "evaluate/validator.py")
