"""The reconstruction guard: a fused feature from which every teacher can be read back cannot collapse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEAD = 1e-3
"""Mean variance of a standardised map, below which it counts as dead: at most one channel of a thousand is alive."""


def unexplained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error over the target's variance, that is 1 minus R².

    Args:
        prediction: Any shape, float32.
        target: The same shape, float32, of zero mean along each channel.

    Returns:
        Scalar: 0 is a perfect prediction, 1 is no better than the mean. A target of a variance below `DEAD` leaves
        nothing to explain: 0, without a gradient.

    Examples:
        >>> unexplained_variance(torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0])).item()
        1.0
        >>> unexplained_variance(torch.ones(4), torch.zeros(4)).item()
        0.0
    """
    variance = torch.linalg.vector_norm(target).square() / target.numel()
    return F.mse_loss(prediction, target) / variance.clamp_min(DEAD) * (variance >= DEAD)


@torch.no_grad()
def linear_explained_variance(source: Tensor, target: Tensor, ridge: float = 1e-3) -> Tensor:
    """Return the share of the target's variance that a linear map of the source explains on cells it was not fitted to.

    A ridge regression on every other cell, judged on the cells between. It stands in for the decoders' explained
    variance where a guard has no decoders.

    Args:
        source: Standardised map of shape (B, C, H, W).
        target: Standardised map of shape (B, D, H, W).
        ridge: Penalty for each cell, against the unit variance of the source.

    Returns:
        Scalar: 1 is a perfect prediction, 0 no better than the mean; negative values mean too few cells for the fit.

    Examples:
        >>> x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> round(linear_explained_variance(x, x[:, :2]).item(), 2)
        1.0
    """
    x, y = (m.movedim(1, -1).reshape(-1, m.shape[1]).float() for m in (source, target))
    if len(x) < 2:
        return x.new_zeros(())
    with torch.autocast(x.device.type, enabled=False):
        fit, judge = x[::2], x[1::2]
        gram = fit.T @ fit + ridge * len(fit) * torch.eye(x.shape[1], device=x.device)
        factor, _ = torch.linalg.cholesky_ex(gram)
        prediction = judge @ torch.cholesky_solve(fit.T @ y[::2], factor)
        return 1 - unexplained_variance(prediction, y[1::2])


class ReconstructionGuard(nn.Module):
    """Rebuild every teacher's standardised map from the fused one with a 1x1 convolution each.

    Our own decision against the collapse that the paper leaves open. Trained by this loss, alignment and fusion keep as
    much of all teachers as the student's width can hold: with linear alignment the optimum is a principal component
    analysis of the concatenated teachers.

    Args:
        channels: Channels of the fused map.
        teacher_channels: Channels of every teacher's map at this level.

    Examples:
        >>> guard = ReconstructionGuard(8, [16, 32])
        >>> loss, explained = guard(torch.randn(2, 8, 4, 4), [torch.randn(2, 16, 4, 4), torch.randn(2, 32, 4, 4)])
        >>> loss.shape, explained.shape
        (torch.Size([]), torch.Size([2]))
    """

    def __init__(self, channels: int, teacher_channels: Sequence[int]) -> None:
        """Build the decoders. No biases: both sides have zero mean."""
        super().__init__()
        self.decoders = nn.ModuleList(nn.Conv2d(channels, c, 1, bias=False) for c in teacher_channels)

    def forward(self, fused: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute the loss and its measure.

        Args:
            fused: Standardised fused map of shape (B, channels, H, W).
            targets: Standardised maps of the teachers, each of shape (B, C_t, H, W) and without gradient.

        Returns:
            The loss, the teachers' mean share of variance that is not explained, and the explained variance of every
            teacher, shape (num_teachers,), detached.
        """
        missing = torch.stack(
            [
                unexplained_variance(decoder(fused).float(), target)
                for decoder, target in zip(self.decoders, targets, strict=True)
            ]
        )
        return missing.mean(), 1 - missing.detach()
