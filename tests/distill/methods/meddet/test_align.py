"""AFA: shapes, the pooling, and the gradient."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.methods.meddet.align import AdaptiveFeatureAlignment

SIDE = st.integers(1, 12)


@settings(max_examples=40, deadline=None)
@given(c_in=st.integers(1, 9), c_out=st.integers(1, 9), given_size=st.tuples(SIDE, SIDE), size=st.tuples(SIDE, SIDE))
def test_any_size_to_any_size(c_in, c_out, given_size, size):
    align = AdaptiveFeatureAlignment(c_in, c_out)
    assert align(torch.randn(2, c_in, *given_size), size).shape == (2, c_out, *size)


def test_max_over_windows_after_the_convolution():
    align = AdaptiveFeatureAlignment(3, 2)
    x = torch.randn(1, 3, 8, 6)
    dense = torch.einsum("oc,bchw->bohw", align.conv.weight[:, :, 0, 0], x) + align.conv.bias.view(1, -1, 1, 1)
    expected = torch.stack(
        [
            torch.stack([dense[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((2, 3)) for j in range(3)], -1)
            for i in range(4)
        ],
        dim=-2,
    )
    torch.testing.assert_close(align(x, (4, 3)), expected)


def test_equal_sizes_are_only_convolved():
    align = AdaptiveFeatureAlignment(3, 2)
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(align(x, (5, 5)), align.conv(x))


def test_smaller_map_is_repeated():
    align = AdaptiveFeatureAlignment(2, 2)
    x = torch.randn(1, 2, 2, 2)
    expected = align.conv(x).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(align(x, (4, 4)), expected)


def test_starts_orthogonal():
    weight = AdaptiveFeatureAlignment(16, 4).conv.weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=1e-5, rtol=0)
