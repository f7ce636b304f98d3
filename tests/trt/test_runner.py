"""The runner with ONNX Runtime underneath: everything but the device."""

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.utils import YAML

from meddet_yolo.trt.engine_file import write_sidecar
from meddet_yolo.trt.recalibration import Isotonic, Temperature, store
from meddet_yolo.trt.runner import OnnxRunner, main, open_runner

IMGSZ = 160
MODELS = {
    "meddet-n": {},
    "meddet-n-end2end": {"nms": False},
    "yolov10n-end2end": {"nms": False},
    "meddet-n-nms": {"nms": True},
    "meddet11-n": {},
    "yolo11n": {},
    "meddet-n-dynamic": {"dynamic": True},
}


def _lively(name: str, images: np.ndarray) -> YOLO:
    """An untrained detector whose scores on the images spread over 0..1, so that there are many boxes to compare."""
    torch.manual_seed(0)
    model = YOLO(f"{name}.yaml")
    net = model.model
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
            torch.nn.init.constant_(layer.bias, 2.0)  # where SiLU is nearly linear: else all is extreme on other images
    net.train()
    with torch.no_grad():
        net(batch)
        net(batch)
        head = net.model[-1]
        hooks = [
            level[-1].register_forward_pre_hook(partial(_spread, mean=-2.5, deviation=1.5))
            for branch in (head.cv3, getattr(head, "one2one_cv3", None) or [])
            for level in branch
        ]
        if head.reg_max == 1:  # distances as they come, which must not be negative: a box needs an area
            hooks += [
                level[-1].register_forward_pre_hook(partial(_spread, mean=3.0, deviation=0.5))
                for branch in (head.cv2, getattr(head, "one2one_cv2", None) or [])
                for level in branch
            ]
        net.eval()(batch)
    for hook in hooks:
        hook.remove()
    return model


def _spread(layer: torch.nn.Conv2d, inputs: tuple[torch.Tensor], *, mean: float, deviation: float) -> None:
    """Give a prediction layer random weights with which its outputs have a mean and a deviation here."""
    layer.weight.normal_()
    outputs = torch.nn.functional.conv2d(inputs[0], layer.weight)
    factor = deviation / outputs.std((0, 2, 3))
    layer.weight.mul_(factor.view(-1, 1, 1, 1))
    layer.bias.copy_(mean - factor * outputs.mean((0, 2, 3)))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    """Drawn spines of odd sizes."""
    from meddet_yolo.phantom import generate_phantom

    folder = tmp_path_factory.mktemp("images")
    data = generate_phantom(folder / "data", patients=4, imgsz=IMGSZ, slices=1)
    source = [cv2.imread(str(file)) for file in sorted((data.parent / "images").rglob("*.png"))]
    files = []
    for number, size in enumerate([(IMGSZ, IMGSZ), (97, 211), (333, 128), (40, 51)]):
        files.append(folder / f"{number}.png")
        cv2.imwrite(str(files[-1]), cv2.resize(source[number % len(source)], size))
    return files


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory) -> dict[str, Path]:
    """ONNX models of both kinds of head, and one of dynamic shape."""
    folder = tmp_path_factory.mktemp("onnx")
    bordered = LetterBox((IMGSZ, IMGSZ), auto=False)  # as it will see them
    batch = np.stack([bordered(image=cv2.imread(str(file))) for file in images])
    found = {}
    for name, options in MODELS.items():
        model = _lively(name.removesuffix("-dynamic").removesuffix("-end2end").removesuffix("-nms"), batch)
        model.ckpt_path = model.model.pt_path = str(folder / f"{name}.pt")
        found[name] = Path(model.export(format="onnx", imgsz=IMGSZ, simplify=False, verbose=False, **options))
    return found


def _theirs(path: Path, files, imgsz=IMGSZ, conf=0.25):
    results = YOLO(str(path), task="detect").predict(
        [cv2.imread(str(file)) for file in files], imgsz=imgsz, conf=conf, verbose=False, device="cpu"
    )
    return [r.boxes.data.numpy() for r in results]


def _mine(found):
    return np.concatenate((found.xyxy, found.confidence[:, None], found.class_id[:, None]), axis=1)


@pytest.mark.parametrize("name", MODELS)
def test_boxes_are_those_of_ultralytics(exported, images, name):
    with OnnxRunner(exported[name], threads=1) as runner:
        total = 0
        for file in images:
            expected = _theirs(exported[name], [file])[0]
            (found,) = runner(file)
            assert len(found) == len(expected)
            np.testing.assert_allclose(_mine(found), expected, atol=1e-3)
            total += len(found)
        assert total > 20


@pytest.mark.parametrize("function", [Temperature(2.5), Isotonic((0.1, 0.5, 0.9), (0.0, 0.4, 0.8))])
def test_a_stored_recalibration_gives_probabilities(exported, images, tmp_path, function):
    copy = tmp_path / "a.onnx"
    shutil.copy(exported["meddet11-n"], copy)
    write_sidecar(copy, {})
    store(copy, function)
    with open_runner(copy, threads=1) as runner, open_runner(copy, threads=1, recalibration=None) as plain:
        for conf in (0.1, 0.37, 0.79):
            for found, raw in zip(runner(images, conf=conf), plain(images, conf=0.001), strict=True):
                probability = function(raw.confidence).astype(np.float32)
                assert len(found) == min(300, int((probability > conf).sum()))
                np.testing.assert_array_equal(found.confidence, probability[: len(found)])
                np.testing.assert_array_equal(found.xyxy, raw.xyxy[: len(found)])
        assert not len(runner(images[0], conf=1.0)[0])


def test_boxes_of_a_trained_detector_on_real_images(spider, tmp_path):
    teacher = spider.parents[1] / "teachers" / "yolo11s_spider_disc2.pt"
    if not teacher.is_file():
        pytest.skip("the trained teacher is not beside the data set")
    copy = tmp_path / teacher.name
    copy.write_bytes(teacher.read_bytes())
    path = YOLO(str(copy)).export(format="onnx", imgsz=256, simplify=False, verbose=False)
    files = sorted((spider.parent / "images" / "val").glob("*.jpg"))[::7]
    with OnnxRunner(path, threads=1, conf=0.1) as runner:
        assert runner.names == YAML.load(spider)["names"]
        found = [_mine(f) for f in runner(files)]
    for file, mine in zip(files, found, strict=True):
        (theirs,) = _theirs(path, [file], 256, 0.1)
        assert len(theirs) > 3
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_dynamic_shapes_take_no_needless_padding(exported, images):
    with OnnxRunner(exported["meddet-n-dynamic"], threads=1) as runner:
        runner(images[1])
        assert runner.session.buffer((1, 3, 160, 96)).shape == (1, 3, 160, 96)
        seen = []
        run = runner.session.run
        runner.session.run = lambda shape: (seen.append(shape), run(shape))[1]
        runner(images[1])
        runner([images[1], images[0]])
        assert seen == [(1, 3, 160, 96), (2, 3, 160, 160)]
        runner(np.full((133, 330, 3), 255, np.uint8))  # 64.5 rows, of which 64 ask for another scale than 160 columns
        assert seen[-1] == (1, 3, 64, 160)
        assert (runner.session.buffer(seen[-1]) == 1).all()


def test_several_images_give_what_each_gives_alone(exported, images):
    for name in ("meddet-n-end2end", "meddet-n-dynamic"):  # one image a run, and several
        with OnnxRunner(exported[name], threads=1) as runner:
            square = [cv2.resize(cv2.imread(str(file)), (IMGSZ, IMGSZ)) for file in images]
            together = runner(square)
            for image, found in zip(square, together, strict=True):
                np.testing.assert_allclose(_mine(found), _mine(runner(image)[0]), atol=1e-3)
            assert runner([]) == []
            assert set(runner.speed) == {"preprocess", "inference", "postprocess"}


def test_options_of_a_call_and_of_the_runner(exported, images):
    with open_runner(exported["meddet11-n"], threads=1, max_det=5) as runner:
        assert len(runner(images[0])[0]) == 5
        assert len(runner(images[0], max_det=2)[0]) == 2
        assert len(runner(images[0], conf=1.0)[0]) == 0
        assert len(runner(images[0])[0]) == 5
        with pytest.raises(TypeError, match="unknown option 'confidence': valid are conf, iou"):
            runner(images[0], confidence=0.5)


def test_threads_share_a_runner(exported, images):
    arrays = [cv2.imread(str(file)) for file in images]
    with OnnxRunner(exported["meddet11-n"], threads=1) as runner:
        expected = [_mine(runner(array)[0]) for array in arrays]
        found = [[] for _ in arrays]

        def work(number):
            for _ in range(5):
                found[number].append(_mine(runner(arrays[number])[0]))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(arrays))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for mine, alone in zip(found, expected, strict=True):
        assert len(mine) == 5
        for one in mine:
            np.testing.assert_allclose(one, alone, atol=1e-4)


def test_a_closed_runner(exported, images):
    runner = OnnxRunner(exported["meddet-n"])
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="is closed"):
        runner(images[0])


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_runner(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="no model that ONNX Runtime can load"):
        open_runner(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="is neither an"):
        open_runner("best.pt")


def test_a_model_of_another_task(exported, tmp_path):
    import onnx

    model = onnx.load(str(exported["meddet-n"]))
    for entry in model.metadata_props:
        if entry.key == "task":
            entry.value = "segment"
    onnx.save(model, str(tmp_path / "segment.onnx"))
    with pytest.raises(ValueError, match="task 'segment'"):
        OnnxRunner(tmp_path / "segment.onnx")


def test_command(exported, images, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_text("nothing")
    assert main([str(exported["meddet-n"]), str(images[0]), str(broken), str(tmp_path / "none.png")]) == 1
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert json.loads(line)["boxes"][0].keys() == {"class", "class_id", "confidence", "xyxy"}
    assert "broken.png cannot be read" in err and "none.png: no such file" in err
    assert main([str(exported["meddet-n"]), str(images[0])]) == 0
    assert main(["student.engine", "a.png"]) == 1
    assert "student.engine: no such file" in capsys.readouterr().err


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        missing = {"torch", "torchvision", "torchdiffeq", "ultralytics", "matplotlib", "yaml", "scipy", "pandas"}
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def _run_blocked(code: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKER + code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_it_runs_where_there_is_no_torch(exported, images):
    """A container with numpy, opencv and a runtime, and nothing else of ours."""
    out = _run_blocked(
        "from meddet_yolo.trt.runner import main, EngineRunner\n"
        "import meddet_yolo.trt.engine_session, meddet_yolo.trt.cuda_backends, meddet_yolo.trt.latency\n"
        f"code = main([{str(exported['meddet-n'])!r}, {str(images[0])!r}])\n"
        "print(code, sorted({m.partition('.')[0] for m in sys.modules} & {'torch', 'ultralytics'}))\n"
    )
    line, last = out.splitlines()
    assert last == "0 []"
    with OnnxRunner(exported["meddet-n"]) as runner:
        here = list(runner(images[0])[0])
    assert len(here) > 3
    there = json.loads(line)["boxes"]
    np.testing.assert_allclose([b["xyxy"] for b in there], [b["xyxy"] for b in here], atol=1e-3)


def test_what_needs_torch_still_says_so():
    out = _run_blocked(
        "import meddet_yolo\ntry: meddet_yolo.MedDet\nexcept ModuleNotFoundError as error: print(error)\n"
    )
    assert out.strip() in {"No module named 'torch'", "No module named 'ultralytics'"}
