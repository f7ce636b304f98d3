import pytest

from meddet_yolo import MedDet, cli
from meddet_yolo.registry.options import check_numbers


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"batch": -1}, "train"),
        ({"batch": 0.7, "imgsz": [64, 96], "workers": 0, "epochs": 1}, "train"),
        ({"batch": 1, "imgsz": "640", "workers": None}, "val"),
        ({}, ""),
    ],
)
def test_what_ultralytics_takes_passes(options, mode):
    check_numbers(options, mode)


@pytest.mark.parametrize(
    ("options", "mode", "message"),
    [
        ({"batch": 0}, "train", r"batch=0: expected a number of images of 1 or more, -1, or a share"),
        ({"batch": -1}, "val", r"batch=-1: expected a number of images of 1 or more$"),
        ({"imgsz": [64, 0]}, "predict", r"imgsz=\[64, 0\]: expected a size in pixels of 1 or more"),
        ({"workers": -1}, "train", "workers=-1: expected a number of processes of 0 or more"),
        ({"epochs": 0}, "train", "epochs=0: expected"),
        ({"nc": 0}, "", "nc=0: expected a number of classes of 1 or more"),
    ],
)
def test_what_is_out_of_range_is_refused_with_what_is_expected(options, mode, message):
    with pytest.raises(ValueError, match=message):
        check_numbers(options, mode)


def test_options_are_looked_at_in_python_and_in_the_shell(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = MedDet("yolo11n.yaml")
    for call in (model.train, model.val, model.predict, model.export):
        with pytest.raises(ValueError, match="imgsz=0"):
            call(imgsz=0)
    for command in (
        "train model=yolo11n.yaml data=d.yaml batch=0",
        "val model=yolo11n.yaml workers=-1",
        "info nc=0",
        "benchmark model=a.pt imgsz=0",
    ):
        assert cli.main(command.split()) == 1
        line = capsys.readouterr().err
        assert "=0: expected" in line or "=-1: expected" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("student", ["yolo11n-seg.yaml", "yolo11n-cls.yaml", "rtdetr-l.yaml"])
def test_what_cannot_be_a_student_is_refused_before_a_folder_is_made(student, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", f"model={student}", "data=d.yaml", "teachers=a.pt"]) != 0
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1 and "teachers= distils into YOLO detectors" in line
    if "rtdetr" not in student:
        with pytest.raises(ValueError, match="teachers= distils into YOLO detectors"):
            MedDet(student).train(data="d.yaml", teachers=["a.pt"])
    assert not list(tmp_path.iterdir())


def test_a_stock_model_of_another_task_is_of_that_task(monkeypatch):
    seen = []
    monkeypatch.setattr(MedDet, "val", lambda self, **_: seen.append(self.task))
    assert cli.main(["val", "model=yolo11n-seg.yaml", "data=d.yaml"]) == 0
    assert seen == ["segment"]
