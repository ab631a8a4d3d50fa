"""The models by name: the authors' configurations, and what makes a model of one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from opbench.models.backbone import Backbone
from opbench.models.core_operators import OPERATOR_NAMES
from opbench.models.dat import DAT
from opbench.models.intern_image import FlashInternImage, InternImage
from opbench.models.parcnet_v2 import ParCNetV2
from opbench.models.replknet import RepLKNet
from opbench.models.slak import SLaK

__all__ = ["CATALOGUE", "Entry", "create", "names"]


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    Attributes:
        model: its class.
        arguments: of the constructor; drop_path_rate is 0, whatever the class has.
        paper: its identifier on arXiv.
        image_size: side of the images for which it is published, pixels.
    """

    model: type[Backbone]
    arguments: Mapping[str, Any]
    paper: str
    image_size: int = 224


def _intern_image(channels: int, depths: tuple[int, ...], **arguments: Any) -> Entry:  # noqa: ANN401 - the model's
    fixed = {"channels": channels, "depths": depths, "groups": _doubled(channels // 16)}
    return Entry(InternImage, {**fixed, **arguments}, "2211.05778")


def _flash(entry: Entry, **arguments: Any) -> Entry:  # noqa: ANN401 - the model's
    return replace(entry, model=FlashInternImage, arguments={**entry.arguments, **arguments}, paper="2401.06197")


def _replknet(sides: tuple[int, ...], channels: int, **arguments: Any) -> Entry:  # noqa: ANN401 - the model's
    fixed = {"large_kernel_sizes": sides, "layers": (2, 2, 18, 2), "channels": _doubled(channels), "small_kernel": 5}
    return Entry(RepLKNet, {**fixed, **arguments}, "2203.06717")


def _slak(depths: tuple[int, ...], channels: int) -> Entry:
    return Entry(SLaK, {"depths": depths, "dims": _doubled(channels), "width_factor": 1.3, "Decom": True}, "2207.03620")


def _parcnet_v2(depths: tuple[int, ...], dims: tuple[int, ...]) -> Entry:
    return Entry(ParCNetV2, {"depths": depths, "dims": dims}, "2211.07157")


def _dat(depth: int, channels: int, **arguments: Any) -> Entry:  # noqa: ANN401 - the model's
    fixed = {
        "dim_stem": channels,
        "dims": _doubled(channels),
        "depths": (2, 2, depth, 2),
        "stage_spec": (("L", "S"), ("L", "S"), ("L", "D") * (depth // 2), ("L", "D")),
        "strides": (-1, -1, 1, 1),
        "offset_range_factor": (-1, -1, 2, 2),
        "use_pes": (False, False, True, True),
    }
    return Entry(DAT, {**fixed, **arguments}, "2201.00520")


def _doubled(first: int) -> tuple[int, ...]:
    return tuple(first * 2**stage for stage in range(4))


POST_NORM = {"post_norm": True, "layer_scale": 1e-5}

_INTERN_IMAGE = {
    "t": _intern_image(64, (4, 4, 18, 4)),
    "s": _intern_image(80, (4, 4, 21, 4), **POST_NORM),
    "b": _intern_image(112, (4, 4, 21, 4), **POST_NORM),
    "l": replace(_intern_image(160, (5, 5, 22, 5), offset_scale=2.0, **POST_NORM), image_size=384),
    "xl": replace(_intern_image(192, (5, 5, 24, 5), offset_scale=2.0, **POST_NORM), image_size=384),
    "h": _intern_image(
        320,
        (6, 6, 32, 6),
        groups=(10, 20, 40, 80),
        dw_kernel_size=5,
        res_post_norm=True,
        level2_post_norm=True,
        level2_post_norm_block_ids=(5, 11, 17, 23, 29),
        center_feature_scale=True,
        use_clip_projector=True,
    ),
}

_FLASH_INTERN_IMAGE = {
    "t": _flash(_INTERN_IMAGE["t"], offset_scale=1.0),
    "s": _flash(_INTERN_IMAGE["s"], offset_scale=1.0, dw_kernel_size=3),
    "b": _flash(_INTERN_IMAGE["b"], offset_scale=0.5, dw_kernel_size=3),
    "l": _flash(_INTERN_IMAGE["l"], offset_scale=2.0, dw_kernel_size=3, mlp_fc2_bias=True, dcn_output_bias=True),
}

_REPLKNET = {
    "31b": _replknet((31, 29, 27, 13), 128),
    "31l": replace(_replknet((31, 29, 27, 13), 192), image_size=384),
    "xl": replace(_replknet((27, 27, 27, 13), 256, small_kernel=None, dw_ratio=1.5), image_size=320),
}

_SLAK = {
    "tiny": _slak((3, 3, 9, 3), 96),
    "small": _slak((3, 3, 27, 3), 96),
    "base": _slak((3, 3, 27, 3), 128),
}

_PARCNET_V2 = {
    "xt": _parcnet_v2((3, 3, 9, 2), (48, 96, 192, 320)),
    "tiny": _parcnet_v2((3, 3, 12, 3), (64, 128, 320, 512)),
    "small": _parcnet_v2((3, 9, 24, 3), (64, 128, 320, 512)),
    "base": _parcnet_v2((3, 9, 24, 3), (96, 192, 384, 576)),
}

_DAT = {
    "tiny": _dat(6, 96, heads=(3, 6, 12, 24), groups=(-1, -1, 3, 6)),
    "small": _dat(18, 96, heads=(3, 6, 12, 24), groups=(-1, -1, 3, 6)),
    "base": _dat(18, 128, heads=(4, 8, 16, 32), groups=(-1, -1, 4, 8)),
}

CATALOGUE: dict[str, Entry] = {
    **{f"internimage_{size}": entry for size, entry in _INTERN_IMAGE.items()},
    **{f"flash_internimage_{size}": entry for size, entry in _FLASH_INTERN_IMAGE.items()},
    **{f"replknet_{size}": entry for size, entry in _REPLKNET.items()},
    **{f"slak_{size}": entry for size, entry in _SLAK.items()},
    **{f"parcnetv2_{size}": entry for size, entry in _PARCNET_V2.items()},
    **{f"dat_{size}": entry for size, entry in _DAT.items()},
}
"""Every model by name."""


def names() -> list[str]:
    """The models that `create` knows, family by family."""
    return list(CATALOGUE)


def create(name: str, **changes: Any) -> Backbone:  # noqa: ANN401 - the model's arguments
    """A model with random weights and 1000 classes, in the authors' configuration; on torch's default device.

    `with torch.device("meta"):` makes one without memory for its parameters.

    Args:
        name: one of `names()`.
        changes: arguments of the model's constructor that differ, such as num_classes, drop_path_rate (0 unless given)
            or with_cp; and for InternImage and FlashInternImage `operator`, which puts "dcnv3", "dcnv4",
            "window_attention" or "conv3x3" in the place of theirs, and "none" nothing.

    Raises:
        ValueError: an unknown name, operator, or value of an argument.
        TypeError: an argument that the constructor does not have.
    """
    if name not in CATALOGUE:
        near = get_close_matches(name, CATALOGUE, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(CATALOGUE)}"
        raise ValueError(f"no model {name!r}; {hint}")
    entry = CATALOGUE[name]
    if "operator" in changes:
        changes["core_op"] = _core_op(name, entry, changes.pop("operator"))
    return entry.model(**{"drop_path_rate": 0.0, **entry.arguments, **changes})


def _core_op(name: str, entry: Entry, operator: str) -> str:
    if not issubclass(entry.model, InternImage):
        raise ValueError(f"{name} has no operator to replace; InternImage and FlashInternImage do")
    if operator not in OPERATOR_NAMES:
        raise ValueError(f"operator must be one of {', '.join(OPERATOR_NAMES)}, got {operator!r}")
    return OPERATOR_NAMES[operator]
