"""nmODE² as function, activation and block: gradients, solvers, state, errors."""

import copy
import io
import math
import pickle

import pytest
import torch
from torchdiffeq import odeint_adjoint

from meddet_yolo.nn.nmode.layers import SOLVERS, NmODE2, NmODE2Activation, integrate_nmode2, nmode2

# Largest errors against the closed form at t_end = 1 that the solvers' orders allow with 8 steps.
SOLVER_ERRORS = {"euler": 3e-2, "midpoint": 1e-3, "rk4": 2e-6, "dopri5": 1e-3, "dopri8": 1e-3}


@pytest.fixture
def g() -> torch.Tensor:
    return torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("t_end", [0.5, 1.0])
def test_gradcheck_and_gradgradcheck(g, t_end):
    g = g.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda g: nmode2(g, t_end), (g,))
    assert torch.autograd.gradgradcheck(lambda g: nmode2(g, t_end), (g,))


def test_gradient_agrees_with_the_adjoint_ode(g):
    class Slope(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.g = torch.nn.Parameter(g.double())

        def forward(self, t, y):
            return -y + torch.sin(y + torch.cos(y + self.g) ** 2) ** 2

    slope = Slope()
    weight = torch.randn_like(g)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y = odeint_adjoint(slope, torch.zeros_like(slope.g), times, rtol=1e-10, atol=1e-12, method="dopri8")[-1]
    (y * weight).sum().backward()
    g.requires_grad_()
    (nmode2(g) * weight).sum().backward()
    assert (g.grad - slope.g.grad).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradient_dtype_and_value(g, dtype):
    low = g.to(dtype).requires_grad_()
    nmode2(low).backward(torch.full_like(low, 2.0))
    exact = low.detach().double().requires_grad_()
    nmode2(exact).backward(torch.full_like(exact, 2.0))
    assert low.grad.dtype == dtype
    torch.testing.assert_close(low.grad.double(), exact.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_second_derivative_in_float32(g):
    g.requires_grad_()
    (first,) = torch.autograd.grad(nmode2(g).sum(), g, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), g)
    exact = g.detach().double().requires_grad_()
    (first,) = torch.autograd.grad(nmode2(exact).sum(), exact, create_graph=True)
    (expected,) = torch.autograd.grad(first.sum(), exact)
    torch.testing.assert_close(second.double(), expected, rtol=0, atol=1e-4)


def test_gradient_of_another_layout(g):
    wide = g.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(g.shape)
    nmode2(wide).backward(weight)
    plain = g.clone().requires_grad_()
    nmode2(plain).backward(weight)
    torch.testing.assert_close(wide.grad, plain.grad)


def test_only_the_input_is_saved(g):
    saved = []
    g.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        nmode2(g)
    assert len(saved) == 1 and saved[0].data_ptr() == g.data_ptr()


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_agree(g, solver):
    y = NmODE2Activation(solver=solver)(g)
    assert (y - nmode2(g)).abs().max() <= SOLVER_ERRORS.get(solver, 0.0)


# torchdiffeq steps past t_end and interpolates back; with the long steps of dopri8 that limits its accuracy.
@pytest.mark.parametrize(("solver", "error"), [("dopri5", 1e-9), ("dopri8", 1e-6)])
def test_tight_tolerances_converge_to_the_closed_form(g, solver, error):
    g = g.double()
    y = integrate_nmode2(g, solver=solver, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(y, nmode2(g), rtol=0, atol=error)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_fixed_step_solvers_have_their_order(g, solver, order):
    g = g.double()
    errors = [(integrate_nmode2(g, solver=solver, steps=n) - nmode2(g)).abs().max() for n in (8, 16)]
    assert math.log2(errors[0] / errors[1]) > order - 0.4


@pytest.mark.parametrize("adjoint", [False, True])
def test_gradients_of_adaptive_solvers(g, adjoint):
    g = g.double().requires_grad_()
    (expected,) = torch.autograd.grad(nmode2(g).sum(), g)
    y = integrate_nmode2(g, solver="dopri5", rtol=1e-9, atol=1e-10, adjoint=adjoint)
    (slope,) = torch.autograd.grad(y.sum(), g)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_learned_t_end_receives_its_gradient(g, solver):
    g = g.double()
    t_end = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y = integrate_nmode2(g, t_end, solver=solver, steps=64, rtol=1e-9, atol=1e-10)
    (slope,) = torch.autograd.grad(y.sum(), t_end)
    expected = (-y + torch.sin(y + torch.cos(y + g) ** 2) ** 2).sum()  # dy/dt at t_end
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-6)


def test_initial_state_is_where_the_integration_starts(g):
    halfway = integrate_nmode2(g.double(), 0.5, solver="rk4", steps=64)
    y = integrate_nmode2(g.double(), 0.5, solver="rk4", steps=64, y0=halfway)
    torch.testing.assert_close(y, nmode2(g.double()), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_in_is_dtype_out(g, solver, dtype):
    y = NmODE2Activation(solver=solver, steps=2)(g.to(dtype))
    assert y.dtype == dtype and y.isfinite().all()


@pytest.mark.parametrize("norm", [True, False])
def test_block_keeps_shape_and_trains(norm):
    block = NmODE2(6, norm=norm)
    x = torch.randn(2, 6, 7, 5)
    block(x).sum().backward()
    assert block(x).shape == x.shape
    assert all(p.grad is not None for p in block.parameters())
    assert (block.conv.bias is None) == norm


def test_block_keeps_channels_last():
    x = torch.randn(2, 6, 7, 5).contiguous(memory_format=torch.channels_last)
    block = NmODE2(6).to(memory_format=torch.channels_last)
    assert block(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("norm", [True, False])
def test_fuse_keeps_the_result(norm):
    block = NmODE2(6, norm=norm)
    x = torch.randn(2, 6, 7, 5)
    block(x)  # running statistics move
    block.eval()
    expected = block(x)
    assert block.fuse() is block
    block.fuse()  # twice is harmless
    assert not isinstance(block.bn, torch.nn.BatchNorm2d)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-5)


def test_autocast():
    block = NmODE2(6)
    x = torch.randn(2, 6, 7, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x)
        y.float().sum().backward()
    assert y.isfinite().all() and block.conv.weight.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nmode2(x).dtype == torch.float32
        torch.testing.assert_close(nmode2(x), nmode2(x.clone()))


def test_inference_mode_first_then_training():
    nmode_t_end = 0.875  # a t_end that no other test has built tables for
    with torch.inference_mode():
        nmode2(torch.zeros(3), nmode_t_end)
    g = torch.ones(3, requires_grad=True)
    nmode2(g, nmode_t_end).sum().backward()
    assert g.grad.isfinite().all()


def test_modules_copy_pickle_and_load_safely(g):
    block = NmODE2(3).eval()
    expected = block(g)  # tables exist now
    copies = [copy.deepcopy(block), pickle.loads(pickle.dumps(block))]
    buffer = io.BytesIO()
    torch.save(block, buffer)
    assert buffer.tell() < 10_000  # no tables inside
    buffer.seek(0)
    plain = (torch.nn.Conv2d, torch.nn.BatchNorm2d)
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([NmODE2, NmODE2Activation, *plain])
    copies.append(torch.load(buffer, weights_only=True))
    torch.serialization.clear_safe_globals()  # a context manager would forget ours for all tests after this one
    torch.serialization.add_safe_globals(allowed)
    for twin in copies:
        torch.testing.assert_close(twin(g), expected)
    assert list(block.state_dict()) == [
        "conv.weight",
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    ]


def test_what_was_pickled_with_its_interval_as_a_number_loads():
    state = dict(NmODE2Activation().__dict__)
    del state["_t_end"]
    act = NmODE2Activation.__new__(NmODE2Activation)
    act.__setstate__({**state, "t_end": 0.5})
    assert act.t_end == 0.5 and "t_end" not in vars(act)


def test_empty_and_zero_dimensional_inputs():
    assert nmode2(torch.zeros(0, 3)).shape == (0, 3)
    assert nmode2(torch.tensor(0.0)).item() == pytest.approx(0.553136, abs=1e-6)


def test_representation_names_the_options():
    assert repr(NmODE2Activation()) == "NmODE2Activation(t_end=1, solver=closed)"
    assert "steps=4" in repr(NmODE2Activation(solver="rk4", steps=4))
    assert "rtol=0.001" in repr(NmODE2Activation(solver="dopri5", rtol=1e-3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nmode2(torch.zeros(2, dtype=torch.int64)), TypeError, "floating-point.*int64"),
        (lambda: nmode2([0.0]), TypeError, "floating-point.*list"),
        (lambda: nmode2(torch.zeros(2), torch.tensor(1.0)), TypeError, "integrate_nmode2"),
        (lambda: NmODE2Activation(solver="dopri6"), ValueError, "dopri6.*did you mean 'dopri"),
        (lambda: NmODE2Activation(steps=0), ValueError, "steps.*got 0"),
        (lambda: NmODE2Activation(t_end=-1), ValueError, "t_end.*got -1"),
        (lambda: NmODE2(0), ValueError, "channels.*got 0"),
        (lambda: integrate_nmode2(torch.zeros(2), solver="closed"), ValueError, "numerical solver"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_forward_derivative_is_refused_not_lost():
    forward_ad = torch.autograd.forward_ad
    g = torch.linspace(-1, 1, 5)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(g, torch.ones_like(g))
        with pytest.raises(NotImplementedError, match="jvp"):
            nmode2(dual)


@pytest.mark.parametrize("grad", [True, False])
def test_what_needs_no_gradient_leaves_no_record(grad):
    g = torch.linspace(-1, 1, 5)
    with torch.set_grad_enabled(grad):
        assert nmode2(g).grad_fn is None
        assert (nmode2(g.clone().requires_grad_()).grad_fn is not None) == grad
