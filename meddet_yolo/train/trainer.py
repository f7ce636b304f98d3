"""`DistillTrainer`: where multi-teacher distillation meets Ultralytics' training loop.

The trainer only forwards Ultralytics' hooks: what distils is a `DistillSession`, what is saved of it beside a
checkpoint a `Sidecar`. Both stand beside the model, never around it: `trainer.model`, its EMA and its checkpoints stay
a plain detector at any moment of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import DEFAULT_CFG, cfg2dict
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOCAL_RANK, LOGGER, RANK, colorstr
from ultralytics.utils.torch_utils import unwrap_model

from meddet_yolo.data.dataset import build_checked_dataset
from meddet_yolo.data.mri_noise import MRINoiseConfig
from meddet_yolo.data.shipped import find_data
from meddet_yolo.data.unlabelled import Unlabelled, find_source
from meddet_yolo.distill.classes import match_classes
from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.levels import unmatched_levels
from meddet_yolo.distill.session import DistillSession
from meddet_yolo.distill.teachers import Teacher, detector_spec
from meddet_yolo.evaluate.validator import MedDetValidator
from meddet_yolo.files import alone
from meddet_yolo.imaging.volumes import Skipped
from meddet_yolo.train.criterion import DistillCriterion
from meddet_yolo.train.exact import StepClock, begin_epoch
from meddet_yolo.train.inheritance import Inheritance
from meddet_yolo.train.sidecar import Sidecar, drop_unsaved_epochs, written_whole
from meddet_yolo.train.teacher_files import TeacherFiles
from meddet_yolo.train.unlabelled import UnlabelledBatches, check_learners, check_taught, find_unlabelled

__all__ = ["DistillTrainer"]

_LOCK = ".train.lock"

OWN_DEFAULTS = {**DistillConfig.defaults(), **MRINoiseConfig.defaults()}  # arguments that Ultralytics does not know


class DistillTrainer(DetectionTrainer):
    """Train a detector on its labels and on the features of frozen teachers.

    Takes every argument of `ultralytics.models.yolo.detect.DetectionTrainer`, the fields of
    `meddet_yolo.data.mri_noise.MRINoiseConfig` and the keys of `meddet_yolo.distill.DistillConfig`, of which `teachers`
    switches distillation on; without teachers it trains as the stock trainer does. The total is the detection loss and
    the weighted terms of the methods that `distill` names.

    Args:
        cfg: Ultralytics' default configuration.
        overrides: Arguments as `YOLO.train()` takes them. `teachers` holds checkpoint paths or loaded models.
        _callbacks: Ultralytics' callbacks by event.

    Attributes:
        distill_config: The validated distillation arguments.
        teachers: The frozen teachers; empty without distillation.
        skipped: DICOM and NIfTI files of the data set that could not be used, and why.
        session: What distils: teachers, methods, adversaries; None before set-up and without teachers.
        unlabelled: What was found of images without labels; None without any.
        inherited: What the student inherited or why nothing, in words; empty where it had nobody to inherit from.

    Raises:
        FileNotFoundError: If a teacher file is missing, a moved one on resume included.
        TypeError: If a teacher is no detection model.
        ValueError: If a distillation argument is invalid, a teacher's classes contradict the data set's,
            or `distill_model` is given together with `teachers`.

    Examples:
        >>> from ultralytics import YOLO
        >>> from meddet_yolo import DistillTrainer
        >>> model = YOLO("meddet-n.yaml")
        >>> model.train(trainer=DistillTrainer, teachers=["a.pt", "b.pt"], data="d.yaml", epochs=100)  # doctest: +SKIP
    """

    args: Any  # Ultralytics builds these without types
    last: Path
    best: Path
    inherited: str = ""

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
    ) -> None:
        overrides = dict(overrides or {})
        self._files = TeacherFiles()
        if "teachers" in overrides:
            overrides["teachers"] = self._files.name(overrides["teachers"])
        if "data" in overrides:
            overrides["data"] = find_data(overrides["data"])
        if _is_file(overrides.get("inherit")):
            overrides["inherit"] = str(Path(overrides["inherit"]).expanduser().resolve())
        if isinstance(overrides.get("unlabelled"), (str, Path)):
            overrides["unlabelled"] = str(Path(overrides["unlabelled"]).expanduser().resolve())
        resuming = bool(overrides.get("resume"))
        self._inheritance: Inheritance | None = None
        config = DistillConfig.from_dict({k: v for k, v in overrides.items() if k in DistillConfig.keys()})
        if not resuming:
            self._refuse_native(overrides.get("distill_model"), config)
            MRINoiseConfig.from_options(overrides)  # before anything is loaded
            check_taught(config.run)
            models = self._files.load(config.run)
            self._inheritance = Inheritance(config.run, models, overrides.get("pretrained"))
        super().__init__({**OWN_DEFAULTS, **cfg2dict(cfg)}, overrides, _callbacks)
        if resuming:
            config = DistillConfig.from_dict({k: getattr(self.args, k) for k in DistillConfig.keys()})
            self._refuse_native(self.args.distill_model, config)
            models = self._files.load(config.run)
        self.distill_config = config
        self.session: DistillSession | None = None
        run = config.run
        self.teachers = [
            Teacher(model, name=name, imgsz=size)
            for model, name, size in zip(models, run.teachers, run.teacher_sizes(), strict=True)
        ]
        for teacher, mapping in zip(self.teachers, run.class_maps(), strict=True):
            teacher.classes = match_classes(teacher.names, self.data["names"], teacher.name, mapping)
        self._restored_from = self.wdir  # the folder of the checkpoint that is restored, and of its side-car
        self.skipped: list[Skipped] = []
        self.unlabelled: Unlabelled | None = None
        self._more: UnlabelledBatches | None = None
        self._clock = StepClock()
        self._resumed: dict[str, Any] = {}  # the state that a resumed run was given
        self._warned = False
        if self.teachers and not self.ddp:
            self.add_callback("on_pretrain_routine_end", _extend_criterion)
            self.add_callback("on_train_epoch_start", _start_epoch)
            self.add_callback("on_train_epoch_end", _end_epoch)
            self.add_callback("on_train_epoch_end", _report_epoch)

    @property
    def save_dir(self) -> Path:
        """Folder of the run."""
        return self._save_dir

    @save_dir.setter
    def save_dir(self, folder: Path) -> None:
        """Refuse a folder in which another process is training, before the stock constructor clears it."""
        if RANK == -1 and (folder / _LOCK).is_file():
            with _folder_of_its_own(folder):
                pass
        self._save_dir = folder

    # Arguments ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _refuse_native(distill_model: Any, config: DistillConfig) -> None:
        """Refuse Ultralytics' own distillation together with ours."""
        if distill_model is not None and config.run.teachers:
            raise ValueError(
                f"distill_model={distill_model} and teachers={config.run.teachers} were both given; distill_model is "
                "Ultralytics' own single-teacher distillation: choose one of the two"
            )

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Build the student; one without weights of its own inherits them, see `meddet_yolo.distill.inherit`.

        Raises:
            InheritError: If the student cannot inherit from the checkpoint that `inherit` names.
        """
        model = super().get_model(cfg, weights, verbose)
        if self._inheritance is not None and (text := self._inheritance.give(model, weights is not None)):
            self.inherited = text
            if RANK in {-1, 0}:
                LOGGER.info(f"{colorstr('inherit:')} {text}")
        return model

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Restore a run's arguments, ours included; `teachers` and `trust` may be given anew.

        The run goes on in the folder that its checkpoint lies in, where the stock trainer would go back to the one that
        it was started in, even if it had been moved from there (our own decision).
        """
        ours = {k: v for k, v in overrides.items() if k in OWN_DEFAULTS}
        super().check_resume({k: v for k, v in overrides.items() if k not in ours})
        for key, default in OWN_DEFAULTS.items():
            if not hasattr(self.args, key):  # a checkpoint of the stock trainer
                setattr(self.args, key, default)
        self.args.trust = bool(ours.get("trust", False))  # a file does not say itself that it is to be trusted
        if not self.resume:
            return
        weights = Path(self.args.resume).absolute().parent
        if weights.name == "weights" and not overrides.get("save_dir"):
            self.args.save_dir = str(weights.parent)
        for key, value in ours.items():
            if key in {"teachers", "trust"}:
                setattr(self.args, key, value)
            elif value != getattr(self.args, key):
                LOGGER.warning(f"Resume ignores {key}={value}, keeping {getattr(self.args, key)} of the checkpoint.")

    def get_validator(self) -> Any:
        """Return the validator, which knows none of our arguments."""
        args = copy(self.args)
        for key in OWN_DEFAULTS:
            vars(args).pop(key, None)
        return MedDetValidator(self.test_loader, save_dir=self.save_dir, args=args, _callbacks=self.callbacks)

    # Set-up ---------------------------------------------------------------------------------------------------------

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build the data set of a split; labels out of range stop the run, where the stock one drops their images.

        Raises:
            ValueError: If a label row is out of range, no image is valid, or the training split has no box at all.
        """
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        dataset = build_checked_dataset(self.args, img_path, batch, self.data, mode=mode, stride=stride)
        self.skipped = list(dict.fromkeys([*self.skipped, *dataset.skipped]))
        return dataset

    def train(self) -> None:
        """Train, in worker processes where several devices are given."""
        if self.ddp and self._files.given:
            raise ValueError(
                "Training on several devices starts worker processes, which cannot be handed loaded models; "
                "pass teachers as checkpoint paths"
            )
        if RANK != -1:  # a worker of a training that holds the folder
            super().train()
            return
        with _folder_of_its_own(self.save_dir):
            super().train()

    def _do_train(self) -> None:
        """Train; a run that was interrupted after its last epoch has its final evaluation left."""
        try:
            super()._do_train()
        except _AllEpochsDone:
            self.final_eval()
            if RANK in {-1, 0}:
                self.run_callbacks("on_train_end")
        if self._more is not None:
            self._more.close()

    def _build_train_pipeline(self) -> None:
        """Build loaders and optimizer for the batch size, also for a smaller one after running out of memory."""
        super()._build_train_pipeline()
        run = self.distill_config.run
        if not run.unlabelled:
            return
        if self.unlabelled is None:
            self.unlabelled = find_unlabelled(find_source(run.unlabelled), self.data)
            self.skipped = [*self.skipped, *self.unlabelled.skipped]
        self._more = UnlabelledBatches(
            self.unlabelled,
            args=self.args,
            data=self.data,
            batch=self.batch_size // max(self.world_size, 1),
            ratio=run.unlabelled_batch,
            rank=LOCAL_RANK,
            stride=self.stride,
            device=self.device,
        )

    def _close_dataloader_mosaic(self) -> None:
        """Make no more mosaics, of images without labels neither."""
        super()._close_dataloader_mosaic()
        if self._more is not None:
            self._more.close_mosaic(self.args)

    def _setup_train(self) -> None:
        """Set the run up as the stock trainer does, with the memory layout that was asked for on a CPU too."""
        channels_last = self.args.channels_last
        on_cpu = self.device.type == "cpu"
        if on_cpu and channels_last:
            self.args.channels_last = None  # the stock trainer would only warn; convolutions are faster with it here
        super()._setup_train()
        self.args.channels_last = channels_last
        if on_cpu and channels_last:
            self.model.to(memory_format=torch.channels_last)
            self.ema.ema.to(memory_format=torch.channels_last)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build the student's optimizer and give the distillation modules a parameter group of their own in it."""
        optimizer = super().build_optimizer(model, *args, **kwargs)
        if not self.teachers:
            return optimizer
        self.session = self._build_session(unwrap_model(model))
        # MuSGD has two groups of weights, the head's with a higher rate.
        weights = [group for group in optimizer.param_groups if group.get("param_group") == "weight"]
        template = min(weights, key=lambda group: group["lr"])
        group = {k: v for k, v in template.items() if k not in {"params", "param_group", "initial_lr"}}
        optimizer.add_param_group(
            {**group, "params": self.session.parameters(), "param_group": "distill", "weight_decay": 0.0}
        )
        return optimizer

    def _build_session(self, student: nn.Module) -> DistillSession:
        """Build the distillation modules on the run's device and say what the teachers show them."""
        for teacher in self.teachers:
            teacher.to(self.device)
        spec = detector_spec(student, "student")
        epochs = self._distilled_epochs()
        session = DistillSession(spec, self.teachers, self.distill_config, self.args.imgsz, self.device, epochs)
        if self.distill_config.run.unlabelled:
            check_learners(session, self.distill_config.run.unlabelled)
        if RANK in {-1, 0}:
            for teacher in self.teachers:
                seen = teacher.spec_at(self.args.imgsz)
                pairs = zip(seen.channels, seen.strides, strict=True)
                maps = ", ".join(f"{channels}@/{stride:g}" for channels, stride in pairs)
                unused = [f"/{seen.strides[i]:g}" for i in unmatched_levels(spec.strides, seen.strides)]
                rest = f", no level of the student matches {', '.join(unused)}" if unused else ""
                LOGGER.info(f"{colorstr('teacher:')} {seen.name} ({maps}){rest}, {teacher.use(self.data['names'])}")
        return session

    def _model_train(self) -> None:
        """Begin an epoch as the stock trainer does, with random numbers that depend on nothing before it."""
        super()._model_train()
        begin_epoch(self, [self.train_loader, *([self._more.loader] if self._more is not None else [])])
        if self._more is not None:
            self._more.start_epoch(self.epoch)

    def _distilled_epochs(self) -> int:
        """Return the number of epochs with distillation, which by default ends where Ultralytics closes mosaic."""
        stop = self.distill_config.run.distill_stop
        if stop is None:
            closed = self.args.close_mosaic if self.args.mosaic else 0
            stop = closed if closed < self.epochs else 0
        if stop >= self.epochs:
            raise ValueError(
                f"distill_stop={stop} leaves none of the {self.epochs} epochs to distillation; lower it or raise epochs"
            )
        return self.epochs - stop

    # Steps ----------------------------------------------------------------------------------------------------------

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Prepare a batch, with images without labels behind its own, and show its images to the teachers."""
        self._clock.batch(self)
        labelled = len(batch["img"]) if self._more is not None else None
        if self._more is not None and self.session is not None and not self.session.over:
            batch = self._more.join(batch)
        batch = super().preprocess_batch(batch)
        if self.session is not None:
            self.session.observe(batch["img"], labelled)
        return batch

    def optimizer_step(self) -> None:
        """Step the adversaries on the last batch's features, then the student with the distillation modules."""
        if not self._clock.due(self):
            return
        if self.session is not None:
            self.session.step(self.scaler.get_scale())
        super().optimizer_step()

    # Log ------------------------------------------------------------------------------------------------------------

    def label_loss_items(self, loss_items: Mapping[str, Any] | None = None, prefix: str = "train") -> Any:
        """Label loss items for results.csv and the loggers; validation has the detection terms alone."""
        labelled = super().label_loss_items(loss_items, prefix)
        if self.session is None:
            return labelled
        if prefix == "train" and loss_items is not None:
            return {**labelled, **{f"distill/{k}": round(v, 5) for k, v in self.session.epoch_metrics().items()}}
        distill = {f"{prefix}/{name}" for name in self.session.item_names}
        if isinstance(labelled, dict):
            return {k: v for k, v in labelled.items() if k not in distill}
        return [k for k in labelled if k not in distill]

    # State ----------------------------------------------------------------------------------------------------------

    def save_model(self) -> bool:
        """Save the checkpoints, each written whole or not at all, and beside them what they lack."""
        sidecar = Sidecar(self.wdir)
        sidecar.write(self.epoch, self._state())
        with written_whole(self, "best", "last"):
            saved = super().save_model()
        sidecar.remove(but=self.epoch)
        return saved

    def _state(self) -> dict[str, Any]:
        """Return everything a resumed run needs that a plain checkpoint lacks or holds in half precision."""
        return {
            "epoch": self.epoch,
            "student": unwrap_model(self.model).state_dict(),
            "ema": self.ema.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self._clock.state_dict(self),
            "possible_stop": bool(self.stopper.possible_stop),
            "stopped": bool(self.stop),
            **(self.session.state_dict() if self.session is not None else {}),
            "teachers": self._files.digests,
        }

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Restore a checkpoint, then what the side-car holds of the same epoch, in full precision."""
        sidecar, epoch = Sidecar(self._restored_from), ckpt.get("epoch", -1)
        if self.session is None and not sidecar.holds(epoch):  # of the stock trainer, or of an earlier version
            super()._load_checkpoint_state(ckpt)
            return
        state = sidecar.read(epoch, self.device)
        self._files.check_same(state["teachers"], self.distill_config.run.teachers)
        super()._load_checkpoint_state({**ckpt, "optimizer": None})
        if all(torch.isfinite(v).all() for v in state["student"].values()):
            unwrap_model(self.model).load_state_dict(state["student"])
        self.ema.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stopper.possible_stop = state.get("possible_stop", False)
        if self.session is not None:
            self.session.load_state_dict(state)
        self._resumed = state

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as the stock trainer does; an epoch that was logged but not saved any more is logged once."""
        if self.resume:
            self._restored_from = Path(self.args.resume).parent
        self._resumed = {}
        if self.resume and ckpt is not None and ckpt.get("epoch", -1) + 1 == self.epochs:
            self._load_checkpoint_state(ckpt)
            self.epoch = self.start_epoch = self.epochs - 1
            raise _AllEpochsDone
        super().resume_training(ckpt)
        if self._resumed.get("stopped"):
            self.epoch = self.start_epoch = self.start_epoch - 1
            raise _AllEpochsDone
        if "steps" in self._resumed:  # an earlier version kept none
            self._clock.load_state_dict(self._resumed["steps"])
        self._resumed = {}
        self._restored_from = self.wdir  # a recovery after NaN reads what this run has saved
        if self.start_epoch and RANK in {-1, 0}:
            drop_unsaved_epochs(self.csv, self.start_epoch)

    def final_eval(self) -> None:
        """Validate the best checkpoint; the run is complete, so its distillation state is no longer needed."""
        super().final_eval()
        if RANK in {-1, 0}:
            Sidecar(self.wdir).remove()


def _folder_of_its_own(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder while a training writes to it."""
    return alone(
        folder / _LOCK, f"another process is training in {folder}: wait for it, or choose another project= or name="
    )


def _is_file(value: Any) -> bool:
    """Return whether a value is the path of a file."""
    return isinstance(value, (str, Path)) and Path(value).expanduser().is_file()


class _AllEpochsDone(Exception):
    """A run that is resumed has no epoch left."""


def _extend_criterion(trainer: DistillTrainer) -> None:
    """Put the distillation terms behind the student's detection loss, once everything else is set up."""
    assert trainer.session is not None
    model: Any = unwrap_model(trainer.model)
    base = getattr(model, "criterion", None) or model.init_criterion()
    model.criterion = DistillCriterion(base, trainer.session, model)


def _start_epoch(trainer: DistillTrainer) -> None:
    """Begin an epoch; one that is repeated, after NaN or for want of memory, counts from its start again."""
    assert trainer.session is not None
    trainer.session.start_epoch(trainer.epoch, len(trainer.train_loader))


def _end_epoch(trainer: DistillTrainer) -> None:
    """End an epoch's training, before it is validated and saved."""
    assert trainer.session is not None
    if trainer._clock.waiting:
        trainer.session.end_epoch()


def _report_epoch(trainer: DistillTrainer) -> None:
    """Print the epoch's distillation measures under its progress line; warn when distillation drowns detection."""
    if RANK not in {-1, 0} or trainer.session is None or trainer.tloss is None:
        return
    if summary := trainer.session.describe_epoch():
        LOGGER.info(f"{colorstr('distill:')} {summary}")
    if not trainer._warned and (warning := trainer.session.drowning(trainer.tloss)):
        trainer._warned = True
        LOGGER.warning(warning)
