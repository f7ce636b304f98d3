"""The `meddet` command: `yolo`'s grammar, with teachers.

What this command does not know it hands to Ultralytics' own, with our model files and layers registered. Every failure
is one line on the standard error stream and a non-zero exit code; `MEDDET_TRACEBACK=1` shows where it came from.
"""

from __future__ import annotations

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
    REQUIRED,
    TASKS,
    THEIR_COMMANDS,
    THEIR_MODES,
    UsageError,
    check_command,
    check_keys,
    check_own,
    is_other_family,
    nearest,
    parse,
    read_recipe,
    read_simply,
    take_trust,
)
from meddet_yolo.commands import MODES, OWN_COMMANDS, SUBJECTS, keys_of
from meddet_yolo.console import as_list, describe, fetch_only_what_is_asked_for
from meddet_yolo.help import HELP, help_of
from meddet_yolo.registry.options import check_numbers


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
        **dict.fromkeys(("help", "h"), _help),
        "cfg": lambda _: print(help_of("cfg")),
        "completion": _completion,
        "version": lambda _: _print_versions(),
        "settings": _settings,
        **{name: partial(_run_own, name) for name in OWN_COMMANDS},
    }
    if {"-h", "--help"} & set(args[1:]) and args[0] != "solutions":
        _help(args)
    elif word in own:
        if word in OWN_COMMANDS:
            check_own(word, *(read_simply(args[1:]) or ([], None)))
        own[word](args[1:])
    else:
        check_command(args, own)
        _dispatch_mode(args, own)


def _help(args: Sequence[str]) -> None:
    """Print the keys of the command that is named, or what commands there are."""
    words = [word for word in (argument.lstrip("-") for argument in args) if word not in {"help", "h"}]
    with_keys = (*OWN_COMMANDS, *THEIR_MODES, "cfg")
    known = (*with_keys, *THEIR_COMMANDS, *TASKS, "completion", "settings", "version")
    command = next((word for word in words if word in with_keys), None)
    if command is None and words and words[0] not in known:
        raise UsageError(f"{words[0]!r} is no command: {nearest(words[0], known)} (`meddet help` lists them)")
    print(HELP if command is None else help_of(command))


def _completion(args: Sequence[str]) -> None:
    """Print the script that completes this command in a shell."""
    from meddet_yolo.completion import SHELLS, completion

    if len(args) != 1 or args[0] not in SHELLS:
        raise UsageError(f"`meddet completion` needs the name of a shell: {', '.join(SHELLS)}")
    print(completion(args[0]), end="")


def _dispatch_mode(args: list[str], own: Collection[str]) -> None:
    """Run a mode with `MedDet`, or hand it and whatever else is not ours to Ultralytics."""
    words, options = parse(args)
    cfg = options.pop("cfg", None)
    options = {**(read_recipe(cfg) if cfg is not None else {}), **options}
    task = next((w for w in words if w in TASKS), options.get("task") or "detect")
    mode = next((w for w in words if w in THEIR_MODES), options.get("mode"))
    if options.get("teachers") and (task != "detect" or is_other_family(options.get("model"))):
        raise UsageError(
            f"model={options.get('model')} (task {task}) cannot be a student: teachers= distils into YOLO detectors, "
            "such as meddet-n.yaml or yolo11n.yaml"
        )
    if mode in MODES and task == "detect" and not is_other_family(options.get("model")):
        _run_mode(mode, [w for w in words if w not in (mode, task)], options)
    elif mode is not None or (words[:1] and words[0] in THEIR_COMMANDS):
        _pass_on(args)
    elif unknown := [w for w in words if w not in TASKS]:
        known = (*own, *THEIR_MODES, *TASKS, *THEIR_COMMANDS)
        raise UsageError(f"{unknown[0]!r} is no command: {nearest(unknown[0], known)} (`meddet help` lists them)")
    else:
        raise UsageError(f"no command given: add one of {', '.join(MODES)} (`meddet help` shows examples)")


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

    check_keys(mode, options)
    valid = keys_of(mode)
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
        more = f"; and {len(skipped) - 1} more" if len(skipped) > 1 else ""
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
    words, options = parse(args)
    check_own(command, words, options)
    if words:
        options = {SUBJECTS[command]: words[0], **options}
    check_numbers(options)
    module, function = OWN_COMMANDS[command].split(":")
    result = getattr(import_module(module), function)(**options)
    if isinstance(result, dict):
        result = "\n".join(f"{key}={value}" for key, value in result.items())
    elif isinstance(result, Path) and result.suffix == ".yaml":
        result = f"data={result}"
    if isinstance(result, str) and result:
        print(result)


if __name__ == "__main__":
    sys.exit(main())
