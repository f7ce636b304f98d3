"""One run, in a process of its own: train (or go on with it), measure on the images held out, write the result.

    python -m meddet_yolo.compare.worker FOLDER '{"device": "cpu"}'

The folder holds `run.json`, the description of the run. What is left in it: `weights.pt`, `found.npz` with the boxes
of the images held out, `result.json` as the last thing, and Ultralytics' own files under `train/`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from meddet_yolo.compare.files import FOUND, PROGRESS, REASON, RESULT, SPEC, WEIGHTS, read_json, write_json
from meddet_yolo.compare.plan import with_head
from meddet_yolo.registry.trust import trusting
from meddet_yolo.train.memory import peak_memory, wait_for

__all__ = ["main"]

_STEPS = "steps.json"  # seconds a step by epoch: what a resumed run has of the time before


def main(arguments: list[str] | None = None) -> int:
    """Do a run; a failure leaves its reason in the folder.

    Args:
        arguments: Folder of the run, and a JSON of how to run it: `device`, `workers` of the data loader, `nice`, and
            whether to `trust` its files.

    Returns:
        Exit code.
    """
    folder, how = (sys.argv[1:] if arguments is None else arguments)[:2]
    run, options = Path(folder), json.loads(how)
    if options.get("nice") and hasattr(os, "nice"):
        os.nice(int(options["nice"]))
    from filelock import FileLock

    with FileLock(run / "run.lock"):  # a process whose comparison was killed a moment ago ends before this one begins
        if (run / RESULT).is_file():
            return 0
        (run / REASON).unlink(missing_ok=True)
        try:
            with trusting(bool(options.get("trust"))):
                _do(run, options)
        except Exception as error:
            from meddet_yolo.console import describe

            (run / REASON).write_text(f"{describe(error)}\n", encoding="utf-8")
            raise
    return 0


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(run: Path, options: dict[str, Any]) -> None:
    """Train and measure."""
    from meddet_yolo.registry.label_cache import keep_no_label_caches

    keep_no_label_caches()
    spec = read_json(run / SPEC)
    training = {key: _with_files(value, run) for key, value in spec["training"].items()}
    data = (run / spec["data"]).resolve()
    if training.get("unlabelled") == "auto":
        training["unlabelled"] = str(data)
    begun = time.monotonic()
    trained = _Training(run, spec, training, data, options)
    weights = run / WEIGHTS
    if not spec["trained"]:
        weights = Path(spec["model"])
    elif not weights.is_file():
        trained.run()
    measured = _measure(weights, run, training, data, options)
    result = {**trained.result(), **measured, "seconds": round(time.monotonic() - begun, 1)}
    write_json(run / RESULT, {"name": spec["name"], **result})


def _with_files(value: Any, run: Path) -> Any:
    """Return a key's value with `<run>` replaced by the weights of that run."""
    if isinstance(value, list):
        return [_with_files(v, run) for v in value]
    if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        other = run.parent / value[1:-1]
        spec = read_json(other / SPEC)
        return str((other / WEIGHTS).resolve()) if spec["trained"] else str(spec["model"])
    return value


class _Training:
    """The training of a run, from its beginning or from where it was interrupted."""

    def __init__(
        self, run: Path, spec: dict[str, Any], training: dict[str, Any], data: Path, options: dict[str, Any]
    ) -> None:
        self.folder, self.spec, self.data, self.options = run, spec, data, options
        self.training = training
        steps = run / _STEPS
        self.steps: dict[str, Any] = read_json(steps) if steps.is_file() else {"epochs": {}, "peak": 0, "parts": 0}
        self._times: list[float] = []
        self._begun = self._epoch_begun = 0.0

    def run(self) -> None:
        """Train to the last epoch and keep the weights of that; no epoch is chosen by what it scores."""
        from meddet_yolo.model import MedDet

        last = self.folder / "train" / "weights" / "last.pt"
        state = _state(last)
        if state == "broken":  # killed while it was written: begin anew
            shutil.rmtree(self.folder / "train")
        if state != "complete":
            self.steps["parts"] += 1
            on = {"device": self.options["device"], "workers": self.options["workers"]}
            model = MedDet(str(last) if state == "interrupted" else self._model())
            for event in ("on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end"):
                model.add_callback(event, getattr(self, f"_{event}"))
            if state == "interrupted":
                model.train(resume=True, **on)
            else:
                place = {"project": str(self.folder), "name": "train", "exist_ok": True, "data": str(self.data)}
                amp = {"amp": self.training.get("amp", self.options["device"] != "cpu")}
                model.train(**{**self.training, **amp, **place, **on, "seed": self.spec["seed"]})
        if not last.is_file():
            raise RuntimeError("the training left no last.pt")
        os.replace(last, self.folder / WEIGHTS)
        shutil.rmtree(last.parent)

    def _model(self) -> str:
        """Return the model to start from; with other options of its head, a file of its own."""
        model = str(self.spec["model"])
        if not self.spec["head"]:
            return model
        file = self.folder / Path(model).name
        file.write_text(yaml.safe_dump(with_head(model, self.spec["head"]), sort_keys=False), encoding="utf-8")
        return str(file)

    def result(self) -> dict[str, Any]:
        """Return what the training took."""
        epochs = [seconds for _, seconds in sorted(self.steps["epochs"].items(), key=lambda item: int(item[0]))]
        late = epochs[1:] or epochs  # the first warms up
        return {
            "epochs": len(epochs),
            "seconds_per_step": round(statistics.median(late), 5) if late else None,
            "peak_memory_bytes": self.steps["peak"] or None,
            "parts": self.steps["parts"],
        }

    def _on_train_epoch_start(self, trainer: Any) -> None:
        self._times, self._epoch_begun = [], time.monotonic()

    def _on_train_batch_start(self, trainer: Any) -> None:
        wait_for(trainer.device)
        self._begun = time.perf_counter()

    def _on_train_batch_end(self, trainer: Any) -> None:
        wait_for(trainer.device)
        self._times.append(time.perf_counter() - self._begun)

    def _on_train_epoch_end(self, trainer: Any) -> None:
        self.steps["epochs"][str(trainer.epoch)] = statistics.median(self._times)
        self.steps["peak"] = max(self.steps["peak"], peak_memory(trainer.device))
        write_json(self.folder / _STEPS, self.steps)
        seconds = time.monotonic() - self._epoch_begun
        progress = {"epoch": trainer.epoch + 1, "epochs": trainer.epochs, "seconds_per_epoch": round(seconds, 3)}
        write_json(self.folder / PROGRESS, progress)


def _state(last: Path) -> str:
    """Return how far a training has come: "new", "interrupted", "complete" or "broken"."""
    from ultralytics.utils.patches import torch_load

    if not last.is_file():
        return "new"
    try:
        checkpoint = torch_load(last, map_location="cpu")
    except Exception:
        return "broken"
    return "interrupted" if checkpoint.get("optimizer") is not None else "complete"


def _measure(weights: Path, run: Path, training: dict[str, Any], data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure on the images held out; their boxes go to a file with their patients."""
    from meddet_yolo.compare.folds import patients_of
    from meddet_yolo.compare.predictions import save_predictions
    from meddet_yolo.evaluate.validator import CollectingValidator, box_scores
    from meddet_yolo.model import MedDet

    model = MedDet(str(weights))
    parameters = sum(p.numel() for p in model.model.parameters())
    kept: list[CollectingValidator] = []

    def build(**arguments: Any) -> CollectingValidator:
        kept.append(CollectingValidator(**arguments))
        return kept[-1]

    batch = training.get("batch", 16)
    metrics = model.val(
        validator=build,
        data=str(data),
        imgsz=training.get("imgsz", 640),
        batch=batch if isinstance(batch, int) and batch > 0 else 16,
        single_cls=training.get("single_cls", False),
        device=options["device"],
        workers=options["workers"],
        plots=False,
        verbose=False,
        project=str(run),
        name="val",
        exist_ok=True,
    )
    save_predictions(run / FOUND, kept[0].images_seen, patients_of(data.parent.parent))
    shutil.rmtree(run / "val", ignore_errors=True)
    scores = box_scores(metrics)
    return {"parameters": parameters, "fold_scores": {"mAP50-95": scores["map50_95"], "mAP50": scores["map50"]}}


if __name__ == "__main__":
    _end_with_parent(os.getppid())
    sys.exit(main())
