"""`--as-paper`: the options that measure as the paper's published scripts do."""

from typing import Any

from opbench.device.resolve import resolve_device
from opbench.errors import UsageError
from opbench.sweeps.option_fields import Options

__all__ = ["AS_PAPER", "as_flags", "as_paper_options"]

AS_PAPER: Options = {
    "timer": "launch-sync",
    "cache": "warm",
    "dtypes": "tf32,fp16",
    "shapes": ("standard", "high_resolution", "standard_batch1"),
    "level": "module",
}
"""As `opbench.sweep` takes them. TF32 was most likely on in the published fp32 columns (docs/timing.md)."""


def as_paper_options(options: Options) -> dict[str, Any]:
    """What `--as-paper` adds to options: all of AS_PAPER that they do not give themselves.

    Raises:
        UsageError: they name no timer, and the device is not a CUDA device or does not exist.
    """
    added = {keyword: value for keyword, value in AS_PAPER.items() if options.get(keyword) is None}
    if "timer" in added and (device := resolve_device(options.get("device") or "auto")) == "cpu":
        raise UsageError(f"--as-paper needs a CUDA device, this is {device}; it stands for {as_flags(added)}")
    return added


def as_flags(options: Options) -> str:
    """Options of AS_PAPER as they are typed after `opbench sweep`."""
    return " ".join(
        f"--{keyword} {text}"
        for keyword, value in options.items()
        for text in ([value] if isinstance(value, str) else value)
    )
