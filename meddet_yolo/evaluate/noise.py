"""How detectors hold up under MRI noise: accuracy against strength, for one or several models on the same images."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics import YOLO
from ultralytics.cfg import get_cfg, get_save_dir
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import LOGGER

from meddet_yolo.console import as_list, quiet
from meddet_yolo.data.mri_noise import NOISES, add_noise, check_noise, image_generator
from meddet_yolo.data.shipped import find_data
from meddet_yolo.evaluate.validator import MedDetValidator, box_scores
from meddet_yolo.imaging.volumes import Skipped
from meddet_yolo.plotting import PALETTE

__all__ = ["STRENGTHS", "NoiseReport", "NoiseResult", "noise_robustness"]

STRENGTHS = (0.0, 0.02, 0.05, 0.1, 0.2)
UNITS = {
    "rician": "standard deviation / signal level",
    "bias": "greatest relative change of brightness",
    "gibbs": "share of k-space cut off along each axis",
    "ghosting": "amplitude of a ghost / image",
    "spikes": "amplitude of the stripes / signal level",
}
MEASURES = {"map50_95": "mAP50-95", "map50": "mAP50", "recall": "recall"}
_MARKERS = "osD^vPX"


@dataclass(frozen=True, kw_only=True)
class NoiseResult:
    """Accuracy of one model at one strength of one noise.

    Attributes:
        model: The model's name in the report.
        noise: Kind of noise.
        sigma: Its strength, in the unit of that noise.
        map50_95: Mean average precision over IoU thresholds 0.50 to 0.95, in [0, 1].
        map50: Mean average precision at IoU 0.50, in [0, 1].
        recall: Mean recall over classes at the confidence with the best F1, in [0, 1].
    """

    model: str
    noise: str
    sigma: float
    map50_95: float
    map50: float
    recall: float


@dataclass(frozen=True, kw_only=True)
class NoiseReport:
    """All results of a robustness test.

    Attributes:
        results: One for each noise, model and strength, in that order.
        save_dir: Folder of `noise.json`, `noise.csv` and `noise.png`.
        skipped: DICOM and NIfTI files of the data set that could not be used, and why.
    """

    results: tuple[NoiseResult, ...]
    save_dir: Path
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        """Return a table for a terminal and where the files are."""
        return f"{as_text(self.results)}\nsaved to {self.save_dir}"


def noise_robustness(
    models: Mapping[str, str | Path | YOLO] | Sequence[str | Path] | str | Path,
    data: str | Path,
    *,
    noise: str | Sequence[str] = "rician",
    sigma: float | Sequence[float] = STRENGTHS,
    seed: int = 0,
    **options: Any,
) -> NoiseReport:
    """Validate detectors on images with MRI noise of rising strength.

    Noise is added to an image at its own size, before it is resized. It depends on the image's pixels, the kind of
    noise and `seed` alone: every model sees the same noisy images, in any order, and with rising strength the same
    noise grows.

    Args:
        models: Detectors or their checkpoints, by name or as a list.
        data: The data set's YAML.
        noise: One or several of `rician`, `bias`, `gibbs`, `ghosting`, `spikes`; "all" for all of them.
        sigma: Strengths, each at least 0, in the units that `meddet_yolo.data.mri_noise` documents.
        seed: Seed of the noise, at least 0.
        **options: Further arguments of `YOLO.val`, such as `imgsz`, `batch`, `device`, `split`, `project` or `name`.

    Returns:
        The results; they are also written to the run's folder as JSON, CSV and a picture, after each measurement.

    Raises:
        FileNotFoundError: A model does not exist.
        ValueError: No model, an unknown noise, a strength out of range, or a model for another task.

    Examples:
        >>> report = noise_robustness(["a.pt", "b.pt"], "d.yaml", noise="rician", sigma=[0, 0.1])  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    kinds, strengths = _kinds(noise), _strengths(sigma)
    for kind in kinds:
        for strength in strengths:
            check_noise(kind, strength)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    loaded, data = _load(models), find_data(data)
    check_det_dataset(str(data), split=str(options.get("split") or "val"))  # before a folder is made
    save_dir = _run_folder(options)
    context = {
        "data": str(data),
        "seed": seed,
        **{k: v for k, v in options.items() if isinstance(v, (str, int, float))},
    }
    results: list[NoiseResult] = []
    skipped: tuple[Skipped, ...] = ()  # the same every time
    total = len(kinds) * len(loaded) * len(strengths)
    for kind in kinds:
        for name, model in loaded.items():
            for strength in strengths:
                metrics = _validate(
                    model, data, partial(_degrade, noise=kind, sigma=strength, seed=seed), save_dir, options
                )
                skipped = tuple(metrics.skipped)
                result = NoiseResult(
                    model=name,
                    noise=kind,
                    sigma=strength,
                    **box_scores(metrics),
                )
                results.append(result)
                LOGGER.info(f"[{len(results)}/{total}] {name}, {kind} {strength:g}: mAP50-95 {result.map50_95:.3f}")
                _write(results, save_dir, context)
    _plot(results, save_dir / "noise.png")
    return NoiseReport(results=tuple(results), save_dir=save_dir, skipped=skipped)


# Arguments ------------------------------------------------------------------------------------------------------------


def _kinds(noise: Any) -> list[str]:
    """Return the kinds of noise that are asked for."""
    if noise == "all":
        return list(NOISES)
    return list(dict.fromkeys(str(kind) for kind in as_list(noise)))


def _strengths(sigma: Any) -> list[float]:
    """Return the strengths that are asked for, rising."""
    try:
        values = [float(value) for value in as_list(sigma)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"sigma must be a number or a list of them, such as [0,0.05,0.1], got {sigma!r}") from error
    if not values:
        raise ValueError("sigma is an empty list: give at least one strength, such as [0,0.05,0.1]")
    return sorted(set(values))


def _load(models: Mapping[str, Any] | Sequence[Any] | str | Path) -> dict[str, YOLO]:
    """Load the models, those of a list under names that tell them apart."""
    if not isinstance(models, Mapping):
        paths = [Path(str(m)) for m in as_list(str(models) if isinstance(models, Path) else models)]
        models = dict(zip(short_names(paths), paths, strict=True))
    if not models:
        raise ValueError("no model to validate: give one or several checkpoints")
    loaded = {}
    for name, model in models.items():
        if not isinstance(model, YOLO):
            if not Path(model).exists():
                raise FileNotFoundError(f"model={model}: no such file")
            model = YOLO(model)
        if model.task != "detect":
            raise ValueError(f"{name} is a model for {model.task}, expected one for detection")
        loaded[name] = model
    return loaded


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest names that tell files apart, with what they have in common at either end left out.

    Examples:
        >>> short_names([Path("runs/a/weights/best.pt"), Path("runs/b/weights/best.pt")])
        ['a', 'b']
        >>> short_names([Path("x/small.pt"), Path("y/large.pt")])
        ['small', 'large']
    """
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(paths):
        return stems
    parts = [path.with_suffix("").absolute().parts for path in paths]
    while len({p[-1] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[:-1] for p in parts]
    while len({p[0] for p in parts}) == 1 and min(map(len, parts)) > 1:
        parts = [p[1:] for p in parts]
    names = ["/".join(p) for p in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"a model is given twice: {', '.join(map(str, paths))}")
    return names


def _run_folder(options: Mapping[str, Any]) -> Path:
    """Return the folder of this run, made."""
    where = {k: options[k] for k in ("project", "exist_ok", "save_dir") if options.get(k) is not None}
    args = get_cfg(overrides={"task": "detect", "mode": "val", "name": options.get("name") or "noise", **where})
    folder = Path(get_save_dir(args))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# Measuring ------------------------------------------------------------------------------------------------------------


def _degrade(image: np.ndarray, *, noise: str, sigma: float, seed: int) -> np.ndarray:
    """Return an image of shape (H, W, C) with the noise that belongs to it."""
    return add_noise(image, noise, sigma, image_generator(image, seed))


class _NoiseValidator(MedDetValidator):
    """Validate on degraded images."""

    degrade: partial[np.ndarray] | None = None

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        """Build the data set of a split, whose images are degraded as they are read."""
        dataset = super().build_dataset(img_path, mode, batch)
        dataset.degrade = self.degrade
        return dataset


def _validate(
    model: YOLO, data: str | Path, degrade: partial[np.ndarray], save_dir: Path, options: Mapping[str, Any]
) -> Any:
    """Return a model's metrics on degraded images."""
    args = {
        **model.overrides,
        "rect": True,
        "plots": False,
        **options,
        "data": str(data),
        "mode": "val",
        "cache": False,
    }
    args.pop("model", None)
    with quiet():
        validator = _NoiseValidator(args=args, save_dir=save_dir, _callbacks=model.callbacks)
        validator.degrade = degrade
        validator(model=model.model)
    return validator.metrics


# Reporting ------------------------------------------------------------------------------------------------------------


def as_text(results: Sequence[NoiseResult]) -> str:
    """Return results as a table for a terminal.

    The column `kept` is the share of the mAP50-95 without noise, where strength 0 was measured.

    Examples:
        >>> r = NoiseResult(model="a", noise="rician", sigma=0.0, map50_95=0.4, map50=0.8, recall=0.7)
        >>> print(as_text([r]))
        noise   model  strength  mAP50-95  mAP50  recall  kept
        rician  a             0     0.400  0.800   0.700  100%
    """
    clean = {(r.noise, r.model): r.map50_95 for r in results if r.sigma == 0}
    rows = [("noise", "model", "strength", *MEASURES.values(), "kept")]
    for r in results:
        base = clean.get((r.noise, r.model))
        kept = f"{r.map50_95 / base:.0%}" if base else ""
        rows.append((r.noise, r.model, f"{r.sigma:g}", *(f"{getattr(r, m):.3f}" for m in MEASURES), kept))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _write(results: Sequence[NoiseResult], folder: Path, context: Mapping[str, Any]) -> None:
    """Write what has been measured so far as JSON and CSV."""
    units = {kind: UNITS[kind] for kind in dict.fromkeys(r.noise for r in results)}
    record = {**context, "units": units, "results": [asdict(r) for r in results]}
    (folder / "noise.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    with (folder / "noise.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(NoiseResult)])
        writer.writeheader()
        writer.writerows(asdict(r) for r in results)


def _plot(results: Sequence[NoiseResult], path: Path) -> None:
    """Draw each measure against strength, one line a model and one row of panels a noise."""
    from matplotlib.figure import Figure

    kinds, models = (list(dict.fromkeys(getattr(r, key) for r in results)) for key in ("noise", "model"))
    figure = Figure(figsize=(3.4 * len(MEASURES), 2.9 * len(kinds) + 0.5), layout="constrained")
    panels = figure.subplots(len(kinds), len(MEASURES), squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        for panel, (measure, title) in zip(row, MEASURES.items(), strict=True):
            for index, model in enumerate(models):
                line = [(r.sigma, getattr(r, measure)) for r in results if (r.noise, r.model) == (kind, model)]
                style = {"color": PALETTE[index % len(PALETTE)], "marker": _MARKERS[index % len(_MARKERS)]}
                panel.plot(*zip(*line, strict=True), label=model, markersize=4, linewidth=1.4, **style)
            panel.set(title=f"{kind}: {title}", xlabel=UNITS[kind], ylim=(0, 1))
            panel.xaxis.label.set_size(8)
            panel.grid(alpha=0.3)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(models)), frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
