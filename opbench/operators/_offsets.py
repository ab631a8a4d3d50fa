"""Offsets of the operators that gather: how far from their grid the points lie, and how that is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from opbench.workload.case import Case, Level, SettingValue
from opbench.workload.file_setting import FileSetting
from opbench.workload.offset_file import load_offsets, spread_px, take_offsets
from opbench.workload.operator import Setting

if TYPE_CHECKING:
    import torch

SETTINGS = {
    "offset_std_px": Setting(1.0, 0.0, "standard deviation of the offsets, pixels"),
    "offset_distribution": Setting(
        "normal",
        ("normal", "uniform", "zero", "trained:FILE"),
        "of the offsets; uniform: from -r to r, r = sqrt(3) offset_std_px; trained: as a file of opbench.save_offsets "
        "has them; zero and trained have an offset_std_px of their own",
        added_later=True,
    ),
}
"""Of every operator whose offsets are inputs or follow from a Linear or a convolution of normal inputs."""


def implied_settings(settings: Mapping[str, SettingValue]) -> dict[str, SettingValue]:
    """offset_std_px where it follows from the distribution: 0 of zero, and the file's.

    Raises:
        UsageError: a file that does not hold offsets.
    """
    distribution = settings["offset_distribution"]
    if isinstance(distribution, FileSetting):
        return {"offset_std_px": spread_px(load_offsets(distribution))}
    return {"offset_std_px": 0.0} if distribution == "zero" else {}


def not_applicable(case: Case) -> str | None:
    """Why the case cannot have its distribution, or None: what a module predicts from normal inputs is normal."""
    distribution = _distribution(case)
    if case.level is Level.CORE or distribution in ("normal", "zero"):
        return None
    word = distribution.partition(":")[0]
    return f"a module predicts its offsets, and of normal inputs they are normal: {word} offsets are of --level core"


def distributed(case: Case, noise: torch.Tensor) -> torch.Tensor:
    """The core's offsets, pixels, of the case's distribution: (B, H, W, ..., 2), pairs (x, y).

    Args:
        case: at core level.
        noise: standard normal numbers of that shape. Uniform offsets are their quantiles; measured ones need none.
    """
    import torch

    distribution, std = _distribution(case), case.float_setting("offset_std_px")
    if isinstance(distribution, FileSetting):
        batch, height, width, *taps, _ = noise.shape
        taken = take_offsets(load_offsets(distribution), (batch, height, width, math.prod(taps)))
        return torch.from_numpy(taken).to(noise.device).view(noise.shape)
    if distribution == "uniform":
        return torch.erf(noise * 0.5**0.5) * (3**0.5 * std)
    return noise * std


def _distribution(case: Case) -> str:
    """Of the case's offsets; a case that does not name it has the default."""
    value = case.setting("offset_distribution", SETTINGS["offset_distribution"].default)
    assert isinstance(value, str)  # noqa: S101 - the setting's values are words
    return value
