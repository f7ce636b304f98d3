"""The closed form against torchdiffeq's dopri8, over dtypes, layouts, ranges and t_end."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchdiffeq import odeint

from meddet_yolo.nn.nmode import cpu as nmode_cpu
from meddet_yolo.nn.nmode import nmode2
from meddet_yolo.nn.nmode.closed import closed_form, packed_table, plain_table
from meddet_yolo.nn.nmode.graph import exportable, pointwise, series

T_ENDS = (0.25, 1.0, 2.0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def oracle(g: torch.Tensor, t_end: float) -> torch.Tensor:
    """y(t_end) by dopri8 in float64."""
    g = g.double()

    def slope(_, y):
        return -y + torch.sin(y + torch.cos(y + g) ** 2) ** 2

    times = torch.tensor([0.0, t_end], dtype=torch.float64)
    # A step that ends at t_end spares the interpolation inside a step, which dopri8 has to 1e-7 only.
    options = {"step_t": times[1:]}
    return odeint(slope, torch.zeros_like(g), times, rtol=1e-11, atol=1e-13, method="dopri8", options=options)[-1]


def oracle_slope(g: torch.Tensor, t_end: float) -> torch.Tensor:
    g = g.double().requires_grad_()
    (slope,) = torch.autograd.grad(oracle(g, t_end).sum(), g)
    return slope


def half_ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half the distance of neighbouring numbers of ``dtype`` around each value."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(values.abs().clamp(min=info.tiny)))
    return 0.5 * info.eps * 2.0**exponent


def dense(reach: float, count: int = 20011) -> torch.Tensor:
    return torch.linspace(-reach, reach, count, dtype=torch.float64).float()


PATHS = {
    "eager": (lambda g, t_end, order: nmode_cpu.evaluate_on_cpu(g, t_end, order, None), packed_table),
    "pointwise": (pointwise, packed_table),
    "exportable": (exportable, plain_table),
}


@pytest.fixture(params=PATHS)
def path_and_table(request):
    """Each way of evaluating f and f', and the table that states its error."""
    return PATHS[request.param]


@pytest.fixture
def path(path_and_table):
    return path_and_table[0]


@pytest.mark.parametrize("t_end", T_ENDS)
@pytest.mark.parametrize("reach", [math.pi, 50.0, 1e4])
def test_float32_error_stays_below_the_stored_bound(path_and_table, t_end, reach):
    path, table = path_and_table
    if path is exportable and reach > math.pi:
        pytest.skip("exact for a slightly rounded argument, see the test for that")
    g = dense(reach)
    error = (path(g, t_end, 0).double() - oracle(g, t_end)).abs().max()
    assert error <= table(t_end, 0).error + 2e-8  # the oracle's own error, and the range reduction at 1e4
    assert error <= 1e-6


@pytest.mark.parametrize("reach", [math.pi, 1e4])
def test_float32_slope_stays_within_1e_5(path_and_table, reach):
    path, table = path_and_table
    if path is exportable and reach > math.pi:
        pytest.skip("exact for a slightly rounded argument, see the test for that")
    g = dense(reach, 5003)
    error = (path(g, 1.0, 1).double() - oracle_slope(g, 1.0)).abs().max()
    assert error <= table(1.0, 1).error + 1e-7
    assert error <= 1e-5


@pytest.mark.parametrize("reach", [math.pi, 50.0, 1e4])
def test_exported_form_is_exact_for_an_argument_rounded_twice(reach):
    g = dense(reach)
    steepest = closed_form(1.0).maximum(1)
    allowed = plain_table(1.0, 0).error + 1.1 * steepest * g.double().abs() * 1.5 * 2.0**-24  # product and 1 / pi
    error = (exportable(g, 1.0, 0).double() - oracle(g, 1.0)).abs()
    assert (error <= allowed + 2e-8).all()


def test_stored_bounds_keep_the_promise():
    assert packed_table(1.0, 0).error <= 1e-6
    assert plain_table(1.0, 0).error <= 1e-6
    assert packed_table(1.0, 1).error <= 1e-5
    assert plain_table(1.0, 1).error <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t_end", [0.25, 1.0])
def test_every_16_bit_input_is_rounded_correctly(dtype, t_end):
    g = torch.arange(-32768, 32768).to(torch.int16).view(dtype)
    g = g[g.isfinite() & (g.abs() <= 1e4)]
    exact = oracle(g, t_end)
    assert ((nmode2(g, t_end).double() - exact).abs() <= half_ulp(exact, dtype) * (1 + 1e-4) + 1e-30).all()


@settings(max_examples=60, deadline=None)
@given(
    g=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=7),
        elements=st.floats(-1e4, 1e4, width=32),
    ),
    t_end=st.sampled_from(T_ENDS),
    dtype=st.sampled_from((*DTYPES, torch.float64)),
    layout=st.sampled_from(["plain", "transposed", "strided", "channels_last"]),
)
def test_any_shape_dtype_and_layout(g, t_end, dtype, layout):
    g = torch.from_numpy(g).to(dtype)
    if layout == "transposed" and g.dim():
        g = g.permute(*reversed(range(g.dim())))
    elif layout == "strided" and g.dim():
        g = g[..., ::2]
    elif layout == "channels_last" and g.dim() == 4:
        g = g.contiguous(memory_format=torch.channels_last)
    y = nmode2(g, t_end)
    assert y.shape == g.shape and y.dtype == dtype
    if g.numel():
        if layout != "strided":
            assert [y.stride(d) for d in range(g.dim()) if g.shape[d] > 1] == [
                g.stride(d) for d in range(g.dim()) if g.shape[d] > 1
            ]
        tolerance = {torch.float16: 3e-4, torch.bfloat16: 2e-3}.get(dtype, 1e-6)
        assert (y.double() - oracle(g, t_end)).abs().max() <= tolerance


@settings(max_examples=30, deadline=None)
@given(g=st.floats(-1e3, 1e3, width=32), turns=st.integers(-50, 50))
def test_period_is_pi(g, turns):
    g = torch.tensor([g], dtype=torch.float64)
    torch.testing.assert_close(nmode2(g + turns * math.pi), nmode2(g), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("order", [0, 1])
def test_huge_arguments_stay_bounded(path, dtype, order):
    if dtype == torch.float64:
        path = series
    g = torch.logspace(0, math.log10(torch.finfo(dtype).max) - 0.01, 999, dtype=torch.float64).to(dtype)
    y = path(torch.cat((g, -g)), 1.0, order)
    assert y.isfinite().all()
    assert y.abs().max() <= (0.585, 1.46)[order]


def test_float32_is_accurate_on_the_whole_line_in_eager_mode():
    g = torch.logspace(4, 38, 2001, dtype=torch.float64).float()
    reduced = torch.atan2(torch.sin(g.double()), torch.cos(g.double()))
    assert (nmode2(g).double() - oracle(reduced, 1.0)).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_nan_and_infinity_give_nan_and_leave_their_neighbours_alone(path, dtype):
    if dtype == torch.float64:
        path = series
    bad = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    g = torch.cat((bad, torch.linspace(-3, 3, 50, dtype=dtype)))
    y = path(g, 1.0, 0)
    assert y[:3].isnan().all()
    torch.testing.assert_close(y[3:], path(g[3:], 1.0, 0))


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_result_does_not_depend_on_threads_or_pieces(monkeypatch, threads, dtype):
    g = torch.linspace(-20, 20, 1009).to(dtype)
    expected = nmode2(g)
    monkeypatch.setattr(nmode_cpu, "_PIECE", 50)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.testing.assert_close(nmode2(g), expected, rtol=0, atol=1e-7)


def test_result_of_one_call_is_not_the_work_space_of_the_next():
    g = torch.linspace(-3, 3, 501)
    first = nmode2(g)
    kept = first.clone()
    nmode2(g + 1)
    assert torch.equal(first, kept)


def test_threads_do_not_share_their_work_space():
    inputs = [torch.linspace(-3, 3, 200_000) + shift for shift in range(4)]
    expected = [nmode2(g) for g in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for result, wanted in zip(pool.map(nmode2, inputs), expected, strict=True):
                assert torch.equal(result, wanted)


def test_without_fused_multiply_add_the_error_stays_within_the_promise(monkeypatch):
    monkeypatch.setattr(nmode_cpu, "_alpha_is_fused", lambda: False)
    nmode_cpu._walk_constants.cache_clear()
    g = dense(1e4)
    error = (nmode2(g).double() - oracle(g, 1.0)).abs().max()
    nmode_cpu._walk_constants.cache_clear()
    assert error <= 1e-6


def test_series_reproduces_dopri8():
    form = closed_form(1.0)
    g = np.linspace(-5, 5, 1001)
    exact = oracle(torch.from_numpy(g), 1.0).numpy()
    assert np.abs(form(g) - exact).max() <= form.error + 1e-10


@pytest.mark.parametrize("t_end", [0.0, -1.0, math.inf, math.nan])
def test_impossible_t_end_is_refused(t_end):
    with pytest.raises(ValueError, match="positive finite"):
        nmode2(torch.zeros(3), t_end)


def test_too_long_t_end_names_the_remedy():
    with pytest.raises(ValueError, match="dopri5"):
        nmode2(torch.zeros(3), 9.0)
