"""The `meddet` command: `yolo`'s grammar, with teachers.

What this command does not know it hands to Ultralytics' own, with our model files and layers registered. Every failure
is one line on the standard error stream and a non-zero exit code; `MEDDET_TRACEBACK=1` shows where it came from.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from meddet_yolo.arguments import (
    MODES,
    REQUIRED,
    TASKS,
    THEIR_COMMANDS,
    THEIR_MODES,
    UsageError,
    check_command,
    nearest,
    parse,
    read_recipe,
    take_trust,
)
from meddet_yolo.console import as_list, describe, fetch_only_what_is_asked_for
from meddet_yolo.registry.options import check_numbers

# Commands of ours beside the modes: module and function, whose parameters are the command's keys. What it returns is
# printed: a string as it is, a dictionary as key=value lines, the YAML of a data set that was made as data=PATH.
_OWN_COMMANDS = {
    "info": ("meddet_yolo.evaluate.info", "info"),
    "benchmark": ("meddet_yolo.benchmark", "benchmark"),
    "compare": ("meddet_yolo.compare", "compare"),
    "convert": ("meddet_yolo.data.convert", "convert_command"),
    "evaluate": ("meddet_yolo.evaluate.evaluation", "evaluate_command"),
    "phantom": ("meddet_yolo.phantom", "generate_phantom"),
    "quickstart": ("meddet_yolo.quickstart", "quickstart"),
    "slices": ("meddet_yolo.imaging.pictures", "write_pictures"),
}
_OTHER_FAMILIES = ("rtdetr", "fastsam", "sam_", "sam2_", "sam2.1_", "sam3", "mobile_sam", "yolo_nas")

HELP = """\
meddet: distil several YOLO detectors into one small one, inside Ultralytics

  meddet train   model=meddet-n.yaml teachers=[a.pt,b.pt] data=d.yaml epochs=100 imgsz=512
  meddet train   cfg=recipe.yaml imgsz=640      a recipe file holds any keys; the command line wins
  meddet train   model=runs/detect/train/weights/last.pt resume=True
  meddet train   model=... data=... check=True  what it would do, need and take: sets all up and runs three batches
  meddet val     model=best.pt data=d.yaml      model=[a.pt,b.pt] puts several side by side
  meddet val     model=[a.pt,b.pt] data=d.yaml noise=rician sigma=[0,0.05,0.1]      accuracy under MRI noise
  meddet predict model=best.pt source=images/
  meddet predict model=best.pt source=series/ slices=mid|all|5 [sr=True]      DICOM or NIfTI; sr= writes DICOM reports
  meddet export  model=best.pt format=engine [runtime=rtx] [precision=fp16|int8|fp8|fp32] [data=d.yaml]

  meddet benchmark model=[a.pt,b.engine] data=d.yaml imgsz=512 backends=[pytorch,onnxruntime,tensorrt]

  meddet compare data=d.yaml student=meddet11-n.yaml methods=[none,meddet] teachers=[a.pt] seeds=3 folds=4     intervals

  meddet evaluate model=[a.pt,b.engine,c.json] data=d.yaml split=test [require=sensitivity@1fp>=0.85]

  meddet quickstart [out=DIR] [device=cpu]      the whole job on generated images, in under ten minutes
  meddet phantom out=DIR [patients=914] [seed=0] [imgsz=512] [preset=paper|small|tiny]      only make the images
  meddet convert source=PATH out=DIR [patient=...] [val=0.2]     COCO, VOC, CSV or masks to YOLO, split by patient
  meddet convert source=d.yaml check=True       look for leaks, duplicates and suspicious labels
  meddet info [model=a.yaml,b.pt] [imgsz=512] [nc=2]      parameters and multiply-adds, beside the paper's
  meddet slices source=series/ out=DIR [slices=all]     DICOM or NIfTI slices as PNG, to draw labels on
  meddet settings [key=value | reset]           Ultralytics' settings
  meddet version | checks | help

Without teachers= it trains as `yolo` does. All arguments of `yolo` work: `meddet cfg` lists them. Distillation adds
  teachers=       checkpoints to learn from: [a.pt,b.pt], a.pt,b.pt or a.pt (quote [ ] in zsh)
  inherit=        auto: a student from a YAML starts with channels of a teacher of its family; none; or a checkpoint
  fusion=         lwff, sum or concat           guard=          reconstruction, detection or none
  dist_weight=    weight of feature distillation                adv_weight=   weight of the adversarial term
  distill_warmup= epochs until both are at full weight          disc_lr=      learning rate of the adversary
  mri_noise=      probability that an image gets MRI noise (of strength mri_noise_sigma= and others)
and more, each described in docs/distil.md and in the commented recipe `cfg=default.yaml`.
What meddet does not know (track, other tasks, ...) goes to Ultralytics, whose benchmark is `yolo benchmark`.
trust=true lets files run code that a command reads (checkpoints, model and data YAMLs): only for files that you trust.
For research only: this is no medical device."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Examples:
        >>> main(["trian"])
        2
    """
    args = list(sys.argv[1:] if argv is None else argv)
    fetch_only_what_is_asked_for()
    try:
        args, trust = take_trust(args)
        from meddet_yolo.registry import trusting

        with trusting(trust):
            _dispatch(args)
    except KeyboardInterrupt as interrupt:
        print(f"\nmeddet: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone, as in `meddet help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("MEDDET_TRACEBACK", "0").lower() not in {"", "0", "false"}:
            traceback.print_exc()
        print(f"meddet: error: {describe(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


# choosing a command ---------------------------------------------------------------------------------------------------


def _dispatch(args: list[str]) -> None:
    """Find out whose command this is and run it."""
    word = args[0].lstrip("-") if args else "help"
    own: dict[str, Callable[[list[str]], None]] = {
        "help": lambda _: print(HELP),
        "h": lambda _: print(HELP),
        "version": lambda _: _print_versions(),
        "settings": _settings,
        **{name: partial(_run_own, name) for name in _OWN_COMMANDS},
    }
    if word in own:
        own[word](args[1:])
        return
    check_command(args, own)
    words, options = parse(args)
    cfg = options.pop("cfg", None)
    options = {**(read_recipe(cfg) if cfg is not None else {}), **options}
    task = next((w for w in words if w in TASKS), options.get("task") or "detect")
    mode = next((w for w in words if w in THEIR_MODES), options.get("mode"))
    if options.get("teachers") and (task != "detect" or _is_other_family(options.get("model"))):
        raise UsageError(
            f"model={options.get('model')} (task {task}) cannot be a student: teachers= distils into YOLO detectors, "
            "such as meddet-n.yaml or yolo11n.yaml"
        )
    if mode in MODES and task == "detect" and not _is_other_family(options.get("model")):
        _run_mode(mode, [w for w in words if w not in (mode, task)], options)
    elif mode is not None or (words[:1] and words[0] in THEIR_COMMANDS):
        _pass_on(args)
    elif unknown := [w for w in words if w not in TASKS]:
        known = (*own, *THEIR_MODES, *TASKS, *THEIR_COMMANDS)
        raise UsageError(f"{unknown[0]!r} is no command: {nearest(unknown[0], known)} (`meddet help` lists them)")
    else:
        raise UsageError(f"no command given: add one of {', '.join(MODES)} (`meddet help` shows examples)")


def _is_other_family(model: Any) -> bool:
    """Return whether a model file's name is of a family that Ultralytics builds with a class of its own."""
    return any(part in Path(str(model)).stem.lower() for part in _OTHER_FAMILIES)


def _pass_on(args: list[str]) -> None:
    """Run Ultralytics' own command in this process."""
    from ultralytics.cfg import entrypoint

    saved = sys.argv[:]
    sys.argv[:] = [saved[0] if saved else "meddet", *args]  # in place: Ultralytics keeps a reference to this list
    try:
        with _without_their_help():
            entrypoint()
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            raise RuntimeError(str(exit_.code)) from exit_
    finally:
        sys.argv[:] = saved


@contextmanager
def _without_their_help() -> Iterator[None]:
    """Keep Ultralytics from logging the whole help text of `yolo` before it raises an error."""
    from ultralytics.cfg import CLI_HELP_MSG
    from ultralytics.utils import LOGGER

    def keep(record: Any) -> bool:
        return record.msg is not CLI_HELP_MSG

    LOGGER.addFilter(keep)
    try:
        yield
    finally:
        LOGGER.removeFilter(keep)


# train, val, predict, export ------------------------------------------------------------------------------------------


def _check_keys(mode: str, options: dict[str, Any]) -> None:
    """Refuse unknown keys; keys that Ultralytics has renamed get their new name in place."""
    from ultralytics.cfg import check_dict_alignment
    from ultralytics.utils import DEFAULT_CFG_DICT

    from meddet_yolo.model import OWN_KEYS

    valid = {*DEFAULT_CFG_DICT, "augmentations", "save_dir", *OWN_KEYS[mode]}
    for key in options:
        home = next((m for m in MODES if key in OWN_KEYS[m]), None)
        if key not in valid and home:
            raise UsageError(f"{key}= is an argument of `meddet {home}`, not of `meddet {mode}`")
    try:
        with _without_their_help():
            check_dict_alignment(dict.fromkeys(valid), options)
    except SyntaxError as error:
        key = next(k for k in options if k not in valid)
        raise UsageError(f"{key}= is no argument of `meddet {mode}`: {nearest(key, valid)}") from error


def _run_mode(mode: str, words: Sequence[str], options: dict[str, Any]) -> None:
    """Train, validate, predict or export with `MedDet`."""
    if words:
        raise UsageError(f"{words[0]!r} is neither a command nor key=value")
    options = {k: v for k, v in options.items() if k not in {"mode", "task"}}
    _check_keys(mode, options)
    check_numbers(options, mode)
    resume = options.get("resume")
    if isinstance(resume, str):
        options["model"], options["resume"] = resume, True
    for key, what in REQUIRED[mode].items():
        if options.get(key) is None and not (key == "data" and resume):
            raise UsageError(f"{key}= is missing: {what}")
    if options.get("teachers") and options.get("distill_model"):
        raise UsageError(
            "teachers= and distill_model= exclude each other: distill_model= is Ultralytics' own distillation"
        )
    if mode == "val" and ("noise" in options or "sigma" in options):
        _val_under_noise(options)
        return
    if mode == "val" and len(as_list(options["model"])) > 1:
        _val_side_by_side(options)
        return
    name = str(options.pop("model"))
    _check_model_file(name)

    from meddet_yolo.model import MedDet

    model = MedDet(name)
    if mode == "train":
        _train(model, name, options)
    elif mode == "predict":
        _predict(model, options)
    else:
        result = getattr(model, mode)(**options)
        _report_skipped(getattr(result, "skipped", ()))


def _val_side_by_side(options: dict[str, Any]) -> None:
    """Validate and time several models on the same images and print them in a table."""
    if options.get("data") is None:
        raise UsageError("data= is missing: the data set to validate several models on, for example data=d.yaml")
    files = [str(name) for name in as_list(options.pop("model"))]
    for file in files:
        _check_model_file(file)

    from meddet_yolo.data.shipped import find_data
    from meddet_yolo.evaluate import report
    from meddet_yolo.evaluate.noise import short_names
    from meddet_yolo.model import MedDet

    models = {name: MedDet(file) for name, file in zip(short_names(list(map(Path, files))), files, strict=True)}
    print(report.as_text(report.compare(models, find_data(options.pop("data")), **options)))


def _val_under_noise(options: dict[str, Any]) -> None:
    """Measure one or several models under MRI noise and print the table."""
    if options.get("noise") is None:
        raise UsageError("noise= is missing: sigma= is the strength of a noise, for example noise=rician")
    if options.get("data") is None:
        raise UsageError("data= is missing: the data set to validate on, for example data=d.yaml")
    names = as_list(options.pop("model"))
    for name in names:
        _check_model_file(name)

    from meddet_yolo.evaluate.noise import noise_robustness

    report = noise_robustness(names, options.pop("data"), **options)
    print(report)
    _report_skipped(report.skipped)


def _predict(model: Any, options: dict[str, Any]) -> None:
    """Predict on every image that can be read, then name those that cannot."""
    options = {"save": True, **options, "stream": True}
    done = {str(result.path) for result in model.predict(options.pop("source"), **options)}
    _report_skipped(getattr(getattr(model.predictor, "dataset", None), "skipped", ()), rest=bool(done))
    files = getattr(getattr(model.predictor, "dataset", None), "files", None) or []  # streams and arrays have none
    broken = [str(file) for file in files if str(file) not in done]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(f"cannot read {broken[0]}{more}: not an image, or damaged; the others are done")


def _report_skipped(skipped: Collection[Any], *, rest: bool = True) -> None:
    """End with an error that names what was left out, after the rest is done."""
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        raise ValueError(f"skipped {next(iter(skipped))}{more}; {'the others are done' if rest else 'nothing is left'}")


def _train(model: Any, name: str, options: dict[str, Any]) -> None:
    """Train; when interrupted, say how to go on."""
    from meddet_yolo.registry import is_trusted

    ckpt = model.ckpt or {}
    if options.get("resume") and not (ckpt.get("epoch", -1) >= 0 and ckpt.get("optimizer") is not None):
        raise ValueError(f"{name} cannot be resumed: it is no last.pt of an unfinished training")
    if options.get("check"):
        print(model.train(**options))
        return
    try:
        model.train(**options)
    except KeyboardInterrupt:
        last = getattr(model.trainer, "last", None)
        if last is not None and Path(last).is_file():
            trust = " trust=true" if is_trusted() else ""
            message = f"interrupted; to go on: meddet train model={last} resume=True{trust}"
        else:
            message = "interrupted before the first epoch was complete; nothing to resume"
        raise KeyboardInterrupt(message) from None
    _report_skipped(getattr(model.trainer, "skipped", ()))


def _check_model_file(name: str) -> None:
    """Refuse a model file that is not there before Ultralytics tries to download it.

    Names that Ultralytics or this package can resolve by themselves pass: YAMLs, stock weights, addresses.
    """
    from ultralytics.utils.downloads import GITHUB_ASSETS_STEMS

    path = Path(name).expanduser()
    if path.exists() or "://" in name or path.suffix.lower() in {".yaml", ".yml"}:
        return
    if path.name == name and path.stem in GITHUB_ASSETS_STEMS:
        return
    raise FileNotFoundError(f"model={name}: no such file")


# our small commands ---------------------------------------------------------------------------------------------------


def _print_versions() -> None:
    """Print our version and those of what we stand on."""
    from importlib.metadata import version

    for package in ("meddet-yolo", "ultralytics", "torch", "torchvision", "torchdiffeq"):
        print(f"{package:<12} {version(package)}")


def _settings(args: list[str]) -> None:
    """Show, change or reset Ultralytics' settings."""
    from ultralytics import settings

    if args[:1] == ["reset"]:
        settings.reset()
    else:
        words, options = parse(args)
        if words:
            raise UsageError(f"{words[0]!r} is no setting: write key=value")
        for key in options:
            if key not in settings:
                raise UsageError(f"{key}= is no setting: {nearest(key, settings.keys())}")
        if options:
            settings.update(options)
    print(settings)


def _run_own(command: str, args: list[str]) -> None:
    """Run a command of ours and print what its function returns."""
    module, function = _OWN_COMMANDS[command]
    result = _call(getattr(import_module(module), function), command, args)
    if isinstance(result, dict):
        result = "\n".join(f"{key}={value}" for key, value in result.items())
    elif isinstance(result, Path) and result.suffix == ".yaml":
        result = f"data={result}"
    if isinstance(result, str) and result:
        print(result)


def _call(function: Callable[..., Any], command: str, args: Sequence[str]) -> Any:
    """Call a function with key=value arguments, its parameters being the valid keys."""
    words, options = parse(args)
    parameters = dict(inspect.signature(function).parameters)
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # and checks them itself
    parameters = {key: p for key, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    if words:
        raise UsageError(f"{words[0]!r} is not understood: `meddet {command}` takes key=value only")
    for key in options:
        if key not in parameters and not takes_more:
            raise UsageError(f"{key}= is no argument of `meddet {command}`: {nearest(key, tuple(parameters))}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options:
            raise UsageError(f"{key}= is missing: `meddet {command} {key}=...`")
    check_numbers(options)
    return function(**options)


if __name__ == "__main__":
    sys.exit(main())
