"""One test for each thing inside Ultralytics that this package leans on.

They test Ultralytics, not us: when one fails after an update of Ultralytics, its message says what has changed and
which file of ours relied on it. The supported range is the one in pyproject.toml.
"""

import ast
import inspect
import logging
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import __version__
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.tasks import BaseModel, DetectionModel
from ultralytics.utils import LOGGER

CHANNELS = [16, 32]


def holds(condition: bool, changed: str, relied: str) -> None:
    """Fail with what has changed in Ultralytics and what of ours relied on it."""
    if not condition:
        pytest.fail(f"Ultralytics {__version__}: {changed}; {relied} must be adapted", pytrace=False)


def original(function: Callable[..., Any]) -> Callable[..., Any]:
    return inspect.unwrap(function)


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(original(function)).parameters)


def maps() -> list[torch.Tensor]:
    return [torch.zeros(1, 16, 8, 8), torch.zeros(1, 32, 4, 4)]


# ---------------------------------------------------------------------------------------------------- parser


def test_parse_model_has_its_signature() -> None:
    got = parameters(tasks.parse_model)
    holds(got == ["d", "ch", "verbose"], f"parse_model takes {got}, not (d, ch, verbose)", "registry")


def test_parse_model_looks_layers_up_by_name_in_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    row = [-1, 1, "NmODE2CanaryLayer", []]
    config = {"nc": 1, "backbone": [row], "head": []}
    try:
        original(tasks.parse_model)(deepcopy(config), 3, False)
        found = "accepts a name that is not in the module"
    except KeyError:
        found = ""
    except Exception as error:
        found = f"raises {type(error).__name__} for an unknown layer, not KeyError"
    holds(not found, f"parse_model {found}: there may be an official hook for layers now", "registry")


def test_models_are_built_through_the_modules_parse_model(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = tasks.parse_model
    monkeypatch.setattr(tasks, "parse_model", lambda *a, **k: (calls.append(k), real(*a, **k))[1])
    DetectionModel("yolo11n.yaml", verbose=False)
    holds(len(calls) == 1, "DetectionModel no longer calls tasks.parse_model", "registry")
    holds(set(calls[0]) <= {"ch", "verbose"}, f"parse_model is called with keywords {set(calls[0])}", "registry")


def test_layers_carry_their_routing() -> None:
    head = DetectionModel("yolo11n.yaml", verbose=False).model[-1]
    for name in ("i", "f", "np", "type"):
        holds(hasattr(head, name), f"built layers have no attribute {name!r}", "registry (_Row.build)")
    holds((head.i, head.f) == (23, [16, 19, 22]), f"routing is {head.i}, {head.f}", "registry and distill/teachers.py")


def test_the_model_table_starts_lines_with_the_row_number() -> None:
    records: list[logging.LogRecord] = []
    keep = logging.Handler()
    keep.emit = records.append  # type: ignore[method-assign]
    LOGGER.addHandler(keep)
    try:
        DetectionModel("yolo11n.yaml", verbose=True)
    finally:
        LOGGER.removeHandler(keep)
    rows = [r.getMessage() for r in records if "ultralytics.nn.modules.head.Detect" in r.getMessage()]
    holds(len(rows) == 1 and rows[0][:3] == " 23", f"the table line of the head is {rows}", "registry (_table)")


def test_yaml_model_load_is_imported_by_name() -> None:
    import ultralytics.engine.model as engine

    for module in (tasks, engine):
        holds(hasattr(module, "yaml_model_load"), f"{module.__name__} has no yaml_model_load", "registry (_HOLDERS)")
    holds(parameters(tasks.yaml_model_load) == ["path"], "yaml_model_load takes other arguments", "registry")
    config = original(tasks.yaml_model_load)("yolo11n.yaml")
    for key in ("scale", "scales", "yaml_file", "backbone", "head", "nc"):
        holds(key in config, f"a loaded model YAML has no key {key!r}", "registry (_wrap_yaml_model_load)")


def test_the_scale_is_read_from_the_key_scale() -> None:
    config = original(tasks.yaml_model_load)("yolo11.yaml")
    config["scale"] = "s"
    width = DetectionModel(config, verbose=False).model[0].conv.out_channels
    holds(width == 32, f"scale 's' gives a first layer of {width} channels, not 32", "registry and cfg/models")


# ---------------------------------------------------------------------------------------------------- head


@pytest.mark.parametrize("legacy", [False, True])
def test_detect_has_its_layers(legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Detect, "legacy", legacy)
    head = Detect(3, 16, True, CHANNELS)
    for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3"):
        levels = getattr(head, name, None)
        holds(isinstance(levels, nn.ModuleList), f"Detect.{name} is a {type(levels).__name__}", "nn/heads.py (_SETS)")
        for level in levels:
            plain = isinstance(level, nn.Sequential) and len(level) == 3 and type(level[2]) is nn.Conv2d
            holds(plain, f"Detect.{name} does not end in a Conv2d at index 2", "nn/heads.py")
            conv = level[1][-1] if isinstance(level[1], nn.Sequential) else level[1]
            holds(isinstance(conv, Conv) and hasattr(conv, "act"), f"Detect.{name}[i][1] ends in {conv}", "nn/heads.py")
    holds(isinstance(head.cv3[0][0], Conv) == legacy, "`legacy` no longer tells the layout of cv3", "nn/heads.py")


def test_detect_takes_its_arguments() -> None:
    got = parameters(Detect.__init__)[1:]
    holds(got == ["nc", "reg_max", "end2end", "ch"], f"Detect takes {got}", "nn/heads.py")
    got = parameters(Detect.forward_head)
    holds(got == ["self", "x", "box_head", "cls_head"], f"Detect.forward_head takes {got}", "nn/heads.py")


def test_detect_names_its_branches_as_keywords_of_forward_head() -> None:
    head = Detect(3, 16, True, CHANNELS)
    for name, prefix in (("one2many", ""), ("one2one", "one2one_")):
        want = {"box_head": getattr(head, f"{prefix}cv2"), "cls_head": getattr(head, f"{prefix}cv3")}
        holds(getattr(head, name) == want, f"Detect.{name} is no longer box_head and cls_head", "nn/heads.py")


@pytest.mark.parametrize("end2end", [False, True])
def test_detect_returns_features_with_its_predictions(end2end: bool) -> None:
    out = Detect(3, 16, end2end, CHANNELS).train()(maps())
    if end2end:
        holds(set(out) == {"one2many", "one2one"}, f"a dual head returns {set(out)}", "train/trainer.py")
        out = out["one2many"]
    holds(set(out) == {"boxes", "scores", "feats"}, f"Detect returns {set(out)} in training", "train/trainer.py")
    shapes = [tuple(f.shape) for f in out["feats"]]
    holds(shapes == [(1, 16, 8, 8), (1, 32, 4, 4)], f"`feats` are {shapes}, not the neck maps", "train/trainer.py")


@pytest.mark.parametrize("end2end", [False, True])
def test_detect_fuse_drops_a_set_by_its_prefix(end2end: bool) -> None:
    head = Detect(3, 16, True, CHANNELS)
    head.extra, head.one2one_extra = nn.ModuleList([nn.Identity()]), nn.ModuleList([nn.Identity()])
    head.end2end = end2end
    head.fuse()
    kept, dropped = ("one2one_extra", "extra") if end2end else ("extra", "one2one_extra")
    kept_too = getattr(head, kept) is not None and getattr(head, dropped) is None
    holds(kept_too, "Detect.fuse no longer drops modules by the prefix one2one_", "nn/heads.py (_SETS)")


def test_load_replaces_the_class_branch_by_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = []
    net, source = (DetectionModel("yolo11n.yaml", nc=nc, verbose=False) for nc in (3, 90))
    real = Detect.__setattr__

    def record(self: Detect, name: str, value: Any) -> None:
        replaced.append(name)
        real(self, name, value)

    monkeypatch.setattr(Detect, "__setattr__", record)
    net.load(source, verbose=False)
    holds("cv3" in replaced, "BaseModel.load no longer assigns head.cv3", "nn/heads.py (__setattr__)")
    holds(parameters(BaseModel.load) == ["self", "weights", "verbose"], "BaseModel.load changed", "registry")


def test_fuse_of_the_model_reaches_convolutions_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(Detect, "fuse", lambda self: calls.append(self))
    net = DetectionModel("yolo11n.yaml", verbose=False).fuse(verbose=False)
    holds(len(calls) == 1, "BaseModel.fuse no longer calls the head's fuse", "nn/heads.py (fuse)")
    left = [m for m in net.modules() if isinstance(m, Conv) and hasattr(m, "bn")]
    holds(not left, "BaseModel.fuse no longer folds Conv.bn", "nn/blocks.py")


# ---------------------------------------------------------------------------------------------------- checkpoints


class _Allowed(nn.Module):
    pass


def test_models_ask_init_criterion_for_their_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    net = DetectionModel("yolo11n.yaml", verbose=False)
    asked: list[int] = []
    loss = SimpleNamespace(asked=asked)
    monkeypatch.setattr(DetectionModel, "init_criterion", lambda self: lambda preds, batch: (asked.append(1), loss)[1])
    got = net.loss({"img": torch.zeros(1, 3, 64, 64)}, preds={})
    holds(
        got is loss and asked == [1], "BaseModel.loss no longer calls init_criterion", "registry (_wrap_init_criterion)"
    )


def test_the_model_shares_its_strides_with_the_head_when_bias_init_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(Detect, "bias_init", lambda self: seen.append(self.stride))
    net = DetectionModel("yolo11n.yaml", verbose=False)
    holds(len(seen) == 1, f"bias_init is called {len(seen)} times while a model is built", "nn/gfl.py (bias_init)")
    holds(net.stride is seen[0], "the model's stride is no longer the head's tensor", "nn/gfl.py (bias_init)")


def test_inference_uses_no_layer_of_detect_but_those_it_is_given() -> None:
    """GFLDetect builds none of Detect's layers: what its methods read must be what we set."""
    used = {"forward", "_inference", "_get_decode_boxes", "decode_bboxes", "fuse"}
    source = "".join(inspect.getsource(getattr(Detect, name)) for name in used)
    read = {word for word in re.findall(r"self\.(\w+)", source)}
    known = {"forward_head", "one2many", "one2one", "one2one_cv2", "training", "_inference", "end2end", "postprocess"}
    known |= {"export", "_get_decode_boxes", "dynamic", "shape", "anchors", "strides", "stride", "decode_bboxes", "dfl"}
    known |= {"xyxy", "_modules"}
    holds(read <= known, f"Detect reads {sorted(read - known)} in inference", "nn/gfl.py (GFLDetect.__init__)")


def test_safe_loading_refuses_foreign_types_and_honours_torchs_allow_list(tmp_path: Path) -> None:
    holds(parameters(tasks.torch_safe_load) == ["weight", "safe_only"], "torch_safe_load changed", "registry")
    path = tmp_path / "x.pt"
    torch.save({"model": _Allowed()}, path)
    with pytest.raises(TypeError):
        original(tasks.torch_safe_load)(path, safe_only=True)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    holds(any("_Allowed" in n for n in names), f"torch names {names} as unsafe", "registry (_foreign_globals)")
    with torch.serialization.safe_globals([_Allowed]):
        loaded, file = tasks.torch_safe_load(path, safe_only=True)
    holds(type(loaded["model"]) is _Allowed, "safe loading ignores torch's allow-list", "registry (_patch)")
    holds(file == str(path), "torch_safe_load returns another file", "registry")


def test_other_pickles_are_read_by_one_function_that_safe_mode_has_a_list_for(tmp_path: Path) -> None:
    from ultralytics.utils import patches, torch_utils

    loaders = {tasks.torch_load, torch_utils.torch_load, patches.torch_load}
    holds(len(loaders) == 1, "Ultralytics reads pickles by several functions", "registry/safe_loading.py")
    path = tmp_path / "x.pt"
    torch.save({"model": tasks.DetectionModel("yolo11n.yaml", verbose=False)}, path)
    with tasks._SafeLoad.loading(path):
        torch.load(path, weights_only=True)


def test_rows_and_activations_are_read_as_we_check_them() -> None:
    source = inspect.getsource(original(tasks.parse_model))
    for text in ("globals()[m]", "getattr(torch.nn, m[3:])", "torchvision.ops.", "eval(act)", "ast.literal_eval(a)"):
        holds(text in source, f"parse_model does not read rows by {text}", "registry/model_yaml.py")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    evaluated = [ast.unparse(c) for c in calls if ast.unparse(c.func) in {"eval", "exec"}]
    holds(evaluated == ["eval(act)"], f"parse_model evaluates {evaluated}", "registry/model_yaml.py")


def test_a_stock_checkpoint_leaves_no_unsafe_global_after_safe_loading(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model": DetectionModel("yolo11n.yaml", verbose=False)}, path)
    tasks.torch_safe_load(path, safe_only=True)
    left = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    holds(not left, f"safe loading no longer allows its own types for good: {left}", "registry (_foreign_globals)")


def test_file_name_helpers_are_there() -> None:
    import ultralytics.utils as utils
    from ultralytics.utils import checks, downloads

    names = {utils: ["ONLINE", "SETTINGS"], checks: ["check_yolov5u_filename"]}
    names[downloads] = ["GITHUB_ASSETS_NAMES", "attempt_download_asset"]
    for module, wanted in names.items():
        for name in wanted:
            holds(hasattr(module, name), f"{module.__name__}.{name} is gone", "registry (_checkpoint_file)")
    holds("yolo11s.pt" in downloads.GITHUB_ASSETS_NAMES, "official names changed", "registry (_checkpoint_file)")


def test_tasks_are_guessed_from_modules() -> None:
    holds(tasks.guess_model_task(Detect(1, ch=CHANNELS)) == "detect", "guess_model_task changed", "registry")
    config = {"head": [[-1, 1, "NmODE2Detect", []]]}
    holds(
        tasks.guess_model_task(config) == "detect", "guess_model_task does not know our head", "nn/heads.py (its name)"
    )


# ---------------------------------------------------------------------------------------------------- training loop


@pytest.mark.parametrize(
    ("owner", "method", "wanted"),
    [
        (BaseTrainer, "_setup_train", ["self"]),
        (BaseTrainer, "save_model", ["self"]),
        (BaseTrainer, "_load_checkpoint_state", ["self", "ckpt"]),
        (BaseTrainer, "resume_training", ["self", "ckpt"]),
        (BaseTrainer, "optimizer_step", ["self"]),
        (
            BaseTrainer,
            "build_optimizer",
            ["self", "model", "name", "lr", "momentum", "decay", "iterations"],
        ),
        (BaseTrainer, "label_loss_items", ["self", "loss_items", "prefix"]),
        (BaseTrainer, "check_resume", ["self", "overrides"]),
        (BaseTrainer, "_handle_nan_recovery", ["self", "epoch"]),
        (BaseTrainer, "set_class_weights", ["self"]),
        (BaseTrainer, "final_eval", ["self"]),
        (DetectionTrainer, "progress_string", ["self"]),
        (DetectionTrainer, "get_validator", ["self"]),
        (DetectionTrainer, "get_model", ["self", "cfg", "weights", "verbose"]),
        (DetectionTrainer, "build_dataset", ["self", "img_path", "mode", "batch"]),
    ],
)
def test_trainer_hooks_keep_their_signature(owner: type, method: str, wanted: list[str]) -> None:
    function = getattr(owner, method, None)
    holds(function is not None, f"{owner.__name__}.{method} is gone", "train/trainer.py")
    got = parameters(function)
    holds(got == wanted, f"{owner.__name__}.{method} takes {got}, not {wanted}", "train/trainer.py")


@pytest.mark.parametrize(
    ("method", "called"),
    [
        ("_setup_train", ["self._build_train_pipeline()", "self.get_validator()", "self.resume_training("]),
        ("_build_train_pipeline", ["self.build_optimizer("]),
        ("_do_train", ["self._setup_train()", "self.optimizer_step()", "self.save_model()", "self.final_eval()"]),
        ("_do_train", ["self._handle_nan_recovery(", "self.label_loss_items(self.tloss)", "criterion.update()"]),
        ("_do_train", ["loss, self.loss_items = self.model(batch)", "self.loss = loss.sum()", "*= self.world_size"]),
        ("_do_train", ['run_callbacks("on_train_epoch_end")', "tuple(self.loss_items)"]),
        ("check_resume", ["self.args.model = self.args.resume = str(last)", '"save_dir"', "self.resume = resume"]),
        ("resume_training", ["self._load_checkpoint_state(ckpt)"]),
        ("_handle_nan_recovery", ["self._load_checkpoint_state(ckpt)"]),
        ("save_model", ["self.ema.ema", "ema.criterion = None", "self.last.write_bytes", "self.best.write_bytes"]),
    ],
)
def test_the_training_loop_calls_the_hooks(method: str, called: list[str]) -> None:
    source = inspect.getsource(getattr(BaseTrainer, method))
    for text in called:
        holds(text in source, f"BaseTrainer.{method} no longer has `{text}`", "train/trainer.py")


def test_every_pass_over_the_data_begins_with_a_callback() -> None:
    source = inspect.getsource(BaseTrainer._do_train)
    begin, over = source.find('self.run_callbacks("on_train_epoch_start")'), source.find("for i, batch in pbar")
    inside = source.find("while True:") < begin < over
    holds(inside, "BaseTrainer._do_train no longer calls on_train_epoch_start before every epoch", "train/trainer.py")
    holds(
        inspect.getsource(BaseTrainer._setup_train).rstrip().endswith('self.run_callbacks("on_pretrain_routine_end")'),
        "BaseTrainer._setup_train no longer ends with on_pretrain_routine_end",
        "train/trainer.py",
    )


def test_validation_in_training_reads_the_trainers_loss_items() -> None:
    source = inspect.getsource(DetectionValidator.__call__)
    for text in ("trainer.loss_items.items()", 'trainer.label_loss_items(loss, prefix="val")', "model.loss("):
        holds(text in source, f"the validator no longer has `{text}`", "train/trainer.py")


def test_a_criterion_is_any_object_on_the_model() -> None:
    net = DetectionModel("yolo11n.yaml", nc=2, verbose=False)
    seen = []

    def criterion(preds: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        seen.append((preds, batch))
        return torch.ones(3), {"box_loss": torch.ones(())}

    net.criterion = criterion
    batch = {"img": torch.zeros(1, 3, 64, 64)}
    out = net(batch)
    called = len(seen) == 1 and seen[0][1] is batch and "feats" in seen[0][0] and out[0].shape == (3,)
    holds(called, "a model no longer calls its criterion as criterion(preds, batch)", "train/criterion.py")


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolo26n.yaml"])
def test_detection_losses_return_a_vector_and_named_items(name: str) -> None:
    net = DetectionModel(name, nc=2, verbose=False)
    net.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=10)
    batch = {"img": torch.zeros(2, 3, 64, 64), "batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1)}
    batch["bboxes"] = torch.full((1, 4), 0.5)
    loss, items = net.train()(batch)
    holds(loss.shape == (3,), f"the detection loss is of shape {tuple(loss.shape)}, not (3,)", "train/trainer.py")
    names = list(items)
    third = "dfl_loss" if name == "yolo11n.yaml" else "l1_loss"  # the head without DFL
    holds(names == ["box_loss", "cls_loss", third], f"loss items are {names}", "trainer.py and evaluate/report.py")
    scaled = torch.allclose(loss.detach(), 2 * torch.stack(list(items.values())), rtol=1e-4)
    if name == "yolo11n.yaml":  # a dual head sums two branches, and names the items of one
        holds(scaled, "the detection loss is no longer multiplied by the batch size", "train/trainer.py")
    else:
        holds(hasattr(net.criterion, "update"), "the end-to-end loss has no update()", "train/criterion.py")


def test_ultralytics_reads_the_settings_of_the_tests() -> None:
    from ultralytics.utils import ONLINE

    holds(ONLINE is False, "YOLO_OFFLINE no longer keeps Ultralytics offline", "tests/conftest.py")
