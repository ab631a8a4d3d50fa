"""Warp instructions of the deformable kernels, as `opbench inspect` counts them in their machine code.

They give a bound of a launch's time: each multiprocessor issues four of them in a clock. tests/test_instructions.py
holds the figures to results/static, and prints them anew after a change of a kernel.
"""

from opbench_kernels import tuning

__all__ = ["INSTRUCTIONS_PER_POINT", "warp_instructions"]

INSTRUCTIONS_PER_POINT = {
    "sm_80": {
        "fwd-float32-vectors2": 11.24, "fwd-float32-vectors1": 17.42,
        "fwd-float16-vectors2": 11.92, "fwd-float16-vectors1": 15.26,
        "fwd-bfloat16-vectors2": 13.9, "fwd-bfloat16-vectors1": 17.26,
        "bwd-float32": 127.89, "bwd-float16": 123.04, "bwd-bfloat16": 125.08,
    },
    "sm_90": {
        "fwd-float32-vectors2": 11.43, "fwd-float32-vectors1": 18.19,
        "fwd-float16-vectors2": 12.09, "fwd-float16-vectors1": 15.47,
        "fwd-bfloat16-vectors2": 14.09, "fwd-bfloat16-vectors1": 17.47,
        "bwd-float32": 51.36, "bwd-float16": 55.5, "bwd-bfloat16": 57.58,
    },
    "sm_100": {
        "fwd-float32-vectors2": 9.5, "fwd-float32-vectors1": 16.0,
        "fwd-float16-vectors2": 10.04, "fwd-float16-vectors1": 13.38,
        "fwd-bfloat16-vectors2": 12.03, "fwd-bfloat16-vectors1": 15.39,
        "bwd-float32": 53.47, "bwd-float16": 56.88, "bwd-bfloat16": 58.96,
    },
}  # fmt: skip
"""Per sampled point of a group of 32 channels; 3x3 points. Of a kernel's variants for several widths the least."""


def warp_instructions(direction: str, dtype: str, architecture: str, points: int) -> int | None:
    """Of one launch, as the last forward launch in this process was configured; None where they were not counted.

    Args:
        direction: fwd or bwd.
        dtype: torch's name.
        architecture: such as sm_90.
        points: sampled points of all groups: N * Ho * Wo * G * K.
    """
    name = f"{direction}-{dtype}"
    if direction == "fwd":
        from opbench_kernels.deform.configs import FORWARD

        if FORWARD not in tuning.last_choices():
            return None
        name += f"-vectors{tuning.last_choices()[FORWARD].vectors}"
    counted = INSTRUCTIONS_PER_POINT.get(architecture, {}).get(name)
    return None if counted is None else round(counted * points)
