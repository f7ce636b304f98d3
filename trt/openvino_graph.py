"""An OpenVINO graph in the shape that its CPU plugin runs best, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from meddet_yolo.trt.graph import require

__all__ = ["join_split_concats", "rewrite_file"]


def join_split_concats(model: Any) -> int:
    """Let a concatenation take a tensor whole where it takes both parts of its split, in place.

    YOLO's C2f and C3k2 blocks split a tensor in (a, b), compute m(b) and concatenate (a, b, m(b), ...). With the
    channels last, as OpenVINO has them, a split copies both parts. The concatenation can take (a, b) as it was before,
    and only b has to be cut out. Our own decision, by measurement: 1 % of yolo26n's time on two cores.

    Args:
        model: An `openvino.Model`.

    Returns:
        How many concatenations were changed.

    Examples:
        >>> join_split_concats(openvino.Core().read_model("best.xml"))  # doctest: +SKIP
        8
    """
    count = 0
    for concat in [node for node in model.get_ops() if node.get_type_name() == "Concat"]:
        if concat.get_input_size() < 2 or concat.get_attributes()["axis"] != 1:
            continue
        split = concat.input_value(0).get_node()
        if split.get_type_name() not in {"Split", "VariadicSplit"} or split.get_output_size() != 2:
            continue
        follows = [concat.input_value(k) == split.output(k) for k in range(2)]
        users = [len(part.get_target_inputs()) for part in split.outputs()]
        if all(follows) and _axis(split) == 1 and users[0] == 1 and _channels(split.output(0)) is not None:
            _join(split, concat)
            count += 1
    model.validate_nodes_and_infer_types()
    return count


def rewrite_file(xml: Path, half: bool) -> int:
    """Apply `join_split_concats` to a model file.

    Args:
        xml: The file, with its `.bin` beside it.
        half: Whether its weights are to be stored in half precision.

    Returns:
        How many concatenations were changed.
    """
    openvino = require("openvino")
    model = openvino.Core().read_model(str(xml))
    count = join_split_concats(model)
    folder = xml.parent / "rewritten"
    folder.mkdir()
    openvino.save_model(model, str(folder / xml.name), compress_to_fp16=half)
    del model  # it maps the old weights into memory
    for file in folder.iterdir():
        file.replace(xml.parent / file.name)
    folder.rmdir()
    return count


def _join(split: Any, concat: Any) -> None:
    from openvino import opset13

    whole = split.input_value(0)
    rest = [concat.input_value(k) for k in range(2, concat.get_input_size())]
    joined = opset13.concat([whole, *rest], 1, name=f"{concat.get_friendly_name()}/whole")
    first = _channels(split.output(0))
    start, stop, step, axis = (opset13.constant(np.array([n], np.int64)) for n in (first, np.iinfo(np.int64).max, 1, 1))
    second = opset13.slice(whole, start, stop, step, axis, name=f"{split.get_friendly_name()}/second")
    for target in split.output(1).get_target_inputs():
        if target.get_node() != concat:
            target.replace_source_output(second.output(0))
    for target in concat.output(0).get_target_inputs():
        target.replace_source_output(joined.output(0))


def _axis(split: Any) -> int | None:
    constant = split.input_value(1).get_node()
    return int(constant.get_data().item()) if constant.get_type_name() == "Constant" else None


def _channels(output: Any) -> int | None:
    dimension = output.get_partial_shape()[1]
    return int(dimension.get_length()) if dimension.is_static else None
