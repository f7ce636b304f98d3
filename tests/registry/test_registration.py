"""What importing the package registers, and what it leaves alone."""

import pytest
from ultralytics.nn import tasks

import meddet_yolo
from meddet_yolo import registry
from meddet_yolo.nn.heads import NmODE2Detect
from tests.registry._helpers import python


def test_registering_twice_wraps_once() -> None:
    before = tasks.parse_model, tasks.yaml_model_load, tasks.BaseModel.load
    registry.register()
    assert (tasks.parse_model, tasks.yaml_model_load, tasks.BaseModel.load) == before
    assert not hasattr(tasks.parse_model.__wrapped__, "__wrapped__")


def test_every_holder_of_a_wrapped_function_has_the_wrapper() -> None:
    import ultralytics.engine.model
    import ultralytics.nn

    assert ultralytics.engine.model.yaml_model_load is tasks.yaml_model_load is ultralytics.nn.yaml_model_load
    assert ultralytics.nn.parse_model is tasks.parse_model


def test_importing_the_package_imports_neither_torch_nor_ultralytics() -> None:
    out = python("""
        import sys
        import meddet_yolo, meddet_yolo.trt, meddet_yolo.cfg
        print("torch" in sys.modules, "ultralytics" in sys.modules)
    """)
    assert out.split() == ["False", "False"]


@pytest.mark.slow("starts processes")
@pytest.mark.parametrize("first", ["from meddet_yolo import NmODE2Block", "from meddet_yolo import MedDet"])
def test_any_public_name_may_be_imported_first(first: str) -> None:
    """Our modules import Ultralytics, whose import calls for our modules."""
    python(f"{first}; from ultralytics import YOLO; YOLO('meddet11-n.yaml')")


def test_importing_the_package_works_without_torch_and_ultralytics() -> None:
    python("""
        import sys
        sys.modules["torch"] = sys.modules["ultralytics"] = None  # importing them raises ImportError
        import meddet_yolo
        assert meddet_yolo.resolve_model_yaml("meddet-n").name == "meddet-n.yaml"
    """)


def test_public_names_resolve_to_their_home() -> None:
    assert set(meddet_yolo.__all__) <= set(dir(meddet_yolo))
    for name in meddet_yolo.__all__:
        assert getattr(meddet_yolo, name) is not None
    assert meddet_yolo.NmODE2Detect is NmODE2Detect
    with pytest.raises(AttributeError, match="NmODE3"):
        _ = meddet_yolo.NmODE3  # type: ignore[attr-defined]
