"""Warp instructions of the deformable kernels, as `opbench inspect` counts them in their machine code.

They give a bound of a launch's time: each multiprocessor issues four of them in a clock. tests/test_instructions.py
holds the figures to results/static, and prints them anew after a change of a kernel.
"""

from opbench_kernels import tuning

__all__ = ["INSTRUCTIONS_PER_POINT", "warp_instructions"]

INSTRUCTIONS_PER_POINT = {
    "sm_80": {
        "fwd-float32-vectors2": 11.25, "fwd-float32-vectors1": 17.44,
        "fwd-float16-vectors2": 7.861, "fwd-float16-vectors1": 11.15,
        "fwd-bfloat16-vectors2": 8.431, "fwd-bfloat16-vectors1": 11.75,
        "bwd-float32": 72.1, "bwd-float16": 78.32, "bwd-bfloat16": 80.38,
    },
    "sm_90": {
        "fwd-float32-vectors2": 11.49, "fwd-float32-vectors1": 18.22,
        "fwd-float16-vectors2": 8.028, "fwd-float16-vectors1": 11.31,
        "fwd-bfloat16-vectors2": 9.243, "fwd-bfloat16-vectors1": 11.89,
        "bwd-float32": 29.04, "bwd-float16": 34.4, "bwd-bfloat16": 36.4,
    },
    "sm_100": {
        "fwd-float32-vectors2": 9.514, "fwd-float32-vectors1": 16.03,
        "fwd-float16-vectors2": 7.59, "fwd-float16-vectors1": 10.92,
        "fwd-bfloat16-vectors2": 8.396, "fwd-bfloat16-vectors1": 11.72,
        "bwd-float32": 29.49, "bwd-float16": 32.04, "bwd-bfloat16": 33.29,
    },
}  # fmt: skip
"""Per sampled point of a group of 32 channels; 3x3 points. Of a kernel's variants for several widths the least."""

COUNTED_BACKWARD = (2, 1)
"""Vectors and warps of the backward kernel that was counted."""


def warp_instructions(direction: str, dtype: str, architecture: str, points: int) -> int | None:
    """Of one launch, as the last forward launch in this process was configured; None where they were not counted.

    Args:
        direction: fwd or bwd.
        dtype: torch's name.
        architecture: such as sm_90.
        points: sampled points of all groups: N * Ho * Wo * G * K.
    """
    from opbench_kernels.deform.configs import BACKWARD, FORWARD

    name = f"{direction}-{dtype}"
    if direction == "fwd":
        if FORWARD not in tuning.last_choices():
            return None
        name += f"-vectors{tuning.last_choices()[FORWARD].vectors}"
    elif tuning.last_choices().get(BACKWARD, COUNTED_BACKWARD) != COUNTED_BACKWARD:
        return None
    counted = INSTRUCTIONS_PER_POINT.get(architecture, {}).get(name)
    return None if counted is None else round(counted * points)
