"""Start a student from its teacher's weights.

A student that takes over a part of a larger network's weights learns faster and ends better than one that starts at
random: weight selection, Xu et al., "Initializing Models with Larger Ones" (ICLR 2024, arXiv 2311.18823). There, every
dimension of every tensor is thinned out on its own; here the choice is made once for all tensors that share channels,
so that what a layer reads is what the layer before puts out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from meddet_yolo.distill.inherit.plan import name_of, plan
from meddet_yolo.distill.inherit.walk import InheritError, Link, Walk

__all__ = ["CHANNELS", "InheritReport", "best_fit", "inherit", "recalibrate"]

CHANNELS = ("even", "importance")
_MOST_NAMES = 4  # layers that the report's line names for one reason


@dataclass(frozen=True)
class InheritReport:
    """What a student took over; `str()` of it is one line for the log.

    Attributes:
        teacher: Name of the teacher, as far as it is known.
        tensors: Tensors of the student's state that hold the teacher's values, those taken in part included.
        total_tensors: Tensors of the student's state.
        parameters: Numbers in those of them that are parameters.
        total_parameters: Parameters of the student.
        left: Names of the tensors that were not inherited, by reason.
    """

    teacher: str
    tensors: int
    total_tensors: int
    parameters: int
    total_parameters: int
    left: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the student's parameters that was inherited, in [0, 1]."""
        return self.parameters / max(self.total_parameters, 1)

    def __str__(self) -> str:
        """Return one line that says how much was inherited, what was not and why."""
        text = (
            f"inherited {self.tensors} of {self.total_tensors} tensors, {100 * self.share:.1f} % of the parameters, "
            f"from {self.teacher}"
        )
        return text + "".join(f"; not inherited: {_by_layer(names)} ({why})" for why, names in self.left.items())


def inherit(
    student: nn.Module,
    teacher: nn.Module,
    *,
    channels: Literal["even", "importance"] = "even",
    rescale: bool = True,
) -> InheritReport:
    """Let a student take over its weights from a wider or deeper teacher of the same layout, in place.

    All tensors that share channels keep to one choice of them: through residual additions, concatenations, the halves
    of C2f and C3k2, depthwise convolutions, pooling, whole attention heads and the groups of a group normalisation. Of
    a deeper teacher, the blocks are chosen evenly, the first and the last among them; where a block that adds to its
    input is left out, what read its output reads its input. Batch statistics and the head are taken over too, outputs
    for classes and for the bins of a box side as they are. Of nmODE² in the head, what a
    stock teacher lacks stays as it is: in place of an activation it also keeps the start of the normalisation before.

    Args:
        student: Detector of this package or Ultralytics (a `DetectionModel`): YOLO11, YOLO26, YOLOv8, YOLOv5u, or
            GFL. Left as it is if an error is raised.
        teacher: Detector of the same layout, at least as wide and deep everywhere, not fused.
        channels: "even": channel i takes the teacher's floor(i C_t / C_s). "importance": those that matter most
            to the tensors that share them: the mean of the absolute weights of their normalisations and the L2 norms
            of the filters that read them (normalised ones; our own decision, after measurement), each over its mean.
        rescale: Multiply a convolution's weights by the root of the ratio of inputs (C_in of the teacher over C_in
            taken), which keeps the variance of a sum of fewer independent terms, and a narrower attention head's
            queries so that its logits keep their scale.

    Returns:
        How much was inherited, and what was not and why.

    Raises:
        InheritError: If the teacher is of another family, narrower, shallower or fused.
        ValueError: If `channels` is none of the two.

    Examples:
        >>> from ultralytics.nn.tasks import DetectionModel
        >>> small, large = (DetectionModel(f"yolo11{s}.yaml", nc=2, verbose=False) for s in "ns")
        >>> print(inherit(small, large))
        inherited 499 of 499 tensors, 100.0 % of the parameters, from the teacher yolo11s
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels={channels!r} is not known, expected one of {CHANNELS}")
    walk = plan(student, teacher)
    names = {id(tensor): name for name, tensor in student.state_dict(keep_vars=True).items()}
    taken: set[str] = set()
    with torch.no_grad():
        if channels == "importance":
            _score(walk.links)
        for link in walk.links:
            taken |= {names[id(tensor)] for tensor in _copy(link, channels, rescale)}
    return _report(student, walk, taken, name_of(teacher, "the teacher"))


def best_fit(student: nn.Module, teachers: Sequence[nn.Module]) -> int | None:
    """Return which teacher a student inherits from best: the smallest of those that it can inherit from.

    Args:
        student: Detector.
        teachers: Detectors; those of other families, and those narrower or shallower than the student, do not fit.

    Returns:
        The teacher's index, the first of equals; None if none fits.

    Examples:
        >>> from ultralytics.nn.tasks import DetectionModel
        >>> models = [DetectionModel(f"{name}.yaml", nc=2, verbose=False) for name in ("yolo11n", "yolov8s", "yolo11s")]
        >>> best_fit(models[0], models[1:])
        1
    """
    sizes = {}
    for i, teacher in enumerate(teachers):
        try:
            plan(student, teacher)
        except InheritError:
            continue
        sizes[i] = sum(p.numel() for p in teacher.parameters())
    return min(sizes, key=lambda i: sizes[i]) if sizes else None


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Measure the statistics of all batch normalisations anew, in place, frozen ones included.

    A sum over a part of the channels has another mean and variance than the teacher's, so that inherited statistics
    fit the inherited weights only roughly. Weights, modes and momenta stay as they are.

    Args:
        model: Detector.
        batches: Images (B, C, H, W) as in training, in [0, 1]; 64 in all are enough.

    Raises:
        ValueError: If there is no batch.

    Examples:
        >>> layer = nn.BatchNorm2d(1)
        >>> recalibrate(layer, [torch.full((2, 1, 4, 4), 3.0)])
        >>> layer.running_mean
        tensor([3.])
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError("expected at least one batch of images to measure statistics on, got none")
    modes = {module: module.training for module in model.modules()}
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average over the batches
            norm.training = True
        for images in itertools.chain([first], batches):
            model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters and persistent buffers, without its children's."""
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if "." not in name}


def _score(links: Sequence[Link]) -> None:
    """Note how important the teacher's channels are to each tensor, along the dimensions that are chosen from.

    What counts is the network as it computes: a filter's own size means nothing before a batch normalisation, which
    gives its output the size of its weight. So a normalisation speaks for the channels it puts out, and a convolution
    for those it reads, every filter divided by its output's deviation. Only where none follows, it speaks for both.
    """
    for link, after in itertools.zip_longest(links, links[1:]):
        if link.out is None or "weight" not in _tensors(link.teacher):
            continue
        weight = link.teacher.get_parameter("weight").float().cpu()
        if weight.ndim == 1:
            link.out.add_score(weight.abs())
        elif link.read is not None:
            norm = after.teacher if after is not None and after.out is link.out else None
            if norm is None:
                link.out.add_score(weight.flatten(1).norm(dim=1))
            else:
                weight = weight * _scale(norm).view(-1, *[1] * (weight.ndim - 1))
            link.read.add_score(weight.transpose(0, 1).flatten(1).norm(dim=1))


def _scale(norm: nn.Module) -> Tensor:
    """Return the factor (C,) of a normalisation on each channel; of a group normalisation, as far as it is known."""
    weight = norm.get_parameter("weight").float()
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        weight = weight * (norm.get_buffer("running_var").float() + norm.eps).rsqrt()
    return weight.cpu()


def _copy(link: Link, by: str, rescale: bool) -> list[Tensor]:
    """Copy a layer's tensors; returns those of the student that were written."""
    theirs = _tensors(link.teacher)
    written = []
    for name, mine in _tensors(link.student).items():
        if name in link.skip or name not in theirs:
            continue
        value = theirs[name].detach().to(mine)
        if link.out is not None and value.ndim:
            rows = link.out.index(by).to(value.device)
            if link.read is not None and value.ndim > 1:
                value = _columns(value[rows], link, by, rescale)
            elif len(value) == link.out.teacher:
                value = value[rows]
            else:  # one number a channel, in a shape that broadcasts over a map
                value = value.flatten()[rows].view_as(mine)
            if link.gain is not None and rescale and name in ("weight", "bias"):
                value = value * link.gain.to(value)
        mine.copy_(value)
        written.append(mine)
    return written


def _columns(weight: Tensor, link: Link, by: str, rescale: bool) -> Tensor:
    """Choose the inputs of a convolution's weight (C_out, C_in, ...); the sum where several stand for one."""
    read = link.read
    assert read is not None
    chosen = weight.new_zeros(len(weight), read.student, *weight.shape[2:])
    used = 0
    for student, teacher in read.places(by):
        chosen.index_add_(1, student.to(weight.device), weight[:, teacher.to(weight.device)])
        used += len(teacher)
    return chosen * math.sqrt(read.teacher / used) if rescale else chosen


def _report(student: nn.Module, walk: Walk, taken: set[str], teacher: str) -> InheritReport:
    names = {id(module): name for name, module in student.named_modules()}
    reasons = [(f"{names[id(module)]}.{tensor}", why) for module, tensor, why in walk.left]
    left: dict[str, list[str]] = {}
    state = student.state_dict()
    for name in state:
        if name not in taken:
            why = next((why for prefix, why in reasons if name.startswith(prefix)), "nothing like it in the teacher")
            left.setdefault(why, []).append(name)
    parameters = {name: p.numel() for name, p in student.named_parameters()}
    return InheritReport(
        teacher,
        tensors=len(taken),
        total_tensors=len(state),
        parameters=sum(n for name, n in parameters.items() if name in taken),
        total_parameters=sum(parameters.values()),
        left={why: tuple(tensors) for why, tensors in left.items()},
    )


def _by_layer(names: Sequence[str]) -> str:
    """Summarise tensor names by layer: "12 tensors of model.2.m.0, model.4.m.0"."""
    layers = list(dict.fromkeys(".".join(name.split(".")[:-1][:4]) for name in names))
    shown = ", ".join(layers[:_MOST_NAMES])
    more = f" and {len(layers) - _MOST_NAMES} more" if len(layers) > _MOST_NAMES else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} of {shown}{more}"
