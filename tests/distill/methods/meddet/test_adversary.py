"""AATM: who gets which gradient, and a game that can be won fairly only."""

from __future__ import annotations

import math

import pytest
import torch

from meddet_yolo.distill.methods.meddet.adversary import AdversarialAuxiliaryTeacher

CHANNELS = [8, 12]


def loss_on(aatm: AdversarialAuxiliaryTeacher, student: list[torch.Tensor], fused: list[torch.Tensor]) -> torch.Tensor:
    """The discriminators' loss on these maps."""
    with torch.no_grad():
        aatm.generator_loss(student, fused)
    return aatm.discriminator_loss()


def pyramid(batch: int = 4, seed: int = 0, scale: float = 1.0, size: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [size, max(size // 2, 1)]
    return [torch.randn(batch, c, s, s, generator=generator) * scale for c, s in zip(CHANNELS, sizes, strict=True)]


def train_discriminator(aatm, draw_student, draw_fused, steps=150):
    optimizer = torch.optim.Adam(aatm.discriminator_parameters(), lr=5e-3)
    for step in range(steps):
        loss = loss_on(aatm, draw_student(step), draw_fused(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = []
    with torch.no_grad():
        for step in range(steps, steps + 20):
            aatm.generator_loss(draw_student(step), draw_fused(step))
            accuracy.append(aatm.accuracy)
    return torch.stack(accuracy).mean().item()


class Identity(torch.nn.Module):
    def forward(self, x):
        return x


def test_generator_loss_reaches_student_and_generators_only():
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    student = [x.requires_grad_() for x in pyramid()]
    fused = [x.requires_grad_() for x in pyramid(seed=1)]
    aatm.generator_loss(student, fused).backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in student)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aatm.generators.parameters())
    assert all(p.grad is None for p in aatm.discriminator_parameters())
    assert all(x.grad is None for x in fused)


def test_discriminator_loss_reaches_discriminators_only():
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    student = [x.requires_grad_() for x in pyramid()]
    aatm.generator_loss(student, pyramid(seed=1))
    aatm.discriminator_loss().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aatm.discriminator_parameters())
    assert all(p.grad is None for p in aatm.generators.parameters())
    assert all(x.grad is None for x in student)


def test_generator_and_discriminator_parameters_are_all_there_are():
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    parts = [*aatm.generators.parameters(), *aatm.discriminator_parameters()]
    assert len({id(p) for p in parts}) == len(parts) == len(list(aatm.parameters()))


def test_losses_are_binary_cross_entropies():
    torch.manual_seed(0)
    aatm = AdversarialAuxiliaryTeacher(CHANNELS[:1])
    student, fused = pyramid()[:1], pyramid(seed=1)[:1]
    generator_loss = aatm.generator_loss(student, fused)
    measured = aatm.loss
    assert measured is not None and not measured.requires_grad
    assert measured.item() == aatm.discriminator_loss().item()
    generator_loss = aatm.generator_loss(student, fused)
    fake, real = aatm._seen
    logits_fake, logits_real = aatm.discriminators[0](fake[0]), aatm.discriminators[0](real[0])
    bce = torch.nn.BCEWithLogitsLoss()
    torch.testing.assert_close(generator_loss, bce(logits_fake, torch.ones_like(logits_fake)))
    both = torch.cat([logits_fake, logits_real])
    labels = torch.cat([torch.zeros_like(logits_fake), torch.ones_like(logits_real)])
    torch.testing.assert_close(aatm.discriminator_loss(), bce(both, labels))


def test_discriminator_tells_two_distributions_apart():
    torch.manual_seed(0)
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)

    def together(step):  # all channels rise and fall together from image to image: equal statistics, other structure
        level = torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(9000 + step))
        return [x + 2 * level for x in pyramid(8, seed=step)]

    assert train_discriminator(aatm, lambda s: pyramid(8, seed=500 + s), together) > 0.9


def test_discriminator_is_undecided_on_equal_distributions():
    torch.manual_seed(0)
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    aatm.generators = torch.nn.ModuleList([Identity(), Identity()])
    accuracy = train_discriminator(aatm, lambda s: pyramid(8, seed=s), lambda s: pyramid(8, seed=5000 + s))
    assert abs(accuracy - 0.5) < 0.1


def test_scale_and_offset_alone_do_not_give_a_side_away():
    torch.manual_seed(0)
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    aatm.generators = torch.nn.ModuleList([Identity(), Identity()])
    shifted = lambda s: [x * 30 + 7 for x in pyramid(8, seed=5000 + s)]  # noqa: E731
    assert abs(train_discriminator(aatm, lambda s: pyramid(8, seed=s), shifted) - 0.5) < 0.1


def test_generator_learns_to_fool():
    torch.manual_seed(0)
    aatm = AdversarialAuxiliaryTeacher(CHANNELS[:1])
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(3))
    images = torch.randn(40, 8, 8, 1, 1, generator=torch.Generator().manual_seed(4))
    draw = lambda s: [images[s % 40] + 0.3 * pyramid(8, seed=s)[0]]  # noqa: E731
    fused = lambda s: [torch.einsum("dc,bchw->bdhw", mixing, draw(s + 7)[0]).relu()]  # noqa: E731
    before = train_discriminator(aatm, draw, fused)
    assert before > 0.8
    main = torch.optim.Adam(aatm.generators.parameters(), lr=3e-3)
    other = torch.optim.Adam(aatm.discriminator_parameters(), lr=1e-3)
    accuracy = []
    for step in range(400):
        loss = aatm.generator_loss(draw(step), fused(step))
        main.zero_grad()
        loss.backward()
        main.step()
        accuracy.append(aatm.accuracy.item())
        loss = aatm.discriminator_loss()
        other.zero_grad()
        loss.backward()
        other.step()
    assert sum(accuracy[-50:]) / 50 < before - 0.1


def test_what_was_seen_is_used_once():
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    with pytest.raises(RuntimeError, match="Call it once after every forward pass"):
        aatm.discriminator_loss()
    aatm.generator_loss(pyramid(), pyramid(seed=1))
    aatm.discriminator_loss()
    with pytest.raises(RuntimeError):
        aatm.discriminator_loss()


def test_fresh_discriminators_start_near_log_2():
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    assert loss_on(aatm, pyramid(), pyramid(seed=1)).item() == pytest.approx(math.log(2), abs=0.15)


@pytest.mark.parametrize("grid", [1, 2, 7])
@pytest.mark.parametrize(("batch", "size"), [(1, 8), (3, 1), (2, 5)])
def test_grids_batches_and_sizes(grid, batch, size):
    aatm = AdversarialAuxiliaryTeacher(CHANNELS, grid=grid)
    loss = aatm.generator_loss(pyramid(batch, size=size), pyramid(batch, seed=1, size=size))
    assert loss.isfinite()
    assert [len(f) for f in aatm._seen[0]] == [len(r) for r in aatm._seen[1]]
    assert aatm.discriminator_loss().isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_game_is_played_in_float32(dtype):
    aatm = AdversarialAuxiliaryTeacher(CHANNELS)
    with torch.autocast("cpu", dtype=dtype):
        loss = aatm.generator_loss([x.to(dtype) for x in pyramid(scale=50)], [x.to(dtype) for x in pyramid(seed=1)])
        assert all(x.dtype == torch.float32 for side in aatm._seen for x in side)
        disc_loss = aatm.discriminator_loss()
    assert loss.dtype == disc_loss.dtype == torch.float32
    assert loss.isfinite() and disc_loss.isfinite()
