"""Which channels a student's stand for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import meddet_yolo  # noqa: F401  # its layers in model YAMLs
from meddet_yolo.distill.inherit import CHANNELS
from meddet_yolo.distill.inherit.spaces import Axis, Space


class TestSpaces:
    @given(
        wanted=st.integers(1, 20),
        more=st.integers(0, 30),
        parts=st.integers(1, 4),
        more_parts=st.integers(0, 4),
        by=st.sampled_from(CHANNELS),
    )
    def test_channels_are_distinct_ascending_and_equally_many_of_every_part(self, wanted, more, parts, more_parts, by):
        size, all_parts = wanted + more, parts + more_parts
        space = Space(parts * wanted, all_parts * size, Space(parts, all_parts))
        space.add_score(torch.rand(all_parts * size) + 0.1)
        chosen = space.choose(by)
        assert (chosen.diff() > 0).all() and chosen[0] >= 0 and chosen[-1] < all_parts * size
        assert set((chosen // size).bincount().tolist()) <= {0, wanted}

    @given(student=st.integers(1, 64), more=st.integers(0, 64))
    def test_even_channels_are_those_of_weight_selection(self, student, more):
        teacher = student + more
        assert Space(student, teacher).choose("even").tolist() == [i * teacher // student for i in range(student)]

    def test_joined_spaces_choose_alike_by_the_scores_of_both(self):
        one, two = Space(1, 3), Space(1, 3)
        one.join(two)
        one.add_score(torch.tensor([1.0, 0.0, 0.8]))
        two.add_score(torch.tensor([0.0, 1.0, 0.8]))
        assert one.choose("importance").tolist() == two.choose("importance").tolist() == [2]

    def test_every_tensor_counts_alike_whatever_its_scale(self):
        space = Space(1, 2)
        space.add_score(torch.tensor([1000.0, 1100.0]))
        space.add_score(torch.tensor([0.2, 0.1]))
        assert space.choose("importance").tolist() == [0]

    def test_unequal_spaces_cannot_be_added(self):
        with pytest.raises(ValueError, match="2 and 3 in the student, 4 and 4 in the teacher"):
            Space(2, 4).join(Space(3, 4))

    def test_concatenated_parts_are_chosen_within_their_own_range(self):
        axis = Axis.cat([Axis.of(Space(2, 4)), Axis.of(Space(1, 6)), Axis.of(Space(2, 2))])
        assert axis.index("even").tolist() == [0, 2, 4, 10, 11]
