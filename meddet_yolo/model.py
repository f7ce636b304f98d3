"""`MedDet`: an Ultralytics `YOLO` that distils when teachers are given."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn
from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.utils import LOGGER, colorstr

from meddet_yolo import registry
from meddet_yolo.data.mri_noise import MRINoiseConfig
from meddet_yolo.data.shipped import find_data
from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.evaluate.validator import MedDetValidator
from meddet_yolo.export.exporter import export
from meddet_yolo.export.formats import is_ours
from meddet_yolo.export.request import EXPORT_KEYS
from meddet_yolo.predict.predictor import MedDetPredictor, VolumeSource
from meddet_yolo.registry.options import check_numbers
from meddet_yolo.registry.run_folders import leaving_no_empty_folder
from meddet_yolo.train.trainer import DistillTrainer

__all__ = ["OWN_KEYS", "MedDet"]

# The keys that a mode takes besides Ultralytics' own.
OWN_KEYS: dict[str, frozenset[str]] = {
    "train": DistillConfig.keys() | MRINoiseConfig.keys() | {"check"},
    "val": frozenset({"noise", "sigma"}),
    "predict": frozenset({"slices", "window", "sr", "max_pixels"}),
    "export": EXPORT_KEYS,
}

registry.register()


class _Guarded(Model):
    """Methods of a model of Ultralytics that trust no file unless told so, and refuse before they write anything."""

    _trust = False

    @contextmanager
    def _guard(self, mode: str, options: dict[str, Any]) -> Iterator[bool]:
        """Check the options of a method, of which `trust` is taken out, and trust as it or the model says."""
        trust = options.pop("trust", None)
        check_numbers(options, mode)
        trust = self._trust or registry.is_trusted() if trust is None else trust
        with registry.trusting(trust), leaving_no_empty_folder():
            yield trust

    def load(self, weights: Any = "yolo26n.pt", **kwargs: Any) -> Any:
        """Load weights as `YOLO.load` does."""
        with self._guard("load", kwargs):
            return super().load(weights, **kwargs)

    def train(self, trainer: Any = None, *, teachers: Any = None, check: bool = False, **kwargs: Any) -> Any:
        """Train as `YOLO.train` does, on labels and on the features of `teachers` where there are any.

        Args:
            trainer: As in `YOLO.train`.
            teachers: Checkpoints to learn from, one or more.
            check: Only tell what the training would do, need and take: set everything up, run a few batches and train
                nothing.
            **kwargs: As in `YOLO.train`, the other options of distillation (`meddet_yolo.distill.config.RunOptions` and
                those of the method) and of MRI noise (`meddet_yolo.data.mri_noise.MRINoiseConfig`).

        Returns:
            The metrics as in `YOLO.train`; with `check` a `meddet_yolo.train.plan_check.PlanCheck`.

        Raises:
            ValueError: If an option is out of range, or the model is none that teachers can teach.
        """
        if teachers is not None:
            kwargs["teachers"] = teachers
        with self._guard("train", kwargs) as trusted:
            if teachers:
                self._check_student()
            if check:
                if self.task != "detect" or trainer is not None:
                    raise ValueError("check=True is for detectors and our own trainer")
                from meddet_yolo.train.plan_check import check_training

                return check_training(self, {**kwargs, "trust": trusted} if trusted else kwargs)
            kind = trainer or self._smart_load("trainer")
            if trusted and isinstance(kind, type) and issubclass(kind, DistillTrainer):
                kwargs["trust"] = True  # which it hands to the processes of other devices
            return super().train(trainer, **kwargs)

    def val(self, validator: Any = None, **kwargs: Any) -> Any:
        """Validate as `YOLO.val` does."""
        with self._guard("val", kwargs):
            return super().val(validator, **kwargs)

    def predict(self, source: Any = None, stream: bool = False, predictor: Any = None, **kwargs: Any) -> Any:
        """Predict as `YOLO.predict` does."""
        with self._guard("predict", kwargs):
            return super().predict(source, stream, predictor, **kwargs)

    def export(self, **kwargs: Any) -> str:
        """Export as `YOLO.export` does."""
        with self._guard("export", kwargs):
            return str(super().export(**kwargs))

    def _check_student(self) -> None:
        """Refuse to distil into anything but a detector whose head reads a pyramid of maps."""
        layers = getattr(self.model, "model", None)
        head = type(layers[-1]).__name__ if isinstance(layers, nn.Sequential) and len(layers) else "none"
        if self.task != "detect" or "RTDETR" in head:
            kind = "an RT-DETR" if "RTDETR" in head else f"for task {self.task!r}"
            raise ValueError(
                f"model={self.model_name} is {kind}; teachers= distils into YOLO detectors, such as meddet-n.yaml or "
                "yolo11n.yaml (an RT-DETR can be a teacher)"
            )


@cache
def _guarded(kind: type) -> type:
    """Return a class of Ultralytics, for a model that `YOLO` has turned into one of another family, with our guards."""
    return type(kind.__name__, (_Guarded, kind), {})


class MedDet(_Guarded, YOLO):
    """A detector with every method of `ultralytics.YOLO`, whose `train` takes teachers.

    Args:
        model: A shipped model name ("meddet-n.yaml"), any Ultralytics detection YAML, or a checkpoint.
        task: As in `YOLO`; detection is what distillation supports.
        verbose: Whether to print the model's layers.
        trust: Whether the files that this model reads, then or later, may run code: its checkpoint or YAML,
            `pretrained`, teachers, and the `download:` block of a data set. Only for files that you made or trust.
            `train`, `val`, `predict`, `export` and `load` take it too, for one call.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If the file is no checkpoint of a model.
        ValueError: If the file is damaged, or would run code and is not trusted.

    Examples:
        >>> from meddet_yolo import MedDet
        >>> model = MedDet("meddet-n.yaml")
        >>> model.task
        'detect'
        >>> model.train(data="d.yaml", teachers=["a.pt", "b.pt"], epochs=100, imgsz=512)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path | Model = "yolo26n.pt",
        task: str | None = None,
        verbose: bool = False,
        *,
        trust: bool = False,
    ) -> None:
        with registry.trusting(trust or registry.is_trusted()):
            if isinstance(model, str | Path) and Path(model).is_file() and not Path(model).stat().st_size:
                raise ValueError(f"model={model} is an empty file")
            super().__init__(model, task, verbose)
            if not isinstance(self, MedDet):
                self.__class__ = _guarded(type(self))  # type: ignore[unreachable]
            self._trust = registry.is_trusted()

    def _new(self, cfg: str, task: str | None = None, verbose: bool = False) -> None:
        """Build the model of a YAML."""
        try:
            super()._new(cfg, task, verbose)
        except NotImplementedError as error:
            raise ValueError(
                f"model={cfg} is no YOLO detector; ultralytics.RTDETR and `meddet train model=rtdetr-l.yaml` train an "
                "RT-DETR, without teachers="
            ) from error

    @property
    def task_map(self) -> dict[str, dict[str, Any]]:
        """Map each task to its classes, with ours for detection."""
        tasks = super().task_map
        tasks["detect"] = {**tasks["detect"], "trainer": DistillTrainer, "validator": MedDetValidator}
        tasks["detect"]["predictor"] = MedDetPredictor
        return tasks

    def load(self, weights: Any = "yolo26n.pt", *, inherit: bool = False, **kwargs: Any) -> Any:
        """Load weights as `YOLO.load` does, or let this model inherit them from a wider or deeper one of its family.

        Args:
            weights: A checkpoint, or a model.
            inherit: Take channels and blocks of the other model over where it is larger, see
                `meddet_yolo.distill.inherit`. A model from a YAML gets the other's classes. A following `train` starts
                from what was taken over.
            **kwargs: `trust`, see the class.

        Returns:
            This model.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            InheritError: If the other model is of another family, or narrower or shallower.

        Examples:
            >>> MedDet("meddet11-n.yaml").load("yolo11s.pt", inherit=True)  # doctest: +SKIP
        """
        if not inherit:
            return super().load(weights, **kwargs)
        from meddet_yolo.distill.inherit import inherit as take_over

        self._check_is_pytorch_model()
        other: Any = weights.model if isinstance(weights, YOLO) else weights
        if not isinstance(other, nn.Module):
            with self._guard("load", kwargs) as trusted:
                other = registry.load_detector(other, trust=trusted)
        model: Any = self.model
        if not getattr(self, "ckpt", None) and len(other.names) != len(model.names):  # a YAML tells no classes
            args, task = model.args, model.task
            model = type(model)(model.yaml, nc=len(other.names), verbose=False)
            model.names, model.args, model.task = other.names, args, task
        report = take_over(model, other)
        self.model: Any = model
        self.overrides.pop("pretrained", None)
        self.ckpt, self.ckpt_path, self.predictor = {"model": model}, None, None  # train() starts from it then
        LOGGER.info(f"{colorstr('inherit:')} {report}")
        return self

    def predict(self, source: Any = None, stream: bool = False, predictor: Any = None, **kwargs: Any) -> Any:
        """Predict as `YOLO.predict` does, also on DICOM and NIfTI: files, folders of series, volumes, patterns.

        Args:
            source: As in `YOLO.predict`, or paths with DICOM or NIfTI among them.
            stream: As in `YOLO.predict`.
            predictor: As in `YOLO.predict`.
            **kwargs: As in `YOLO.predict`, and for DICOM and NIfTI `slices` ("mid", the default, "all" or a number of
                slices around the middle of a series or volume), `window` ("header", the default, "percentile" or
                (centre, width)), `max_pixels` (the most that a picture may have) and `sr` (whether to write DICOM
                Structured Reports).

        Returns:
            Results as `YOLO.predict` gives them; those of slices are `meddet_yolo.predict.predictor.SliceResults`.

        Raises:
            ValueError: If nothing of the source can be read, an argument is wrong, or `sr` is set without DICOM.
        """
        own = {key: kwargs.pop(key) for key in OWN_KEYS["predict"] & kwargs.keys()}
        if self.task == "detect" and VolumeSource.holds(source):
            source = VolumeSource(source, **own)
        elif own.get("sr"):
            raise ValueError(f"sr=True writes DICOM Structured Reports, but source={source} holds no DICOM")
        return super().predict(source, stream, predictor, **kwargs)

    def val(self, validator: Any = None, *, noise: Any = None, sigma: Any = None, **kwargs: Any) -> Any:
        """Validate as `YOLO.val` does, or under MRI noise.

        Args:
            validator: As in `YOLO.val`.
            noise: One or several of `rician`, `bias`, `gibbs`, `ghosting`, `spikes`, or "all": measure accuracy against
                the strength of that noise.
            sigma: The strengths, by default `meddet_yolo.evaluate.noise.STRENGTHS`.
            **kwargs: As in `YOLO.val`; `seed` is that of the noise.

        Returns:
            The metrics as in `YOLO.val`, or a `meddet_yolo.evaluate.noise.NoiseReport`.

        Raises:
            ValueError: An unknown noise, a strength out of range, or strengths without a noise.
        """
        with self._guard("val", kwargs):
            if noise is None:
                if sigma is not None:
                    raise ValueError(f"sigma={sigma} needs a noise: add noise=rician, or another of `meddet help`")
                if kwargs.get("data") is not None:
                    kwargs["data"] = find_data(kwargs["data"])
                return super().val(validator, **kwargs)
            from meddet_yolo.evaluate.noise import STRENGTHS, noise_robustness

            data = kwargs.pop("data", None) or self._val_data()
            name = Path(self.ckpt_path or self.model_name).stem
            return noise_robustness(
                {name: self}, data, noise=noise, sigma=STRENGTHS if sigma is None else sigma, **kwargs
            )

    def export(self, **kwargs: Any) -> str:
        """Export as `YOLO.export` does; engines, ONNX and OpenVINO behind a parity gate and in more ways.

        Args:
            **kwargs: As in `YOLO.export`. For ``format="engine"``, "onnx" and "openvino" also `precision` ("fp32",
                "fp16", "bf16", "int8", "fp8"), `end2end`, `calibration`, `calibration_images`, `out`, and for engines
                `runtime` ("tensorrt" or "rtx") and the other keys of `meddet_yolo.trt.builder.build_engine`.

        Returns:
            The path of what was written.

        Raises:
            ParityError: If the export differs from this model; nothing is written.
            PrecisionError: If an engine has not the precision that was asked for; nothing is written.
            ValueError: If a key does not fit the format.
        """
        form = str(kwargs.get("format", "torchscript")).lower()
        if is_ours(form) and self.task == "detect":
            with self._guard("export", kwargs):
                self._check_is_pytorch_model()
                return export(self, **kwargs)
        from ultralytics.engine.exporter import export_formats

        known = export_formats()["Argument"]
        near = difflib.get_close_matches(form, known, 1) if form not in known else []
        if near and is_ours(near[0]):  # which Ultralytics would take it for, and export without our gate
            raise ValueError(f"format={form} is unknown: did you mean {near[0]!r}?")
        wrong = sorted(EXPORT_KEYS & kwargs.keys() - {"end2end"})
        if wrong:
            raise ValueError(f"{wrong[0]}= is for format=engine, onnx or openvino, not for format={form}")
        return str(super().export(**kwargs))

    def tune(self, *args: Any, **kwargs: Any) -> Any:
        """Tune hyperparameters without teachers, as `YOLO.tune` does.

        Raises:
            ValueError: If teachers are given: Ultralytics' tuner starts the stock command, which would train without
                them and say nothing.
        """
        if kwargs.get("teachers"):
            raise ValueError(
                "tune() trains by the stock `yolo` command and would silently leave the teachers out; "
                "tune without teachers=, then distil with the settings it finds"
            )
        with self._guard("tune", kwargs):
            return super().tune(*args, **kwargs)
