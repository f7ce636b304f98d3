"""Torchvision's detectors with a feature pyramid: the maps of the pyramid."""

from __future__ import annotations

import difflib
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meddet_yolo.console import may_fetch
from meddet_yolo.distill.adapters.network import Network
from meddet_yolo.distill.adapters.weights import load_exactly, read_weights

__all__ = ["TorchvisionNetwork", "open_model"]

_FAMILIES = ("fasterrcnn_", "retinanet_", "fcos_", "maskrcnn_", "keypointrcnn_")
_MULTIPLE = 32  # stride of the backbone's last stage
_PROBE = 256  # image side at which all levels of the pyramid have whole strides


class TorchvisionNetwork(Network):
    """The backbone and pyramid of Faster R-CNN, RetinaNet, FCOS, Mask R-CNN or Keypoint R-CNN.

    What their heads say is not read: of RetinaNet's there are nine anchors a position, of R-CNN's a second stage.

    Args:
        model: A detector of torchvision; its `backbone` is copied.
    """

    pyramid = False
    mean: Tensor
    std: Tensor
    multiple = _MULTIPLE

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        source: Any = model
        self.backbone = deepcopy(source.backbone).float().eval().requires_grad_(False)
        self.register_buffer("mean", torch.tensor(source.transform.image_mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(source.transform.image_std).view(1, -1, 1, 1))
        self.names = {}
        device = next(self.backbone.parameters()).device
        with torch.no_grad():
            levels = self.maps(torch.zeros(1, 3, _PROBE, _PROBE, device=device))
        self.channels = [level.shape[1] for level in levels]
        self.strides = [_PROBE / level.shape[-1] for level in levels]

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Return whether a model is such a detector."""
        from torchvision.models.detection import FCOS, RetinaNet
        from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

        return isinstance(model, FCOS | RetinaNet | GeneralizedRCNN)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the levels of the pyramid."""
        return list(self.backbone((images - self.mean) / self.std).values())


def open_model(name: str, file: str) -> nn.Module:
    """Build a detector with the weights of a file, or with those that torchvision has for it.

    Only the backbone and its pyramid get weights, so a file may be of any number of classes.

    Raises:
        FileNotFoundError: If the pretrained weights are not here and cannot be fetched.
        ValueError: If there is no such detector, or the weights are not its.
    """
    from torchvision.models import detection, get_model, get_model_weights, list_models

    names = [known for known in list_models(module=detection) if known.startswith(_FAMILIES)]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"valid are {', '.join(names)}"
        raise ValueError(f"teacher torchvision:{name}: torchvision has no such detector; {hint}")
    model = get_model(name, weights=None, weights_backbone=None)
    state = read_weights(file) if file else _pretrained(name, get_model_weights(name).DEFAULT.url)
    load_exactly(model.backbone, _of_backbone(state), file or name, lambda key: False)
    model.eval()
    return model


def _of_backbone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "backbone."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _pretrained(name: str, url: str) -> dict[str, Tensor]:
    """Return torchvision's weights, downloaded where they are not here."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / Path(url).name).is_file() and not may_fetch():
        raise FileNotFoundError(
            f"teacher torchvision:{name}: its pretrained weights are not in {folder} and cannot be downloaded: this "
            f"machine is offline; fetch {url} elsewhere and give it as torchvision:{name}@FILE"
        )
    state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        url, map_location="cpu", check_hash=True, weights_only=True
    )
    return state
