from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.nn.tasks import DetectionModel

from meddet_yolo.distill.classes import ABSENT, ClassMap, match_classes, read_class_maps
from meddet_yolo.distill.config import DistillConfig
from meddet_yolo.distill.method import DetectorOutput, DetectorSpec
from meddet_yolo.distill.methods.l2 import ScoreWeightedL2
from meddet_yolo.distill.session import DistillSession
from meddet_yolo.distill.teachers import Teacher

DATA = {0: "herniation", 1: "normal"}
COCO_LIKE = {0: "person", 1: "disc", 2: "cat", 3: "Normal"}


@pytest.mark.parametrize("names", [DATA, {0: "Herniation ", 1: "NORMAL"}, {0: "0", 1: "1"}])
def test_a_teacher_of_the_same_classes_speaks_for_all(names: dict[int, str]) -> None:
    assert match_classes(names, DATA, "t.pt").same


@pytest.mark.parametrize("names", [{}, {0: "herniation"}, COCO_LIKE, {i: str(i) for i in range(80)}])
def test_another_number_of_classes_speaks_for_none(names: dict[int, str]) -> None:
    assert match_classes(names, DATA, "t.pt").known == (False, False)


@pytest.mark.parametrize("names", [{0: "normal", 1: "herniation"}, {0: "cat", 1: "dog"}])
def test_the_same_number_under_other_names_is_refused_unless_mapped(names: dict[int, str]) -> None:
    with pytest.raises(ValueError, match=r"t\.pt was trained on.*teacher_classes"):
        match_classes(names, DATA, "t.pt")
    assert match_classes(names, DATA, "t.pt", {}).known == (False, False)
    assert match_classes(names, DATA, "t.pt", {names[0]: "normal", 1: 0}).sources == ((1,), (0,))


@pytest.mark.parametrize(
    ("mapping", "sources"),
    [
        ({"disc": 0}, ((1,), ())),
        ({"DISC": "Herniation", 3: 1}, ((1,), (3,))),
        ({"1": "0", "cat": 0}, ((1, 2), ())),
    ],
)
def test_mappings_by_name_and_index(mapping: dict[Any, Any], sources: Any) -> None:
    assert match_classes(COCO_LIKE, DATA, "t.pt", mapping).sources == sources


def test_a_name_goes_before_an_index() -> None:
    assert match_classes({0: "7", 7: "x"}, {0: "a"}, "t.pt", {7: 0}).sources == ((0,),)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"dics": 0}, r"teacher t\.pt has no class 'dics'; it has 0: person"),
        ({"disc": 2}, "the data set has no class 2"),
    ],
)
def test_unknown_classes_in_a_mapping(mapping: dict[Any, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_classes(COCO_LIKE, DATA, "t.pt", mapping)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{disc:0}", {"disc": 0}),
        ("disc:0,cat:1", {"disc": 0, "cat": 1}),
        ("{disc: 0, 2: normal}", {"disc": 0, 2: "normal"}),
        ("{}", {}),
    ],
)
def test_text_of_the_command_line(text: str, expected: Any) -> None:
    assert read_class_maps(text, 1) == expected


def test_one_mapping_for_each_of_several_teachers() -> None:
    options = {"teachers": ["a.pt", "b.pt"], "teacher_classes": "[{disc:0},null]"}
    assert DistillConfig.from_dict(options).run.class_maps() == [{"disc": 0}, None]
    assert DistillConfig.from_dict({"teachers": ["a.pt", "b.pt"]}).run.class_maps() == [None, None]


@pytest.mark.parametrize("value", ["disc", 3, "{disc:[0]}", [{"a": 0}, {}], {"a": True}, "{a:", {"a": 1.5}])
def test_malformed_mappings(value: Any) -> None:
    with pytest.raises(ValueError, match="teacher_classes"):
        read_class_maps(value, 1)


def test_one_mapping_does_not_say_which_of_two_teachers_it_is_about() -> None:
    with pytest.raises(ValueError, match="which of the 2 teachers"):
        read_class_maps({"disc": 0}, 2)


@settings(deadline=None)  # the first call warms torch up
@given(st.data())
def test_logits_are_picked_and_of_several_the_highest(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    sources = data.draw(st.lists(st.sets(st.integers(0, size - 1)), min_size=1, max_size=4))
    logits = torch.randn(2, size, 5)
    found = ClassMap(tuple(tuple(sorted(s)) for s in sources), size)(logits)
    for i, source in enumerate(sources):
        expected = torch.stack([logits[:, s] for s in source]).max(0).values if source else torch.full((2, 5), ABSENT)
        torch.testing.assert_close(found[:, i], expected)


def coco_like(classes: ClassMap) -> Teacher:
    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", nc=4, verbose=False)
    model.names = COCO_LIKE
    return Teacher(model, name="coco.pt", classes=classes)


def test_a_mapped_teacher_gives_logits_of_the_students_classes() -> None:
    teacher = coco_like(match_classes(COCO_LIKE, DATA, "coco.pt", {"disc": 0}))
    images = torch.rand(1, 3, 64, 64)
    own = coco_like(match_classes(COCO_LIKE, COCO_LIKE, "coco.pt"))(images)
    output = teacher(images)
    assert own.logits is not None and output.logits is not None and own.logits.shape[1] == 4
    torch.testing.assert_close(output.logits[:, 0], own.logits[:, 1])
    assert output.known is not None and output.known.tolist() == [True, False]
    torch.testing.assert_close(output.boxes, own.boxes)
    assert teacher.spec_at(64).nc == 2
    assert teacher.use(DATA) == "features and predictions: disc for herniation, nothing for normal"


def session(method: str, teacher: Teacher) -> DistillSession:
    student = DetectorSpec("student", [8, 16, 16], [8.0, 16.0, 32.0], nc=2, reg_max=16)
    return DistillSession(student, [teacher], DistillConfig.from_dict({"distill": method}), imgsz=64)


def test_methods_that_read_maps_take_teachers_of_any_classes() -> None:
    teacher = coco_like(match_classes(COCO_LIKE, DATA, "coco.pt"))
    session("meddet", teacher)
    assert teacher(torch.rand(1, 3, 64, 64)).logits is None
    assert teacher.use(DATA).startswith("features only: has other classes (person, disc")


def test_methods_that_read_predictions_need_a_mapping() -> None:
    with pytest.raises(ValueError, match=r"distill=l2 reads.*coco\.pt has other classes .*teacher_classes"):
        session("l2", coco_like(match_classes(COCO_LIKE, DATA, "coco.pt")))


def test_a_class_that_a_teacher_does_not_know_is_refused_where_a_method_needs_all(monkeypatch: Any) -> None:
    partly = {"disc": 0}
    session("l2", coco_like(match_classes(COCO_LIKE, DATA, "coco.pt", partly)))
    monkeypatch.setattr(ScoreWeightedL2, "partial_classes", False)
    with pytest.raises(ValueError, match=r"coco\.pt does not know the data set's 1;"):
        session("l2", coco_like(match_classes(COCO_LIKE, DATA, "coco.pt", partly)))
    session("l2", coco_like(match_classes(COCO_LIKE, DATA, "coco.pt", {"disc": 0, "Normal": 1})))


def test_what_is_unknown_weighs_nothing_in_l2() -> None:
    teacher = coco_like(match_classes(COCO_LIKE, DATA, "coco.pt", {"disc": 0}))
    output = teacher(torch.rand(1, 3, 64, 64))
    assert isinstance(output, DetectorOutput) and output.logits is not None
    torch.testing.assert_close(output.logits.sigmoid().amax(1), output.logits[:, 0].sigmoid())
