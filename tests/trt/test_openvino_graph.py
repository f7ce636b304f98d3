import numpy as np
import pytest

from meddet_yolo.trt.openvino_graph import join_split_concats, rewrite_file

openvino = pytest.importorskip("openvino")
ops = openvino.opset13


def integers(*values):
    return ops.constant(np.array(values, np.int64))


def block(order=(0, 1, 2), axis=1, first_used=False, variadic=True):
    """split -> (a, b), m(b) = relu(b), concat of (a, b, m(b)) in a given order."""
    x = ops.parameter([1, 12, 6, 6], np.float32)
    along = ops.constant(np.int64(axis))
    split = ops.variadic_split(x, along, integers(5, 7) if axis == 1 else integers(3, 3)) if variadic else None
    split = split or ops.split(x, along, 2)
    parts = [split.output(0), split.output(1), ops.relu(split.output(1)).output(0)]
    results = [ops.concat([parts[k] for k in order], axis)]
    if first_used:
        results.append(ops.relu(split.output(0)))
    return openvino.Model(results, [x])


def run(model):
    x = np.random.default_rng(0).normal(size=(1, 12, 6, 6)).astype(np.float32)
    return [np.array(y) for y in openvino.Core().compile_model(model, "CPU")(x).values()]


def kinds(model):
    return [node.get_type_name() for node in model.get_ops()]


@pytest.mark.parametrize("variadic", [True, False])
def test_the_numbers_stay_the_same(variadic):
    model = block(variadic=variadic)
    expected = run(model)
    assert join_split_concats(model) == 1
    assert not {"Split", "VariadicSplit"} & set(kinds(model)) and "Slice" in kinds(model)
    np.testing.assert_array_equal(run(model)[0], expected[0])


@pytest.mark.parametrize(
    "options",
    [{"order": (1, 0, 2)}, {"order": (2, 0, 1)}, {"axis": 2}, {"first_used": True}],
    ids=["other order", "not first", "other axis", "first part used elsewhere"],
)
def test_what_does_not_fit_is_left_alone(options):
    model = block(**options)
    before, expected = kinds(model), run(model)
    assert join_split_concats(model) == 0 and kinds(model) == before
    for old, new in zip(expected, run(model), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("half", [True, False])
def test_a_file_is_rewritten_where_it_lies(tmp_path, half):
    model = block()
    weights = np.linspace(-1, 1, 19).astype(np.float32).reshape(1, 19, 1, 1)
    scaled = openvino.Model([ops.multiply(model.output(0).get_node().input_value(0), weights)], model.get_parameters())
    expected = run(scaled)
    xml = tmp_path / "m.xml"
    openvino.save_model(scaled, str(xml), compress_to_fp16=half)
    size = xml.with_suffix(".bin").stat().st_size
    assert rewrite_file(xml, half) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    assert xml.with_suffix(".bin").stat().st_size < size + 40  # indices of the slice; the weights keep their precision
    np.testing.assert_allclose(run(openvino.Core().read_model(str(xml)))[0], expected[0], atol=1e-2 if half else 0)
