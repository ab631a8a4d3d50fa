"""A launch of a Triton kernel with everything that it takes, and what every kernel's tiles are made of."""

from typing import Any, NamedTuple

import torch
import triton

__all__ = ["INDEX_LIMIT", "VECTOR_BYTES", "WARP_SIZE", "Arguments", "Launch", "place_in_vector"]

WARP_SIZE = 32
VECTOR_BYTES = 16
"""The widest load of a lane."""
INDEX_LIMIT = 2**31
"""Distances between two elements of an image, and counts of rows, of at least this are 64-bit."""

Arguments = tuple[torch.Tensor | int | float, ...]
"""Tensors first, then scalars, in the kernel's order."""


class Launch(NamedTuple):
    """A kernel with everything that a launch takes.

    Attributes:
        kernel: of a *_triton module.
        arguments: tensors, then scalars, in the kernel's order.
        constants: compile-time constants by name.
        options: of Triton's compiler, such as num_warps.
        grid: programs along each axis.
    """

    kernel: Any
    arguments: Arguments
    constants: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]

    @classmethod
    def over_rows(cls, kernel: object, arguments: Arguments, constants: dict[str, Any], num_warps: int) -> "Launch":
        """A launch whose first scalar argument is the number of rows."""
        rows = next(argument for argument in arguments if isinstance(argument, int))
        # Triton 3.9 warns where enable_fp_fusion is left to the default.
        options = {"num_warps": num_warps, "enable_fp_fusion": True}
        return cls(kernel, arguments, constants, options, (triton.cdiv(rows, constants["BLOCK_ROWS"]),))

    def __call__(self) -> None:
        """Launch on the device of the first tensor."""
        with torch.cuda.device_of(self.arguments[0]):
            self.kernel[self.grid](*self.arguments, **self.constants, **self.options)


def place_in_vector(tensor: torch.Tensor) -> int:
    """Bytes from the last multiple of a vector's to the start of a tensor, in memory from torch's allocator."""
    return int(tensor.storage_offset()) * tensor.element_size() % VECTOR_BYTES
