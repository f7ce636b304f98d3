"""A distillation run: the teachers, the methods, the adversaries' optimizers, the schedule and the epoch's sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, DistillMethod, HeadLoss, Opponent, method_class
from meddet_yolo.distill.teachers import Teacher

__all__ = ["DistillSession"]

GRADIENT_NORM = 10.0  # as Ultralytics clips the student
LAST_WEIGHT = 0.1  # what a cosine schedule falls to, as in detectors that ship with distillation
ADAM_BETAS = (0.5, 0.999)  # of the adversaries' optimizers, customary since DCGAN


class DistillSession:
    """What a training needs for distillation, and all of its state; it knows nothing of Ultralytics.

    One step is: `observe` the images, which runs the teachers; the student's forward pass; `loss`; the backward pass;
    `step`, before the student's optimizer steps. An epoch begins with `start_epoch`, also one that is begun again.

    Under data-parallel training every process has a session of its own. They start with the same modules, and `step`
    averages their gradients, as DDP does with the student's.

    Args:
        student: What is known of the student.
        teachers: The frozen teachers, on the device of the training, one or more.
        config: The options.
        imgsz: Side of the student's input in pixels.
        device: Where the methods' modules belong.
        epochs: Number of epochs with distillation, after which neither teachers nor methods run; None does not end it,
            and leaves a cosine schedule without an end to fall towards, which is refused.

    Attributes:
        config: The options.
        teachers: The teachers.
        methods: The methods by name, as one module.
        item_names: The names of the items that the last `loss` returned.
        labelled: How many of the images that were observed, the first ones, have labels; None all of them.

    Raises:
        ValueError: If a method cannot learn from a teacher, or a schedule has no end.

    Examples:
        >>> from ultralytics.nn.tasks import DetectionModel
        >>> teacher = Teacher(DetectionModel("yolo11n.yaml", nc=2, verbose=False), name="yolo11n")
        >>> student = DetectorSpec("student", [8, 16, 16], [8, 16, 32], nc=2, reg_max=16)
        >>> session = DistillSession(student, [teacher], DistillConfig.from_dict({}), imgsz=64)
        >>> session.start_epoch(0, batches=1)
        >>> images = torch.rand(2, 3, 64, 64)
        >>> session.observe(images)
        >>> maps = [torch.rand(2, c, 64 // s, 64 // s) for c, s in zip([8, 16, 16], [8, 16, 32])]
        >>> terms, items = session.loss(DetectorOutput(maps), {}, torch.ones(()), head_loss=lambda maps: maps[0].mean())
        >>> len(terms), sorted(items)[:3]
        (3, ['adv_loss', 'adv_share', 'disc_acc'])
    """

    def __init__(
        self,
        student: DetectorSpec,
        teachers: Sequence[Teacher],
        config: DistillConfig,
        imgsz: int,
        device: torch.device | str = "cpu",
        epochs: int | None = None,
    ) -> None:
        if epochs is None and config.run.distill_schedule == "cosine":
            raise ValueError("distill_schedule=cosine needs the number of epochs; give epochs, or choose constant")
        self.config = config
        self._epochs = epochs
        self.teachers = list(teachers)
        for teacher in self.teachers:
            teacher.resample_to(student.strides, imgsz)
        specs = [teacher.spec_at(imgsz) for teacher in self.teachers]
        methods: dict[str, DistillMethod] = {}
        with torch.random.fork_rng(devices=[]):
            for name, options in config.methods.items():
                kind = method_class(name)
                for teacher in self.teachers if kind.needs_predictions else ():
                    _check_predictions(name, kind, teacher)
                methods[name] = kind(student, specs, options)
        for teacher in self.teachers:
            teacher.keep_head(any(method.needs_predictions for method in methods.values()))
        self.methods = nn.ModuleDict(methods).to(device)
        self._opponents: list[Opponent] = [o for method in methods.values() for o in method.opponents()]
        self._optimizers = {o.name: torch.optim.Adam(o.parameters, lr=o.lr, betas=ADAM_BETAS) for o in self._opponents}
        self._seen: list[DetectorOutput] | None = None
        self.labelled: int | None = None
        self._epoch, self._batch, self._batches = 0, 0, 1
        self._sums: dict[str, Tensor] = {}
        self._shares: frozenset[str] = frozenset()
        self._zeros: tuple[Tensor, dict[str, Tensor]] | None = None  # what `loss` returns once distillation is over
        self._measured: dict[str, Tensor] = {}  # the same of the epoch's sums, so that a log's columns stay
        self.item_names: frozenset[str] = frozenset()
        if _world_size() > 1:
            for tensor in chain(self.methods.parameters(), self.methods.buffers()):
                dist.broadcast(tensor.data, src=0)

    # A step -----------------------------------------------------------------------------------------------------------

    def start_epoch(self, epoch: int, batches: int) -> None:
        """Begin an epoch, or begin it again after a recovery: what was summed up of it is forgotten.

        Args:
            epoch: Number of the epoch, from 0.
            batches: Number of its batches, for the schedule.
        """
        self._epoch, self._batch, self._batches = epoch, 0, max(batches, 1)
        self._sums, self._seen = {}, None

    def observe(self, images: Tensor, labelled: int | None = None) -> None:
        """Run the teachers on a batch of images (B, C, H, W), values in [0, 1], before the student's forward pass.

        The activations that the student keeps would crowd theirs out of the memory at hand, which on a CPU made them a
        third slower.

        Args:
            images: The images, those with labels first.
            labelled: How many have labels; None all of them.
        """
        self.labelled = labelled
        idle = self.over and self._zeros is not None
        self._seen = [] if idle else [teacher(images) for teacher in self.teachers]

    @property
    def reads_stems(self) -> bool:
        """Whether a method reads what the first blocks of the student's head give."""
        return not self.over and any(method.reads_stems for method in self._methods())

    @property
    def over(self) -> bool:
        """Whether the epoch is one of the last, which go without distillation."""
        return self._epochs is not None and self._epoch >= self._epochs

    def loss(
        self, student: DetectorOutput, batch: Mapping[str, Any], detection: Tensor, *, head_loss: HeadLoss
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted terms of the batch that was observed, and what the progress line shows of them.

        Args:
            student: The student's output on the images that were observed. Terms are means over all of them, of those
                without labels too; methods that read labels are shown the others only.
            batch: Labels, see `DistillMethod.forward`.
            detection: The detection loss, a scalar, mean over images; for the shares.
            head_loss: See `meddet_yolo.distill.method.HeadLoss`.

        Returns:
            A vector with one element for each term, and items: each term as `NAME_loss`, its share of the student's
            total loss as `NAME_share`, and the methods' measures that belong into the progress line.

        Raises:
            RuntimeError: If no images were observed since the last call.
        """
        if self._seen is None:
            raise RuntimeError("the teachers have not seen this batch: call observe(images) before loss()")
        teachers, self._seen = self._seen, None
        scheduled = self._schedule()
        self._batch += 1
        if self.over and self._zeros is not None:
            self._sums = {name: torch.zeros_like(value) for name, value in self._measured.items()}
            return self._zeros
        weighted: dict[str, Tensor] = {}
        teaching: dict[str, Tensor] = {}
        for method in self._methods():
            shown = [student, *teachers]
            if self.labelled is not None and method.reads_labels:
                shown = [output.first(self.labelled) for output in shown]
            terms = method(shown[0], shown[1:], batch, head_loss=head_loss)
            if clash := weighted.keys() & terms.keys():
                raise ValueError(f"two methods have a term named {min(clash)!r}: they cannot be used together")
            for name, term in terms.items():
                weighted[name] = term.weight * (scheduled if term.schedule else 1.0) * term.loss
                if term.student:
                    teaching[name] = weighted[name].detach()
        total = detection.detach() + sum(teaching.values())
        items = {f"{name}_loss": value.detach() for name, value in weighted.items()}
        shares = {f"{name}_share": value / total.clamp(min=1e-9) for name, value in teaching.items()}
        self._shares = frozenset(shares)
        items |= shares
        for method in self._methods():
            metrics = method.metrics()
            for name in method.progress:
                items[name] = metrics.pop(name, total.new_zeros(()))
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        if self.labelled is not None:
            for name, value in unlabelled_shares(student, teachers, self.labelled).items():
                self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self.item_names = frozenset(items)
        terms = torch.stack(list(weighted.values()))
        if self.over:  # the first such batch of a process only: it tells the names of the items
            self._sums = self._measured = {name: torch.zeros_like(value) for name, value in self._sums.items()}
            self._zeros = torch.zeros_like(terms), {name: torch.zeros_like(value) for name, value in items.items()}
            return self._zeros
        return terms, items

    def step(self, gradient_scale: float = 1.0) -> None:
        """Step the adversaries on the last batch; average and clip the gradients of the methods' other modules.

        Args:
            gradient_scale: What mixed precision has multiplied the gradients by; clipping at the scaled norm is
                clipping after unscaling.
        """
        if self.over:
            return
        for opponent in self._opponents:
            self._step_opponent(opponent)
        parameters = self.parameters()
        average_gradients(parameters)
        clip_grad_norm_(parameters, GRADIENT_NORM * gradient_scale)

    def end_epoch(self) -> None:
        """Average the gradients that wait for a step over the processes, which are alike then: one is saved for all.

        The step averages the sum of these and of those to come, which is the same.
        """
        if not self.over:
            average_gradients(self.parameters())

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters that learn in the student's optimizer: all of the methods' but the adversaries'."""
        excluded = {id(p) for opponent in self._opponents for p in opponent.parameters}
        return [p for p in self.methods.parameters() if id(p) not in excluded]

    def _step_opponent(self, opponent: Opponent) -> None:
        """Train an adversary for one step in float32; a loss that is not finite makes every process skip it."""
        with torch.autocast(opponent.parameters[0].device.type, enabled=False):
            loss = opponent.loss()
        finite = torch.isfinite(loss.detach()).float()
        if _world_size() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if not finite:
            return
        optimizer = self._optimizers[opponent.name]
        optimizer.zero_grad()
        loss.backward()
        average_gradients(opponent.parameters)
        clip_grad_norm_(opponent.parameters, GRADIENT_NORM)
        optimizer.step()

    def _schedule(self) -> float:
        """Return the factor of the scheduled terms at this batch."""
        warmup = self.config.run.distill_warmup
        done = self._epoch + self._batch / self._batches
        if done < warmup:
            return done / warmup
        if self._epochs is None or self.config.run.distill_schedule == "constant":
            return 1.0
        share = min(1.0, (done - warmup) / max(self._epochs - warmup, 1e-9))
        return LAST_WEIGHT + (1 - LAST_WEIGHT) * (1 + math.cos(math.pi * share)) / 2

    def _methods(self) -> Iterator[DistillMethod]:
        return (method for method in self.methods.values() if isinstance(method, DistillMethod))

    # Log --------------------------------------------------------------------------------------------------------------

    def epoch_metrics(self) -> dict[str, float]:
        """Return the epoch's means of what the progress line has no room for, e.g. fusion weights by level."""
        return {name: float(total) / max(self._batch, 1) for name, total in self._sums.items()}

    def describe_epoch(self) -> str:
        """Return what the log says of the epoch, in one line; empty where the methods have nothing to say."""
        metrics = self.epoch_metrics()
        return " | ".join(filter(None, (method.describe(metrics) for method in self._methods())))

    def drowning(self, items: Mapping[str, Any]) -> str:
        """Return a warning where the distillation terms may drown the detection loss; empty otherwise.

        Args:
            items: The epoch's means of the items that `loss` returned.
        """
        shares = {name.removesuffix("_share"): float(v) for name, v in items.items() if name in self._shares}
        limit = self.config.run.drown_warning
        if sum(shares.values()) <= limit:
            return ""
        weights = {f"{name}_weight" for name in shares}
        options = [(k, v) for chosen in self.config.methods.values() for k, v in chosen.to_dict().items()]
        remedies = [f"{key}={value:g}" for key, value in options if key in weights]
        return (
            f"Distillation makes up {sum(shares.values()):.0%} of the student's loss (drown_warning={limit:g}) and may "
            f"drown the detection loss; lower {' or '.join(remedies)}."
        )

    # State ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state of modules and optimizers, to be saved with `torch.save` and loaded with weights only."""
        methods = {name: method.state_dict() for name, method in self.methods.items()}
        alone = len(methods) == 1
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {
            "distiller": next(iter(methods.values())) if alone else methods,
            "disc_optimizer": (next(iter(optimizers.values()), None)) if len(optimizers) < 2 else optimizers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        alone = len(self.methods) == 1
        for name, method in self.methods.items():
            method.load_state_dict(state["distiller"] if alone else state["distiller"][name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(
                state["disc_optimizer"] if len(self._optimizers) < 2 else state["disc_optimizer"][name]
            )


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over the processes of a distributed training; those that are None count as zeros."""
    if _world_size() == 1 or not parameters:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = nn.utils.parameters_to_vector(gradients)  # one exchange costs little more than that of one small tensor
    dist.all_reduce(flat)
    nn.utils.vector_to_parameters(flat / _world_size(), gradients)


@torch.no_grad()
def unlabelled_shares(student: DetectorOutput, teachers: Sequence[DetectorOutput], labelled: int) -> dict[str, Tensor]:
    """Return what of a batch has no labels, for the log.

    Args:
        student: The student's output, those of images with labels first.
        teachers: The teachers' outputs.
        labelled: Number of images with labels.

    Returns:
        `unlabelled_images`, the share of the images; and, where teachers predict, `unlabelled_scores`, the share of the
        sum of their top scores, which is what response terms weigh by. Scalars.

    Examples:
        >>> unlabelled_shares(DetectorOutput([torch.zeros(4, 8, 2, 2)]), [], labelled=3)
        {'unlabelled_images': tensor(0.2500)}
    """
    images = len(student.feats[0])
    shares = {"unlabelled_images": student.feats[0].new_tensor((images - labelled) / images, dtype=torch.float32)}
    scores = [t.logits.float().sigmoid().amax(1).sum(1) for t in teachers if t.logits is not None]  # (B,) each
    if scores:
        total = torch.stack(scores).sum(0)
        shares["unlabelled_scores"] = total[labelled:].sum() / total.sum().clamp(min=1e-9)
    return shares


def _check_predictions(name: str, kind: type[DistillMethod], teacher: Teacher) -> None:
    """Refuse a teacher whose predictions a method cannot read."""
    if teacher.silent:
        raise ValueError(
            f"distill={name} reads its teachers' predictions, and {teacher.name} {teacher.silent}; use a teacher of "
            "the YOLO family, or a method that reads feature maps only"
        )
    if teacher.classes is not None and not all(teacher.classes.known) and not kind.partial_classes:
        missing = [i for i, known in enumerate(teacher.classes.known) if not known]
        raise ValueError(
            f"distill={name} reads predictions of all classes, and {teacher.name} does not know the data set's "
            f"{', '.join(map(str, missing))}; map them with teacher_classes, or use a method that reads maps only"
        )


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
