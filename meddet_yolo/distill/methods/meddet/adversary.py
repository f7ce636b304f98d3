"""AATM, the adversarial auxiliary teacher module: generators on the student's pyramid against small discriminators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddet_yolo.distill.standardise import full_precision, standardise


def generator(channels: int) -> nn.Sequential:
    """Build one level's generator: 3x3 convolution, ReLU, 3x3 convolution at the student's width.

    MGD's generation block (Yang et al., ECCV 2022) made cheap, our own decision: each 3x3 convolution is split into a
    depthwise and a 1x1 convolution, and the first has stride 2, since only means over regions of the result are judged.
    A thirtieth of the arithmetic at the widths of a small detector.

    Args:
        channels: Channels C of the student's map.

    Returns:
        Module that maps (B, C, H, W) to (B, C, ceil(H / 2), ceil(W / 2)).
    """
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),  # its result is standardised: a bias would be lost
    )


def discriminator(channels: int) -> nn.Sequential:
    """Build one level's discriminator: C -> C/2 -> C/4 -> one logit, as in MEAL (Shen et al., AAAI 2019).

    Args:
        channels: Channels C of the student's map.

    Returns:
        Module that maps (N, C) to (N, 1).
    """
    half, quarter = max(channels // 2, 1), max(channels // 4, 1)
    return nn.Sequential(
        nn.Linear(channels, half),
        nn.LeakyReLU(0.2),
        nn.Linear(half, quarter),
        nn.LeakyReLU(0.2),
        nn.Linear(quarter, 1),
    )


def _cross_entropy(logits: Tensor) -> Tensor:
    """Return the discriminators' binary cross-entropy on logits (2 N, 1) of which the first N are of generated maps."""
    fake, real = logits.chunk(2)
    return (F.softplus(fake).mean() + F.softplus(-real).mean()) / 2


class AdversarialAuxiliaryTeacher(nn.Module):
    """Generators that turn the student's maps into fused-teacher maps, and discriminators that tell the two apart.

    Both sides are standardised per channel over the batch and all positions before they are pooled, so that neither
    scale nor offset can give a side away: the discriminator sees how the channels vary together from image to image.
    Real is the fused teacher feature. The discriminators belong to an optimizer of their own, see
    `discriminator_parameters`; `generator_loss` gives them no gradient.

    Attributes:
        accuracy: Accuracy of the discriminators in the last `generator_loss`, a scalar in [0, 1]; 0.5 is a draw.
        loss: Their binary cross-entropy there, which `discriminator_loss` would return, without gradient: a measure for
            every batch, also for those after which no optimizer steps.

    Args:
        channels: Channels of the student's map at every level.
        grid: The maps are averaged over grid x grid cells, each of which is judged: 1 judges whole images (the paper's
            form as far as it can be read), larger values judge regions.

    Examples:
        >>> aatm = AdversarialAuxiliaryTeacher([8, 16])
        >>> student = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
        >>> fused = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
        >>> aatm.generator_loss(student, fused).shape
        torch.Size([])
        >>> aatm.discriminator_loss().shape
        torch.Size([])
    """

    def __init__(self, channels: Sequence[int], grid: int = 1) -> None:
        """Build one generator and one discriminator a level."""
        super().__init__()
        self.grid = grid
        self.generators = nn.ModuleList(generator(c) for c in channels)
        self.discriminators = nn.ModuleList(discriminator(c) for c in channels)
        self.accuracy: Tensor | None = None
        self.loss: Tensor | None = None
        self._seen: tuple[list[Tensor], list[Tensor]] | None = None

    def discriminator_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters of the discriminators' own optimizer."""
        return self.discriminators.parameters()

    def generator_loss(
        self, student_feats: Sequence[Tensor], fused_feats: Sequence[Tensor], *, standardised: bool = False
    ) -> Tensor:
        """Return how badly the generated maps pass for real ones, and keep both for the discriminators' step.

        Args:
            student_feats: The student's maps, (B, C_l, H_l, W_l) for each level.
            fused_feats: The fused teacher maps of the same shapes; their gradient is stopped.
            standardised: `fused_feats` are standardised already.

        Returns:
            Non-saturating loss, the mean over levels of -log D(G(student)); log 2 = 0.69 when the discriminators are
            undecided. Its gradient reaches the generators and the student.
        """
        made = [standardise(module(x)) for module, x in zip(self.generators, student_feats, strict=True)]
        fake = [self.pool(x, self._cells(x)) for x in made]
        with torch.no_grad():
            real = [
                self.pool(x if standardised else standardise(x), self._cells(m))
                for x, m in zip(fused_feats, made, strict=True)
            ]
        losses, correct, opposed = [], [], []
        with torch.autocast(fake[0].device.type, enabled=False):
            for module, f, r in zip(self.discriminators, fake, real, strict=True):
                frozen = {name: p.detach() for name, p in module.named_parameters()}
                logits = torch.func.functional_call(module, frozen, torch.cat([f, r]))
                opposed.append(_cross_entropy(logits.detach()))
                logits_fake, logits_real = logits.chunk(2)
                losses.append(F.softplus(-logits_fake).mean())
                correct.append(((logits_fake < 0).float().mean() + (logits_real > 0).float().mean()) / 2)
        self._seen = [x.detach() for x in fake], real
        self.accuracy, self.loss = torch.stack(correct).mean(), torch.stack(opposed).mean()
        return torch.stack(losses).mean()

    def discriminator_loss(self) -> Tensor:
        """Return the binary cross-entropy of the discriminators on what the last `generator_loss` saw, and forget it.

        Computed in float32 and outside autocast.

        Returns:
            Mean over levels and both sides; log 2 = 0.69 when undecided. Its gradient reaches the discriminators only.

        Raises:
            RuntimeError: There was no `generator_loss` since the last call.
        """
        if self._seen is None:
            raise RuntimeError(
                "discriminator_loss() needs what generator_loss() saw, and there was no such call since the last time. "
                "Call it once after every forward pass."
            )
        fake, real = self._seen
        self._seen = None
        losses = []
        with torch.autocast(fake[0].device.type, enabled=False):
            for module, f, r in zip(self.discriminators, fake, real, strict=True):
                losses.append(_cross_entropy(module(torch.cat([f, r]))))
        return torch.stack(losses).mean()

    def _cells(self, x: Tensor) -> tuple[int, int]:
        """Return how many cells a map is averaged to: the grid's, or fewer where the map is smaller."""
        return min(self.grid, x.shape[2]), min(self.grid, x.shape[3])

    @staticmethod
    def pool(x: Tensor, cells: tuple[int, int]) -> Tensor:
        """Average a map over a grid of cells: (B, C, H, W) to (B * rows * columns, C), float32."""
        x = full_precision(x)
        if cells == (1, 1):
            return x.mean(dim=(2, 3))
        return F.adaptive_avg_pool2d(x, cells).flatten(2).movedim(1, 2).flatten(0, 1)
