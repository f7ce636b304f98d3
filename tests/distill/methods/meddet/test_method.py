"""The method as a whole: who learns from what, what the losses depend on, and the collapse that the guard prevents."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meddet_yolo.distill.method import DetectorOutput, DetectorSpec, Term
from meddet_yolo.distill.methods.meddet import MedDet, MedDetOptions

STUDENT = [6, 8]
TEACHERS = [[8, 12], [12, 12]]
FUSIONS = ["lwff", "sum", "concat"]
GUARDS = ["reconstruction", "detection", "none"]


def pyramid(channels: list[int], batch: int = 2, size: int = 16, seed: int = 0, grad: bool = False) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)
    sizes = [max(size // 2**level, 1) for level in range(len(channels))]
    feats = [torch.randn(batch, c, s, s, generator=generator) for c, s in zip(channels, sizes, strict=True)]
    return DetectorOutput([x.requires_grad_(grad) for x in feats])


def specs(channels: list[list[int]], names: str = "Teacher {}") -> list[DetectorSpec]:
    return [
        DetectorSpec(names.format(i), c, [8.0 * 2**level for level in range(len(c))], nc=2, reg_max=16)
        for i, c in enumerate(channels)
    ]


def method(student: list[int], teachers: list[list[int]], options: MedDetOptions) -> MedDet:
    with torch.random.fork_rng():  # as a session does
        return MedDet(specs([student], "Student")[0], specs(teachers), options)


def build(teachers=TEACHERS, student=STUDENT, **options) -> MedDet:
    torch.manual_seed(0)
    return method(student, teachers, MedDetOptions(**options))


def losses_of(distiller: MedDet, student, teachers, batch=None) -> dict[str, torch.Tensor]:
    return {name: term.loss for name, term in distiller(student, teachers, batch or {}, head_loss=head_loss).items()}


def main_parameters(distiller: MedDet) -> list[torch.nn.Parameter]:
    excluded = {id(p) for p in discriminator_parameters(distiller)}
    return [p for p in distiller.parameters() if id(p) not in excluded]


def discriminator_parameters(distiller: MedDet) -> list[torch.nn.Parameter]:
    return [p for opponent in distiller.opponents() for p in opponent.parameters]


def discriminator_loss(distiller: MedDet) -> torch.Tensor:
    (opponent,) = distiller.opponents()
    return opponent.loss()


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
    losses = losses_of(distiller, student, teachers)
    assert set(losses) == {"dist", "adv", "guard"}
    assert all(value.shape == () and value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student.feats)
    metrics = distiller.metrics()
    shares = [[metrics[f"w_p{p + 3}_t{t}"] for t in range(len(sizes))] for p in range(levels)]
    assert all(sum(level).item() == pytest.approx(1, abs=1e-5) for level in shares)
    assert {f"ev_t{t}" for t in range(len(sizes))} | {"fused_ev", "fused_var", "disc_acc"} <= set(metrics)
    assert all(value.shape == () and value.isfinite() and not value.requires_grad for value in metrics.values())


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", GUARDS)
def test_each_term_reaches_the_student_or_not(guard):
    distiller = build(guard=guard)
    student, teachers = inputs()
    losses = losses_of(distiller, student, teachers)
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
        gradients.append(student_gradient(student, losses_of(distiller, student, teachers)["dist"]))
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("guard", GUARDS)
def test_teachers_get_no_gradient(guard):
    distiller = build(guard=guard)
    student, teachers = inputs()
    for teacher in teachers:
        teacher.feats = [x.requires_grad_() for x in teacher.feats]
    sum(losses_of(distiller, student, teachers).values()).backward()
    assert all(x.grad is None for teacher in teachers for x in teacher.feats)


@pytest.mark.parametrize(("guard", "learns"), [("reconstruction", False), ("detection", False), ("none", True)])
def test_the_fused_target_learns_from_the_student_only_without_a_guard(guard, learns):
    distiller = build(guard=guard)
    student, teachers = inputs()
    losses_of(distiller, student, teachers)["dist"].backward()
    parts = [*distiller.align.parameters(), *distiller.fusion.parameters()]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parts) is learns


@pytest.mark.parametrize("guard", ["reconstruction", "detection"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_alignment_and_fusion_learn_from_the_guard(guard, fusion):
    distiller = build(guard=guard, fusion=fusion)
    student, teachers = inputs()
    losses_of(distiller, student, teachers)["guard"].backward()
    for name, parameter in [*distiller.align.named_parameters(), *distiller.fusion.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("bias"), name


@pytest.mark.parametrize("adv_weight", [0, 1])
@pytest.mark.parametrize(("guard", "dist_weight"), [*((guard, 1) for guard in GUARDS), *((g, 0) for g in GUARDS[:2])])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_that_is_built_is_used(fusion, guard, dist_weight, adv_weight):
    distiller = build(fusion=fusion, guard=guard, dist_weight=dist_weight, adv_weight=adv_weight)
    student, teachers = inputs()
    total = sum(losses_of(distiller, student, teachers).values())
    total.backward()
    assert [n for n, p in distiller.named_parameters() if p.grad is None and "discriminators" not in n] == []
    assert all(p.grad is None for p in discriminator_parameters(distiller))
    if distiller.adversary is not None:
        discriminator_loss(distiller).backward()
        assert all(p.grad is not None for p in discriminator_parameters(distiller))


def test_parameters_are_split_between_the_two_optimizers():
    distiller = build()
    main, discriminator = main_parameters(distiller), discriminator_parameters(distiller)
    assert main and discriminator
    assert {id(p) for p in main}.isdisjoint(id(p) for p in discriminator)
    assert len(main) + len(discriminator) == len(list(distiller.parameters()))
    assert discriminator_parameters(build(adv_weight=0)) == []


def test_terms_switched_off_build_nothing_and_are_zero():
    distiller = build(dist_weight=0, adv_weight=0)
    names = " ".join(distiller.state_dict())
    assert "adversary" not in names and "student_align" not in names
    losses = losses_of(distiller, *inputs())
    assert losses["dist"].item() == losses["adv"].item() == 0
    assert not distiller.opponents()


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
    dist = losses_of(distiller, student, teachers)["dist"].item()
    assert dist == pytest.approx(sum(expected) / len(expected), abs=1e-4)


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
    assert losses_of(distiller, student, same, batch)["dist"].item() == pytest.approx(0, abs=1e-4)
    dead = [DetectorOutput([torch.ones_like(x) for x in student.feats])]  # the other half differs now, by 1 each
    plain = losses_of(distiller, student, dead, batch)["dist"].item()
    assert plain == pytest.approx(0.5, abs=0.1 if share else 1e-4)


def test_equal_foreground_and_background_share_is_the_plain_form():
    student, teachers = inputs(grad=False)
    everywhere = {"bboxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]] * 2), "batch_idx": torch.tensor([0.0, 1.0])}
    plain = losses_of(build(), student, teachers)["dist"]
    weighted = losses_of(build(foreground_weight=0.7), student, teachers, everywhere)["dist"]
    assert weighted.item() == pytest.approx(plain.item(), abs=1e-4)


def test_foreground_weight_one_hears_nothing_outside_the_boxes():
    distiller = build(foreground_weight=1.0, adv_weight=0)
    student, teachers = inputs()
    batch = {"bboxes": torch.tensor([[0.25, 0.25, 0.5, 0.5]]), "batch_idx": torch.tensor([1.0])}
    target = losses_of(distiller, student, teachers, batch)["dist"]
    inside = distiller._spatial_weights(batch, student.feats)[0]
    assert inside is not None and inside[1, :8, :8].sum().item() == pytest.approx(1) and inside[0].sum() == 0
    assert student_gradient(student, target).abs().sum() > 0
    with pytest.raises(ValueError, match="'bboxes' and 'batch_idx' must be given"):
        losses_of(distiller, student, teachers)


@pytest.mark.parametrize("guard", ["reconstruction", "detection"])
def test_losses_depend_neither_on_batch_nor_on_map_size(guard):
    distiller = build(guard=guard)
    student, teachers = inputs(grad=False, size=16)
    reference = losses_of(distiller, student, teachers)

    def enlarge(output, repeats):
        return DetectorOutput([x.repeat(*repeats) for x in output.feats])

    for repeats in [(3, 1, 1, 1), (1, 1, 2, 2)]:
        again = losses_of(distiller, enlarge(student, repeats), [enlarge(t, repeats) for t in teachers])
        assert again["dist"].item() == pytest.approx(reference["dist"].item(), abs=1e-4)
        assert again["guard"].item() == pytest.approx(reference["guard"].item(), abs=1e-4)


def test_one_image_of_one_cell_is_survived():
    distiller = build([[8]], [6])
    output = DetectorOutput([torch.randn(1, 6, 1, 1, requires_grad=True)])
    losses = losses_of(distiller, output, [DetectorOutput([torch.randn(1, 8, 1, 1)])])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("guard", GUARDS)
def test_half_precision(dtype, guard):
    distiller = build(guard=guard, foreground_weight=0.5)
    student, teachers = inputs()
    batch = {"bboxes": torch.rand(3, 4), "batch_idx": torch.zeros(3)}
    exact = losses_of(distiller, student, teachers, batch)
    with torch.autocast("cpu", dtype=dtype):
        halves = [DetectorOutput([(x * 200).to(dtype) for x in t.feats]) for t in teachers]
        low = DetectorOutput([x.to(dtype) for x in student.feats])
        losses = losses_of(distiller, low, halves, batch)
        disc_loss = discriminator_loss(distiller)
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
    distiller = method([8], [[12]], MedDetOptions(guard=guard, adv_weight=0))
    mix = torch.randn(12, 12)
    optimizer = torch.optim.Adam(main_parameters(distiller), lr=5e-3)
    history = []
    for _ in range(steps):
        latent = torch.randn(4, 12, 8, 8)
        teacher = torch.einsum("dc,bchw->bdhw", mix, latent)
        student = torch.cat([latent[:, :2]] * 4, dim=1) + 0.01 * torch.randn(4, 8, 8, 8)
        losses = losses_of(distiller, DetectorOutput([student]), [DetectorOutput([teacher])])
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
    distiller = method([4], [[6], [5]], MedDetOptions(adv_weight=0, dist_weight=0))
    latent = torch.randn(8, 7, 7, 7)
    teachers = [torch.einsum("dc,bchw->bdhw", torch.randn(c, 7), latent) for c in (6, 5)]
    rows = torch.cat([(t - t.mean((0, 2, 3), True)) / t.std((0, 2, 3), keepdim=True) for t in teachers], dim=1)
    # the loss weighs teachers alike whatever their channels: give each the same total variance
    rows = torch.cat([rows[:, :6] / 6**0.5, rows[:, 6:] / 5**0.5], dim=1).movedim(1, -1).reshape(-1, 11).numpy()
    best = PCA(4).fit(rows).explained_variance_ratio_.sum()
    optimizer = torch.optim.Adam(main_parameters(distiller), lr=1e-2)
    student = DetectorOutput([torch.zeros(8, 4, 7, 7)])
    for _ in range(600):
        loss = losses_of(distiller, student, [DetectorOutput([t]) for t in teachers])["guard"]
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
    second = method(STUDENT, TEACHERS, first.options)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    student, teachers = inputs(grad=False)
    for module in (first, second):
        module.losses = losses_of(module, student, teachers)
    assert all(torch.equal(first.losses[k], second.losses[k]) for k in first.losses)
    assert torch.equal(discriminator_loss(first), discriminator_loss(second))


def test_forward_draws_no_random_numbers_and_repeats_itself():
    distiller = build()
    state = torch.get_rng_state()
    first, second = losses_of(distiller, *inputs(grad=False)), losses_of(distiller, *inputs(grad=False))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_module_that_has_run_can_be_copied():
    distiller = build()
    losses_of(distiller, *inputs())
    clone = copy.deepcopy(distiller)
    assert torch.equal(discriminator_loss(clone), discriminator_loss(distiller))


def test_without_gradient_as_in_validation():
    distiller = build()
    with torch.no_grad():
        losses = losses_of(distiller, *inputs(grad=False))
    assert all(not value.requires_grad for value in losses.values())


def test_metrics_are_empty_before_the_first_pass():
    assert build().metrics() == {}


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teachers", "message"),
    [
        ([], [[8]], "at least one level and one teacher"),
        ([8], [], "at least one level and one teacher"),
        ([6, 8, 8], [[8, 12], [8]], r"Teacher 1: The student's level of stride 32 has no counterpart in the teacher"),
    ],
)
def test_impossible_constructions(student, teachers, message):
    with pytest.raises(ValueError, match=message):
        method(student, teachers, MedDetOptions())


def test_maps_it_was_not_built_for():
    distiller = build()
    student, teachers = inputs()
    with pytest.raises(ValueError, match="Built for 2 teachers, got the output of 1"):
        losses_of(distiller, student, teachers[:1])
    with pytest.raises(ValueError, match=r"Teacher 1: built for maps of \[12, 12\] channels.*got maps of \[12\]"):
        losses_of(distiller, student, [teachers[0], DetectorOutput(teachers[1].feats[:1])])
    with pytest.raises(ValueError, match=r"Student: built for maps of \[6, 8\] channels.*got maps of \[8, 6\]"):
        losses_of(distiller, DetectorOutput(student.feats[::-1]), teachers)


def test_terms_carry_their_weights_and_whom_they_teach():
    terms = build(dist_weight=3, guard_weight=2)(*inputs(), {}, head_loss=head_loss)
    assert all(isinstance(term, Term) for term in terms.values())
    assert {name: (term.weight, term.student, term.schedule) for name, term in terms.items()} == {
        "dist": (3.0, True, True),
        "adv": (0.1, True, True),
        "guard": (2.0, False, False),
    }
