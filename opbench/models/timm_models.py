"""The catalogue made known to timm, whose models these then are: `timm.create_model("internimage_b.opbench")`."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from opbench.models.backbone import Backbone
from opbench.models.catalogue import CATALOGUE, create

__all__: list[str] = []

TAG = "opbench"
NAMES = [name for name in CATALOGUE if not is_model(name)]
"""Without those that a later timm has itself: its own model keeps the name."""

default_cfgs = generate_default_cfgs(
    {
        f"{name}.{TAG}": {
            "input_size": (3, CATALOGUE[name].image_size, CATALOGUE[name].image_size),
            "fixed_input_size": CATALOGUE[name].model.has_fixed_size,
            "interpolation": "bicubic",
            "first_conv": CATALOGUE[name].model.first_conv,
            "classifier": CATALOGUE[name].model.classifier_name,
            "paper_ids": CATALOGUE[name].paper,
        }
        for name in NAMES
    }
)
"""Read by timm.models.register_model."""


def _create(
    name: str,
    *,
    in_chans: int = 3,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arguments: Any,  # noqa: ANN401 - the model's
) -> nn.Module:
    """The model with the arguments that every model of timm takes."""
    kind = CATALOGUE[name].model
    arguments[kind.in_chans_name] = in_chans
    if not kind.has_head_dropout:
        arguments["drop_rate"] = drop_rate
    with nullcontext() if device is None else torch.device(device):
        model = create(name, **arguments)
    if kind.has_head_dropout:
        model.drop_rate = drop_rate
    if global_pool != "avg":
        model.reset_classifier(model.num_classes, global_pool)
    return model.to(dtype=dtype)


def _adapt(state: dict[str, torch.Tensor], model: Backbone) -> dict[str, torch.Tensor]:
    return model.adapt_checkpoint(state)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    """What timm calls for a name."""

    def entrypoint(pretrained: bool = False, **arguments: Any) -> nn.Module:  # noqa: ANN401 - the model's, and timm's
        features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
        built = build_model_with_cfg(
            partial(_create, name), name, pretrained, feature_cfg=features, pretrained_filter_fn=_adapt, **arguments
        )
        model: nn.Module = built
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = name
    return entrypoint


for _name in NAMES:
    # register_model adds the name to __all__, so the function must be found under it.
    globals()[_name] = register_model(_entrypoint(_name))
