"""The method as a whole: who learns from what, what the losses depend on, and the collapse that the guard prevents."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill import DetectorOutput, DistillConfig, MedDetDistiller, match_levels

STUDENT = [6, 8]
TEACHERS = [[8, 12], [12, 12]]
FUSIONS = ["lwff", "sum", "concat"]
GUARDS = ["reconstruction", "detection", "none"]


def pyramid(channels: list[int], batch: int = 2, size: int = 16, seed: int = 0, grad: bool = False) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)
    sizes = [max(size // 2**level, 1) for level in range(len(channels))]
    feats = [torch.randn(batch, c, s, s, generator=generator) for c, s in zip(channels, sizes, strict=True)]
    return DetectorOutput([x.requires_grad_(grad) for x in feats])


def build(teachers=TEACHERS, student=STUDENT, **options) -> MedDetDistiller:
    torch.manual_seed(0)
    return MedDetDistiller(student, teachers, DistillConfig(**options))


def inputs(grad: bool = True, **kwargs):
    return pyramid(STUDENT, grad=grad, **kwargs), [pyramid(c, seed=9 + i, **kwargs) for i, c in enumerate(TEACHERS)]


def head_loss(maps: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([x.sin().mean() for x in maps]).mean()


def student_gradient(student: DetectorOutput, loss: torch.Tensor) -> torch.Tensor:
    grads = torch.autograd.grad(loss, student.feats, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(x) if g is None else g).flatten() for g, x in zip(grads, student.feats, strict=True)]
    )


# Shapes ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_number_of_teachers_levels_channels_and_sizes(data):
    levels = data.draw(st.sampled_from([1, 2, 3, 5]))
    channels = st.lists(st.integers(2, 9), min_size=levels, max_size=levels)
    student_channels = data.draw(channels)
    teacher_channels = data.draw(st.lists(channels, min_size=1, max_size=3))
    sizes = [data.draw(st.sampled_from([8, 16, 24])) for _ in teacher_channels]
    batch = data.draw(st.integers(1, 3))
    distiller = build(
        teacher_channels,
        student_channels,
        fusion=data.draw(st.sampled_from(FUSIONS)),
        guard=data.draw(st.sampled_from(GUARDS)),
    )
    student = pyramid(student_channels, batch, grad=True)
    teachers = [pyramid(c, batch, size) for c, size in zip(teacher_channels, sizes, strict=True)]
    losses = distiller(student, teachers, detection_loss=head_loss)
    assert set(losses) == {"dist", "adv", "guard"}
    assert all(value.shape == () and value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student.feats)
    metrics = distiller.metrics()
    shares = [[metrics[f"w_p{p}_t{t}"] for t in range(len(sizes))] for p in range(levels)]
    assert all(sum(level).item() == pytest.approx(1, abs=1e-5) for level in shares)
    assert {f"ev_t{t}" for t in range(len(sizes))} | {"fused_ev", "fused_var", "disc_acc"} <= set(metrics)
    assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in metrics.values())


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", GUARDS)
def test_each_term_reaches_the_student_or_not(guard):
    distiller = build(guard=guard)
    student, teachers = inputs()
    losses = distiller(student, teachers, detection_loss=head_loss)
    assert losses["dist"].requires_grad and losses["adv"].requires_grad
    dist, adv = student_gradient(student, losses["dist"]), student_gradient(student, losses["adv"])
    assert dist.abs().sum() > 0 and adv.abs().sum() > 0
    assert not torch.allclose(dist, adv)
    if guard != "none":
        assert student_gradient(student, losses["guard"]).abs().sum() == 0


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_students_gradient_changes_with_each_teacher(fusion, index):
    distiller = build(fusion=fusion)
    student, teachers = inputs()
    gradients = []
    for seed in (50, 60):
        teachers[index] = pyramid(TEACHERS[index], seed=seed)
        gradients.append(student_gradient(student, distiller(student, teachers)["dist"]))
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("guard", GUARDS)
def test_teachers_get_no_gradient(guard):
    distiller = build(guard=guard)
    student, teachers = inputs()
    for teacher in teachers:
        teacher.feats = [x.requires_grad_() for x in teacher.feats]
    sum(distiller(student, teachers, detection_loss=head_loss).values()).backward()
    assert all(x.grad is None for teacher in teachers for x in teacher.feats)


@pytest.mark.parametrize(("guard", "learns"), [("reconstruction", False), ("detection", False), ("none", True)])
def test_the_fused_target_learns_from_the_student_only_without_a_guard(guard, learns):
    distiller = build(guard=guard)
    student, teachers = inputs()
    distiller(student, teachers, detection_loss=head_loss)["dist"].backward()
    parts = [*distiller.align.parameters(), *distiller.fusion.parameters()]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parts) is learns


@pytest.mark.parametrize("guard", ["reconstruction", "detection"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_alignment_and_fusion_learn_from_the_guard(guard, fusion):
    distiller = build(guard=guard, fusion=fusion)
    student, teachers = inputs()
    distiller(student, teachers, detection_loss=head_loss)["guard"].backward()
    for name, parameter in [*distiller.align.named_parameters(), *distiller.fusion.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("bias"), name


@pytest.mark.parametrize("adv_weight", [0, 1])
@pytest.mark.parametrize(("guard", "dist_weight"), [*((guard, 1) for guard in GUARDS), *((g, 0) for g in GUARDS[:2])])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_that_is_built_is_used(fusion, guard, dist_weight, adv_weight):
    distiller = build(fusion=fusion, guard=guard, dist_weight=dist_weight, adv_weight=adv_weight)
    student, teachers = inputs()
    total = sum(distiller(student, teachers, detection_loss=head_loss).values())
    total.backward()
    assert [n for n, p in distiller.named_parameters() if p.grad is None and "discriminators" not in n] == []
    assert all(p.grad is None for p in distiller.discriminator_parameters())
    if distiller.adversary is not None:
        distiller.discriminator_loss().backward()
        assert all(p.grad is not None for p in distiller.discriminator_parameters())


def test_parameters_are_split_between_the_two_optimizers():
    distiller = build()
    main, discriminator = list(distiller.main_parameters()), list(distiller.discriminator_parameters())
    assert main and discriminator
    assert {id(p) for p in main}.isdisjoint(id(p) for p in discriminator)
    assert len(main) + len(discriminator) == len(list(distiller.parameters()))
    assert list(build(adv_weight=0).discriminator_parameters()) == []


def test_terms_switched_off_build_nothing_and_are_zero():
    distiller = build(dist_weight=0, adv_weight=0)
    names = " ".join(distiller.state_dict())
    assert "adversary" not in names and "student_align" not in names
    losses = distiller(*inputs())
    assert losses["dist"].item() == losses["adv"].item() == 0
    with pytest.raises(RuntimeError, match="adv_weight is 0"):
        distiller.discriminator_loss()


# Values ---------------------------------------------------------------------------------------------------------------


def correlation_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """2 (1 - r), mean over channels, by torch's own correlation coefficients."""
    pairs = zip(x.movedim(1, 0).flatten(1), y.movedim(1, 0).flatten(1), strict=True)
    return sum(2 - 2 * torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in pairs) / x.shape[1]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_l_dist_is_the_squared_error_of_standardised_maps(fusion):
    distiller = build(fusion=fusion)
    student, teachers = inputs(grad=False)
    expected = []
    for level, x in enumerate(student.feats):
        maps = [teacher.feats[level] for teacher in teachers]
        maps = [(m - m.mean((0, 2, 3), keepdim=True)) / m.std((0, 2, 3), keepdim=True, correction=0) for m in maps]
        aligned = [align(m, tuple(x.shape[-2:])) for align, m in zip(distiller.align[level], maps, strict=True)]
        fused = distiller.fusion[level](aligned)
        expected.append(correlation_distance(distiller.student_align[level](x).detach(), fused.detach()))
    assert distiller(student, teachers)["dist"].item() == pytest.approx(sum(expected) / len(expected), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_dead_channels_are_not_unrelated(share):
    distiller = build([[6, 8]], guard="detection", foreground_weight=share)  # compares the maps as they are
    for level in distiller.align:
        for align in level:
            align.forward = lambda x, size: x
    for fusion in distiller.fusion:
        fusion.forward = lambda maps: maps[0]
    student = pyramid(STUDENT)
    for x in student.feats:
        x[:, ::2] = 3.0
    batch = {"bboxes": torch.tensor([[0.25, 0.25, 0.5, 0.5]] * 2), "batch_idx": torch.tensor([0.0, 1.0])}
    same = [DetectorOutput([x.clone() for x in student.feats])]
    assert distiller(student, same, batch, detection_loss=head_loss)["dist"].item() == pytest.approx(0, abs=1e-4)
    dead = [DetectorOutput([torch.ones_like(x) for x in student.feats])]  # the other half differs now, by 1 each
    plain = distiller(student, dead, batch, detection_loss=head_loss)["dist"].item()
    assert plain == pytest.approx(0.5, abs=0.1 if share else 1e-4)


def test_equal_foreground_and_background_share_is_the_plain_form():
    student, teachers = inputs(grad=False)
    everywhere = {"bboxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]] * 2), "batch_idx": torch.tensor([0.0, 1.0])}
    plain = build()(student, teachers)["dist"]
    weighted = build(foreground_weight=0.7)(student, teachers, everywhere)["dist"]
    assert weighted.item() == pytest.approx(plain.item(), abs=1e-4)


def test_foreground_weight_one_hears_nothing_outside_the_boxes():
    distiller = build(foreground_weight=1.0, adv_weight=0)
    student, teachers = inputs()
    batch = {"bboxes": torch.tensor([[0.25, 0.25, 0.5, 0.5]]), "batch_idx": torch.tensor([1.0])}
    target = distiller(student, teachers, batch)["dist"]
    inside = distiller._spatial_weights(batch, student.feats)[0]
    assert inside is not None and inside[1, :8, :8].sum().item() == pytest.approx(1) and inside[0].sum() == 0
    assert student_gradient(student, target).abs().sum() > 0
    with pytest.raises(ValueError, match="'bboxes' and 'batch_idx' must be given"):
        distiller(student, teachers)


@pytest.mark.parametrize("guard", ["reconstruction", "detection"])
def test_losses_depend_neither_on_batch_nor_on_map_size(guard):
    distiller = build(guard=guard)
    student, teachers = inputs(grad=False, size=16)
    reference = distiller(student, teachers, detection_loss=head_loss)

    def enlarge(output, repeats):
        return DetectorOutput([x.repeat(*repeats) for x in output.feats])

    for repeats in [(3, 1, 1, 1), (1, 1, 2, 2)]:
        again = distiller(enlarge(student, repeats), [enlarge(t, repeats) for t in teachers], detection_loss=head_loss)
        assert again["dist"].item() == pytest.approx(reference["dist"].item(), abs=1e-4)
        assert again["guard"].item() == pytest.approx(reference["guard"].item(), abs=1e-4)


def test_one_image_of_one_cell_is_survived():
    distiller = build([[8]], [6])
    output = DetectorOutput([torch.randn(1, 6, 1, 1, requires_grad=True)])
    losses = distiller(output, [DetectorOutput([torch.randn(1, 8, 1, 1)])])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("guard", GUARDS)
def test_half_precision(dtype, guard):
    distiller = build(guard=guard, foreground_weight=0.5)
    student, teachers = inputs()
    batch = {"bboxes": torch.rand(3, 4), "batch_idx": torch.zeros(3)}
    exact = distiller(student, teachers, batch, detection_loss=head_loss)
    with torch.autocast("cpu", dtype=dtype):
        halves = [DetectorOutput([(x * 200).to(dtype) for x in t.feats]) for t in teachers]
        low = DetectorOutput([x.to(dtype) for x in student.feats])
        losses = distiller(low, halves, batch, detection_loss=head_loss)
        disc_loss = distiller.discriminator_loss()
    assert disc_loss.dtype == torch.float32
    assert losses["dist"].dtype == losses["adv"].dtype == torch.float32
    for name in ("dist", "adv"):
        assert losses[name].item() == pytest.approx(exact[name].item(), abs=0.02)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in distiller.parameters())
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student.feats)


# Collapse -------------------------------------------------------------------------------------------------------------


def trained(guard: str, steps: int = 250) -> tuple[float, float]:
    """Return fused_ev before and after training with a student that can know but 2 of the teacher's 12 directions."""
    torch.manual_seed(0)
    distiller = MedDetDistiller([8], [[12]], DistillConfig(guard=guard, adv_weight=0))
    mix = torch.randn(12, 12)
    optimizer = torch.optim.Adam(distiller.main_parameters(), lr=5e-3)
    history = []
    for _ in range(steps):
        latent = torch.randn(4, 12, 8, 8)
        teacher = torch.einsum("dc,bchw->bdhw", mix, latent)
        student = torch.cat([latent[:, :2]] * 4, dim=1) + 0.01 * torch.randn(4, 8, 8, 8)
        losses = distiller(DetectorOutput([student]), [DetectorOutput([teacher])])
        optimizer.zero_grad()
        (losses["dist"] + losses["guard"]).backward()
        optimizer.step()
        history.append(distiller.metrics()["fused_ev"].item())
    return history[0], sum(history[-10:]) / 10


def test_without_a_guard_the_fused_feature_collapses_and_the_measure_shows_it():
    before, after = trained("none")
    assert before > 0.5
    assert after < 0.5 * before


def test_the_reconstruction_guard_prevents_the_collapse():
    _, after = trained("reconstruction")
    assert after > 0.8  # 8 of 12 directions hold most of the variance


def test_the_guard_finds_the_principal_components_of_all_teachers():
    from sklearn.decomposition import PCA

    torch.manual_seed(0)
    distiller = MedDetDistiller([4], [[6], [5]], DistillConfig(adv_weight=0, dist_weight=0))
    latent = torch.randn(8, 7, 7, 7)
    teachers = [torch.einsum("dc,bchw->bdhw", torch.randn(c, 7), latent) for c in (6, 5)]
    rows = torch.cat([(t - t.mean((0, 2, 3), True)) / t.std((0, 2, 3), keepdim=True) for t in teachers], dim=1)
    # the loss weighs teachers alike whatever their channels: give each the same total variance
    rows = torch.cat([rows[:, :6] / 6**0.5, rows[:, 6:] / 5**0.5], dim=1).movedim(1, -1).reshape(-1, 11).numpy()
    best = PCA(4).fit(rows).explained_variance_ratio_.sum()
    optimizer = torch.optim.Adam(distiller.main_parameters(), lr=1e-2)
    student = DetectorOutput([torch.zeros(8, 4, 7, 7)])
    for _ in range(600):
        loss = distiller(student, [DetectorOutput([t]) for t in teachers])["guard"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distiller.metrics()["fused_ev"].item() == pytest.approx(best, abs=0.01)


# State ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("guard", GUARDS)
def test_state_dict_round_trip(fusion, guard):
    first = build(fusion=fusion, guard=guard)
    torch.manual_seed(123)
    second = MedDetDistiller(STUDENT, TEACHERS, first.config)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    student, teachers = inputs(grad=False)
    for module in (first, second):
        module.losses = module(student, teachers, detection_loss=head_loss)
    assert all(torch.equal(first.losses[k], second.losses[k]) for k in first.losses)
    assert torch.equal(first.discriminator_loss(), second.discriminator_loss())


def test_building_is_deterministic_and_leaves_the_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = MedDetDistiller(STUDENT, TEACHERS, DistillConfig())
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(7)
    second = MedDetDistiller(STUDENT, TEACHERS, DistillConfig())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_forward_draws_no_random_numbers_and_repeats_itself():
    distiller = build()
    state = torch.get_rng_state()
    first, second = distiller(*inputs(grad=False)), distiller(*inputs(grad=False))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_module_that_has_run_can_be_copied():
    distiller = build()
    distiller(*inputs())
    clone = copy.deepcopy(distiller)
    assert torch.equal(clone.discriminator_loss(), distiller.discriminator_loss())


def test_without_gradient_as_in_validation():
    distiller = build()
    with torch.no_grad():
        losses = distiller(*inputs(grad=False))
    assert all(not value.requires_grad for value in losses.values())


def test_metrics_are_empty_before_the_first_pass():
    assert build().metrics() == {}


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teachers", "message"),
    [
        ([], [[8]], "at least one level and one teacher"),
        ([8], [], "at least one level and one teacher"),
        ([6, 8], [[8, 12], [8]], r"Teacher 1 has channels for 1 levels \[8\], the student has 2 levels"),
    ],
)
def test_impossible_constructions(student, teachers, message):
    with pytest.raises(ValueError, match=message):
        MedDetDistiller(student, teachers, DistillConfig())


def test_maps_it_was_not_built_for():
    distiller = build()
    student, teachers = inputs()
    with pytest.raises(ValueError, match="Built for 2 teachers, got the output of 1"):
        distiller(student, teachers[:1])
    with pytest.raises(ValueError, match=r"Teacher 1: built for maps of \[12, 12\] channels.*got maps of \[12\]"):
        distiller(student, [teachers[0], DetectorOutput(teachers[1].feats[:1])])
    with pytest.raises(ValueError, match=r"Student: built for maps of \[6, 8\] channels.*got maps of \[8, 6\]"):
        distiller(DetectorOutput(student.feats[::-1]), teachers)


def test_detection_guard_without_a_detection_loss():
    with pytest.raises(ValueError, match="guard 'detection' needs the detection_loss"):
        build(guard="detection")(*inputs())


# Levels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([8, 16, 32], [8, 16, 32], [0, 1, 2]),
        ([8, 16, 32], [4, 8, 16, 32], [1, 2, 3]),
        ([8, 16, 32], [4, 8, 16], [1, 2, 2]),
        ([16], [8, 32], [0]),
        ([8], [32, 16], [1]),
        ([8, 16, 32], [12.0, 24.0, 48.0], [0, 0, 1]),  # ratios 1.5; 1.33 and 1.5; 1.33 and 1.5
    ],
)
def test_match_levels(student, teacher, expected):
    assert match_levels(student, teacher) == expected


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            [8, 16, 64],
            [4, 8, 16],
            r"stride 64 .*student strides \['8', '16', '64'\], teacher strides \['4', '8', '16'\]",
        ),
        ([8], [], "lists of positive strides"),
        ([8], [0, 8], "lists of positive strides"),
    ],
)
def test_levels_that_cannot_be_matched(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        match_levels(student, teacher)
