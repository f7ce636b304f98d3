"""`DistillTrainer`: where multi-teacher distillation meets Ultralytics' training loop.

The trainer keeps everything that distillation needs beside the model, never around it: `trainer.model`, its EMA and its
checkpoints stay a plain detector at any moment of a run. The method's own state lies in a side-car file next to
`last.pt` and is removed when the run is complete.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from ultralytics.cfg import DEFAULT_CFG, cfg2dict
from ultralytics.engine.model import Model
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK, colorstr
from ultralytics.utils.torch_utils import unwrap_model

from meddet_yolo.data.dataset import build_dataset
from meddet_yolo.data.labels import label_problem
from meddet_yolo.data.mri_noise import MRINoiseConfig
from meddet_yolo.data.shipped import find_data
from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.methods.meddet.distiller import DetectorOutput, MedDetDistiller, match_levels
from meddet_yolo.distill.teachers import Teacher, check_same_classes, probe_neck
from meddet_yolo.evaluate.validator import MedDetValidator
from meddet_yolo.imaging.volumes import Skipped
from meddet_yolo.registry import load_detector

__all__ = ["DistillTrainer"]

SIDECAR = "distill-epoch{}.pt"  # never "last*", which Ultralytics searches for when it resumes
TEACHER_FEATS = "teacher_feats"  # key of a batch: for every teacher its maps, matched to the student's levels
GRADIENT_NORM = 10.0  # as Ultralytics clips the student
TERMS = ("dist", "adv", "guard")
OWN_DEFAULTS = {**DistillConfig.defaults(), **MRINoiseConfig.defaults()}  # arguments that Ultralytics does not know


class DistillCriterion:
    """The student's detection loss with the distillation terms appended.

    A plain object, so that it is no part of any state dict; a copy of the model (its EMA, a recovery after NaN) drops
    it and builds the stock criterion instead.
    """

    def __init__(self, base: Any, trainer: DistillTrainer) -> None:
        self.base = base
        self.trainer = trainer

    def __call__(self, preds: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss vector (detection terms, then distillation terms) and its items for the log."""
        loss, items = self.base(preds, batch)
        extra, extra_items = self.trainer.distillation_loss(preds, batch, loss)
        return torch.cat([loss.reshape(-1), extra]), {**items, **extra_items}

    def update(self) -> None:
        """Advance the schedule of the end-to-end loss, where the base criterion has one."""
        if hasattr(self.base, "update"):
            self.base.update()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied model gets no criterion: it builds its own when it needs one."""
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Nor does a pickled one."""
        return type(None), ()


class DistillTrainer(DetectionTrainer):
    """Train a detector on its labels and on the features of frozen teachers.

    Takes every argument of `ultralytics.models.yolo.detect.DetectionTrainer`, the fields of
    `meddet_yolo.data.mri_noise.MRINoiseConfig` and those of `meddet_yolo.distill.DistillConfig`, of which `teachers`
    switches distillation on; without teachers it trains as the stock trainer does. The total is L = L_det + a L_dist +
    b L_adv + c L_guard (paper: L_det + L_dist + L_adv; the weights, their warm-up and the guard are our own decisions).

    Args:
        cfg: Ultralytics' default configuration.
        overrides: Arguments as `YOLO.train()` takes them. `teachers` holds checkpoint paths or loaded models.
        _callbacks: Ultralytics' callbacks by event.

    Attributes:
        distill_config: The validated distillation arguments.
        teachers: The frozen teachers; empty without distillation.
        skipped: DICOM and NIfTI files of the data set that could not be used, and why.
        distiller: Alignment, fusion, guard, generator and discriminator; None before set-up and without teachers.

    Raises:
        FileNotFoundError: If a teacher file is missing, a moved one on resume included.
        TypeError: If a teacher is no detection model.
        ValueError: If a distillation argument is invalid, a teacher's classes differ from the data set's, or
            `distill_model` is given together with `teachers`.

    Examples:
        >>> from ultralytics import YOLO
        >>> from meddet_yolo import DistillTrainer
        >>> model = YOLO("meddet-n.yaml")
        >>> model.train(trainer=DistillTrainer, teachers=["a.pt", "b.pt"], data="d.yaml", epochs=100)  # doctest: +SKIP
    """

    args: Any  # Ultralytics builds these without types
    last: Path
    best: Path

    def __init__(
        self,
        cfg: Any = DEFAULT_CFG,
        overrides: dict[str, Any] | None = None,
        _callbacks: dict[str, Any] | None = None,
    ) -> None:
        overrides = dict(overrides or {})
        self._given_models: list[nn.Module] = []
        if "teachers" in overrides:
            overrides["teachers"] = self._name_teachers(overrides["teachers"])
        if "data" in overrides:
            overrides["data"] = find_data(overrides["data"])
        resuming = bool(overrides.get("resume"))
        config = DistillConfig.from_dict({k: v for k, v in overrides.items() if k in DistillConfig.keys()})
        if not resuming:
            self._refuse_native(overrides.get("distill_model"), config)
            MRINoiseConfig.from_options(overrides)  # before anything is loaded
            models = self._load_teachers(config)
        super().__init__({**OWN_DEFAULTS, **cfg2dict(cfg)}, overrides, _callbacks)
        if resuming:
            config = DistillConfig.from_dict({k: getattr(self.args, k) for k in DistillConfig.keys()})
            self._refuse_native(self.args.distill_model, config)
            models = self._load_teachers(config)
        self.distill_config = config
        self.distiller: MedDetDistiller | None = None
        self.disc_optimizer: torch.optim.Optimizer | None = None
        sizes = config.teacher_sizes()
        self.teachers = [
            Teacher(model, name=name, imgsz=size)
            for model, name, size in zip(models, config.teachers, sizes, strict=True)
        ]
        for teacher in self.teachers:
            check_same_classes(teacher.names, self.data["names"], teacher.name)
        self._levels: list[list[int]] = []
        self._student_strides: list[float] = []
        self._batches_seen = 0  # of this epoch, as the sums below
        self._sums: dict[str, Tensor] = {}
        self._warned = False
        self._restored_from = self.wdir  # the folder of the checkpoint that is restored, and of its side-car
        self.skipped: list[Skipped] = []
        if self.teachers and not self.ddp:
            self.callbacks["on_train_epoch_end"].insert(0, _report_epoch)

    # Arguments ------------------------------------------------------------------------------------------------------

    def _name_teachers(self, teachers: Any) -> list[str]:
        """Turn `teachers` into a list of absolute paths; loaded models are kept aside under a name of their own."""
        if teachers is None:
            return []
        names = []
        for teacher in [teachers] if isinstance(teachers, (str, Path, nn.Module)) else teachers:
            module = teacher.model if isinstance(teacher, Model) else teacher
            if isinstance(module, nn.Module):
                self._given_models.append(module)
                names.append(f"<model {len(self._given_models) - 1}>")
            else:
                path = Path(str(teacher)).expanduser()
                names.append(str(path.resolve()) if path.exists() else str(teacher))
        return names

    def _load_teachers(self, config: DistillConfig) -> list[nn.Module]:
        """Load every teacher named in the configuration, and keep the SHA-256 of what was loaded.

        The files are not looked at again: they may be moved or overwritten while the run goes on.
        """
        models: list[nn.Module] = []
        self._digests: list[str] = []  # of a teacher that was given as a model, nothing
        for name in config.teachers:
            if name.startswith("<model "):
                index = int(name[len("<model ") : -1])
                if index >= len(self._given_models):
                    raise ValueError(
                        f"The run was started with a loaded model as teacher ({name}), which no file holds; pass the "
                        "same teachers=[...] again to resume it"
                    )
                models.append(self._given_models[index])
                self._digests.append("")
            else:
                before = _digest(name)
                models.append(load_detector(name, trust=config.trust))
                self._digests.append(_digest(str(models[-1].pt_path)))  # an official one may have been downloaded
                if before not in {"", self._digests[-1]}:
                    raise ValueError(
                        f"Teacher {name} was changed while it was being loaded; start again when it is written wholly"
                    )
        return models

    @staticmethod
    def _refuse_native(distill_model: Any, config: DistillConfig) -> None:
        """Refuse Ultralytics' own distillation together with ours."""
        if distill_model is not None and config.teachers:
            raise ValueError(
                f"distill_model={distill_model} and teachers={config.teachers} were both given; distill_model is "
                "Ultralytics' own single-teacher distillation: choose one of the two"
            )

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
        try:
            stride = max(int(unwrap_model(self.model).stride.max()), 32)
            dataset = build_dataset(self.args, img_path, batch, self.data, mode=mode, rect=mode == "val", stride=stride)
        except RuntimeError as error:  # several lines, one for each image
            reasons = re.findall(r"(\S+): ignoring corrupt image/label: (.*)", str(error))
            if not reasons:
                raise
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            raise ValueError(f"No valid images in {img_path}: {reasons[0][0]}: {reasons[0][1]}{more}") from error
        self.skipped = list(dict.fromkeys([*self.skipped, *dataset.skipped]))
        kept = set(dataset.label_files_of(dataset.im_files))
        dropped = [file for file in dataset.label_files if file not in kept]
        problem = label_problem(dropped, len(self.data["names"]))
        if problem:
            raise ValueError(f"Label out of range: {problem}; correct the labels or `names` in {self.args.data}")
        if mode == "train" and not any(len(label["cls"]) for label in dataset.labels):
            raise ValueError(f"No boxes in {img_path}: every label file is empty or missing; nothing can be learnt")
        return dataset

    def train(self) -> None:
        """Train, in worker processes where several devices are given."""
        if self.ddp and self._given_models:
            raise ValueError(
                "Training on several devices starts worker processes, which cannot be handed loaded models; "
                "pass teachers as checkpoint paths"
            )
        super().train()

    def _setup_train(self) -> None:
        """Set the run up as the stock trainer does, then put the distillation terms behind the detection loss."""
        channels_last = self.args.channels_last
        on_cpu = self.device.type == "cpu"
        if on_cpu and channels_last:
            self.args.channels_last = None  # the stock trainer would only warn; convolutions are faster with it here
        super()._setup_train()
        self.args.channels_last = channels_last
        if on_cpu and channels_last:
            self.model.to(memory_format=torch.channels_last)
            self.ema.ema.to(memory_format=torch.channels_last)
        if self.teachers:
            model = unwrap_model(self.model)
            base = getattr(model, "criterion", None) or model.init_criterion()
            model.criterion = DistillCriterion(base, self)

    def build_optimizer(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build the student's optimizer and give the distillation modules a parameter group of their own in it."""
        optimizer = super().build_optimizer(model, *args, **kwargs)
        if not self.teachers:
            return optimizer
        self.distiller = self._build_distiller(unwrap_model(model))
        # MuSGD has two groups of weights, the head's with a higher rate.
        weights = [group for group in optimizer.param_groups if group.get("param_group") == "weight"]
        template = min(weights, key=lambda group: group["lr"])
        group = {k: v for k, v in template.items() if k not in {"params", "param_group", "initial_lr"}}
        optimizer.add_param_group(
            {**group, "params": list(self.distiller.main_parameters()), "param_group": "distill", "weight_decay": 0.0}
        )
        discriminator = list(self.distiller.discriminator_parameters())
        if discriminator:
            self.disc_optimizer = torch.optim.Adam(discriminator, lr=self.distill_config.disc_lr, betas=(0.5, 0.999))
        return optimizer

    def _build_distiller(self, student: nn.Module) -> MedDetDistiller:
        """Match every teacher's levels to the student's and build the distillation modules on the run's device."""
        channels, strides = probe_neck(student)
        self._levels, self._student_strides = [], strides
        for teacher in self.teachers:
            try:
                self._levels.append(match_levels(strides, teacher.strides_at(self.args.imgsz)))
            except ValueError as error:
                raise ValueError(f"Teacher {teacher.name}: {error}") from error
            teacher.to(self.device)
        distiller = MedDetDistiller(
            channels,
            [[t.channels[i] for i in levels] for t, levels in zip(self.teachers, self._levels, strict=True)],
            self.distill_config,
        ).to(self.device)
        if self.world_size > 1:
            for tensor in (*distiller.parameters(), *distiller.buffers()):
                dist.broadcast(tensor.data, src=0)
        if RANK in {-1, 0}:
            for teacher, levels in zip(self.teachers, self._levels, strict=True):
                seen = teacher.strides_at(self.args.imgsz)
                maps = ", ".join(f"{teacher.channels[i]}@/{seen[i]:g}" for i in levels)
                LOGGER.info(f"{colorstr('teacher:')} {teacher.name} ({maps})")
        return distiller

    # Loss -----------------------------------------------------------------------------------------------------------

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Prepare a batch, and run the teachers on it.

        They run here, before the student's forward pass: the activations that it keeps would crowd theirs out of the
        memory that is at hand, which on a CPU made them a third slower.
        """
        batch = super().preprocess_batch(batch)
        if self.distiller is not None:
            outputs = [teacher(batch["img"]).feats for teacher in self.teachers]
            batch[TEACHER_FEATS] = [
                [maps[i] for i in levels] for maps, levels in zip(outputs, self._levels, strict=True)
            ]
        return batch

    def _model_train(self) -> None:
        """Begin an epoch; one that is repeated, after NaN or for want of memory, counts from its start again."""
        super()._model_train()
        self._batches_seen, self._sums = 0, {}

    def _epochs_done(self) -> float:
        """Return the epochs done with the fraction of the one under way, and count this batch."""
        done = self.epoch + self._batches_seen / max(len(self.train_loader), 1)
        self._batches_seen += 1
        return done

    def distillation_loss(
        self, preds: Any, batch: dict[str, Any], detection: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted distillation terms of a batch and what the log shows of them.

        Args:
            preds: The student's training output: a dict with `feats`, or one whose `one2many` holds it.
            batch: The batch as `preprocess_batch` returns it: images (B, C, H, W) in [0, 1] under `img`, and the
                teachers' maps.
            detection: The detection loss vector, summed over the batch as Ultralytics does.

        Returns:
            A vector of three terms (feature distillation, adversarial, guard), summed over the batch, and the items.
        """
        assert self.distiller is not None
        images = batch["img"]
        feats = (preds.get("one2many") or preds)["feats"]
        losses = self.distiller(
            DetectorOutput(feats=list(feats)),
            [DetectorOutput(feats=maps) for maps in batch[TEACHER_FEATS]],
            batch,
            detection_loss=lambda maps: self._detection_on(maps, batch),
        )
        config, done = self.distill_config, self._epochs_done()
        rise = min(1.0, done / config.distill_warmup) if config.distill_warmup else 1.0
        weights = {"dist": rise * config.dist_weight, "adv": rise * config.adv_weight, "guard": config.guard_weight}
        terms = {name: weights[name] * losses[name] for name in TERMS}
        student = {name: terms[name].detach() for name in ("dist", "adv")}
        total = detection.detach().sum() / images.shape[0] + sum(student.values())
        shares = {f"{name}_share": value / total.clamp(min=1e-9) for name, value in student.items()}
        metrics = self.distiller.metrics()
        items = {f"{name}_loss": term.detach() for name, term in terms.items()} | shares
        items["disc_acc"] = metrics.pop("disc_acc", total.new_zeros(()))
        items["fused_ev"] = metrics.pop("fused_ev")
        for name, value in metrics.items():
            name = _level_name(name, self._student_strides)
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        return torch.stack([terms[name] for name in TERMS]) * images.shape[0], items

    def _detection_on(self, maps: list[Tensor], batch: dict[str, Any]) -> Tensor:
        """Return the mean detection loss of the student's head on other maps than the student's own.

        The head's running statistics stay those of the student's maps, which are what it reads in inference.
        """
        model = unwrap_model(self.model)
        head = model.model[-1]
        norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            preds = head(maps)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        loss, _ = model.criterion.base(preds, batch)
        return loss.sum() / maps[0].shape[0]

    # Steps ----------------------------------------------------------------------------------------------------------

    def optimizer_step(self) -> None:
        """Step the discriminator on the last batch's features, then the student with the distillation modules."""
        if self.distiller is not None:
            self._discriminator_step()
            parameters = list(self.distiller.main_parameters())
            self._average_gradients(parameters)
            # Gradients still carry the AMP scale here; clipping at the scaled norm is clipping after unscaling.
            torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM * self.scaler.get_scale())
        super().optimizer_step()

    def _discriminator_step(self) -> None:
        """Train the discriminator for one step in float32; a loss that is not finite makes every process skip it."""
        if self.disc_optimizer is None or self.distiller is None:
            return
        with torch.autocast(self.device.type, enabled=False):
            loss = self.distiller.discriminator_loss()
        finite = torch.isfinite(loss.detach()).float()
        if self.world_size > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite:
            return
        self.disc_optimizer.zero_grad()
        loss.backward()
        parameters = list(self.distiller.discriminator_parameters())
        self._average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        self.disc_optimizer.step()

    def _average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients over the processes of a distributed run, as DDP does for the student's."""
        if self.world_size <= 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = nn.utils.parameters_to_vector(gradients)  # one exchange costs little more than that of one small tensor
        dist.all_reduce(flat)
        nn.utils.vector_to_parameters(flat / self.world_size, gradients)

    # Log ------------------------------------------------------------------------------------------------------------

    def epoch_metrics(self) -> dict[str, float]:
        """Return the epoch's means of what the progress line has no room for, e.g. fusion weights by level."""
        return {name: float(total) / max(self._batches_seen, 1) for name, total in self._sums.items()}

    def label_loss_items(self, loss_items: Mapping[str, Any] | None = None, prefix: str = "train") -> Any:
        """Label loss items for results.csv and the loggers; validation has the detection terms alone."""
        labelled = super().label_loss_items(loss_items, prefix)
        if self.distiller is None:
            return labelled
        if prefix == "train" and loss_items is not None:
            return {**labelled, **{f"distill/{k}": round(v, 5) for k, v in self.epoch_metrics().items()}}
        distill = {f"{prefix}/{name}" for name in _DISTILL_ITEMS}
        if isinstance(labelled, dict):
            return {k: v for k, v in labelled.items() if k not in distill}
        return [k for k in labelled if k not in distill]

    # State ----------------------------------------------------------------------------------------------------------

    def _sidecars(self) -> Iterator[Path]:
        return self.wdir.glob(SIDECAR.format("*"))

    def save_model(self) -> bool:
        """Save the checkpoints, each written whole or not at all, and the distillation state beside them."""
        if self.distiller is not None:
            self.wdir.mkdir(parents=True, exist_ok=True)
            sidecar = self.wdir / SIDECAR.format(self.epoch)
            temporary = sidecar.with_suffix(".tmp")
            torch.save(self._state(), temporary)
            os.replace(temporary, sidecar)
        last, best = self.last, self.best
        self.last, self.best = (path.with_name(f"{path.name}.tmp") for path in (last, best))
        try:
            saved = super().save_model()
            for temporary, path in ((self.best, best), (self.last, last)):
                if temporary.exists():
                    os.replace(temporary, path)
        finally:
            self.last, self.best = last, best
        if self.distiller is not None:
            for path in self._sidecars():
                if path.name != SIDECAR.format(self.epoch):
                    path.unlink()
        return saved

    def _state(self) -> dict[str, Any]:
        """Return everything a resumed run needs that a plain checkpoint lacks or holds in half precision."""
        assert self.distiller is not None
        return {
            "epoch": self.epoch,
            "student": unwrap_model(self.model).state_dict(),
            "ema": self.ema.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "distiller": self.distiller.state_dict(),
            "disc_optimizer": self.disc_optimizer.state_dict() if self.disc_optimizer else None,
            "teachers": self._digests,
        }

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Restore a checkpoint, then what the side-car holds of the same epoch, in full precision."""
        if self.distiller is None:
            super()._load_checkpoint_state(ckpt)
            return
        path = self._restored_from / SIDECAR.format(ckpt.get("epoch", -1))
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the distillation state of epoch {ckpt.get('epoch', -1) + 1} is kept there and is "
                "needed to resume; put the file beside the checkpoint, or start a new run from last.pt with model=..."
            )
        state = torch.load(path, map_location=self.device, weights_only=True)
        self._check_digests(state["teachers"])
        super()._load_checkpoint_state({**ckpt, "optimizer": None})
        if all(torch.isfinite(v).all() for v in state["student"].values()):
            unwrap_model(self.model).load_state_dict(state["student"])
        self.ema.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.distiller.load_state_dict(state["distiller"])
        if self.disc_optimizer is not None:
            self.disc_optimizer.load_state_dict(state["disc_optimizer"])

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as the stock trainer does; an epoch that was logged but not saved any more is logged once."""
        if self.resume:
            self._restored_from = Path(self.args.resume).parent
        super().resume_training(ckpt)
        self._restored_from = self.wdir  # a recovery after NaN reads what this run has saved
        if self.start_epoch and RANK in {-1, 0} and self.csv.exists():
            header, *rows = self.csv.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [row for row in rows if int(row.split(",", 1)[0]) <= self.start_epoch]
            if kept != rows:
                self.csv.write_text("".join([header, *kept]), encoding="utf-8")

    def _check_digests(self, saved: list[str]) -> None:
        """Refuse to resume with other teachers than the run was started with."""
        names, current = self.distill_config.teachers, self._digests
        if len(saved) != len(current):
            raise ValueError(f"The run was started with {len(saved)} teachers, but {len(current)} are given now")
        for name, before, now in zip(names, saved, current, strict=True):
            if before and before != now:
                raise ValueError(
                    f"Teacher {name} is not the file that the run was started with (its SHA-256 differs); "
                    "pass the original with teachers=[...]"
                )

    def final_eval(self) -> None:
        """Validate the best checkpoint; the run is complete, so its distillation state is no longer needed."""
        super().final_eval()
        if RANK in {-1, 0}:
            for path in self._sidecars():
                path.unlink()


_DISTILL_ITEMS = frozenset([f"{name}_loss" for name in TERMS] + ["dist_share", "adv_share", "disc_acc", "fused_ev"])


def _level_name(name: str, strides: list[float]) -> str:
    """Name a measure's level as the field does: `w_p0_t1` becomes `w_p3_t1` where the finest stride is 8."""
    match = re.fullmatch(r"w_p(\d+)_(t\d+)", name)
    return f"w_p{round(math.log2(strides[int(match[1])]))}_{match[2]}" if match else name


def _digest(name: str) -> str:
    """Return the SHA-256 of a file, or nothing where there is none."""
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _report_epoch(trainer: DistillTrainer) -> None:
    """Print the epoch's distillation measures under its progress line; warn when distillation drowns detection."""
    if RANK not in {-1, 0} or trainer.distiller is None or trainer.tloss is None:
        return
    metrics = trainer.epoch_metrics()
    parts = []
    variance = [f"{metrics[k]:.2f}" for k in sorted(metrics) if k.startswith("ev_t")]
    if variance:
        parts.append(f"explained variance {' '.join(variance)}")
    levels: dict[str, list[str]] = {}
    for name in sorted(k for k in metrics if k.startswith("w_p")):
        levels.setdefault(name.split("_")[1].upper(), []).append(f"{metrics[name]:.2f}")
    if levels:
        parts.append("fusion " + ", ".join(f"{level} {'/'.join(shares)}" for level, shares in levels.items()))
    if "disc_loss" in metrics:
        parts.append(f"discriminator loss {metrics['disc_loss']:.3f}")
    LOGGER.info(f"{colorstr('distill:')} {' | '.join(parts)}")
    share = sum(float(trainer.tloss.get(f"{name}_share", 0.0)) for name in ("dist", "adv"))
    limit = trainer.distill_config.drown_warning
    if share > limit and not trainer._warned:
        trainer._warned = True
        LOGGER.warning(
            f"Distillation makes up {share:.0%} of the student's loss (drown_warning={limit:g}) and may drown the "
            f"detection loss; lower dist_weight={trainer.distill_config.dist_weight:g} or "
            f"adv_weight={trainer.distill_config.adv_weight:g}."
        )
