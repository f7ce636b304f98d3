"""Options of the MedDet method."""

from __future__ import annotations

from dataclasses import dataclass

from meddet_yolo.distill.options import Options, choice, count, number

__all__ = ["MedDetOptions"]

FUSION_NAMES = ("lwff", "sum", "concat")
GUARDS = ("reconstruction", "detection", "none")


@dataclass(frozen=True, kw_only=True)
class MedDetOptions(Options):
    """Options of `distill=meddet`.

    The student's loss is `L_det + a L_dist + b L_adv` (arXiv 2409.00204), `a` and `b` being `dist_weight` and
    `adv_weight`. The paper gives no weights: the defaults are our own.

    Attributes:
        fusion: How the teachers' maps become one: `lwff` (learnable weight for each teacher and channel), `sum` or
            `concat`.
        guard: What keeps the fused feature from collapsing to what is easiest to imitate: `reconstruction` (every
            teacher must be readable from it), `detection` (the student's head must detect with it) or `none`.
        dist_weight: Weight a of L_dist, at least 0. L_dist is 2 for a student unrelated to its teachers and 0 for a
            perfect copy.
        adv_weight: Weight b of L_adv, at least 0; 0 builds no adversary. L_adv is 0.69 while the discriminator is
            undecided.
        guard_weight: Weight of the guard's loss, above 0. With the reconstruction guard it trains alignment and fusion
            only, never the student.
        foreground_weight: Share of L_dist's weight inside ground-truth boxes, in [0, 1]; 0 weighs all positions alike,
            which is the paper's form.
        disc_lr: Learning rate of the discriminators' own optimizer, above 0.
        disc_grid: The discriminators judge the means of disc_grid x disc_grid regions of an image; 1 judges whole
            images.

    Raises:
        ValueError: A value is of the wrong type, out of range or not among the choices.
    """

    fusion: str = "lwff"
    guard: str = "reconstruction"
    dist_weight: float = 1.0
    adv_weight: float = 0.1
    guard_weight: float = 1.0
    foreground_weight: float = 0.0
    disc_lr: float = 0.0002
    disc_grid: int = 1

    def __post_init__(self) -> None:
        """Bring every value to its type and check it."""
        self.put("fusion", choice("fusion", self.fusion, FUSION_NAMES))
        self.put("guard", choice("guard", "none" if self.guard in (None, False) else self.guard, GUARDS))
        for name in ("dist_weight", "adv_weight"):
            self.put(name, number(name, getattr(self, name), low=0))
        for name in ("guard_weight", "disc_lr"):
            self.put(name, number(name, getattr(self, name), low=0, open_low=True))
        self.put("foreground_weight", number("foreground_weight", self.foreground_weight, low=0, high=1))
        self.put("disc_grid", count("disc_grid", self.disc_grid))
        if self.guard == "none" and self.dist_weight == 0:
            raise ValueError(
                "guard none leaves alignment and fusion to learn from L_dist, so dist_weight must be above 0, got 0. "
                "Raise dist_weight, or use guard: reconstruction."
            )
