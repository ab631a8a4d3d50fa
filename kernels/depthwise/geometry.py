"""A depthwise kernel's size and padding, at stride 1."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Kernel"]


class Kernel(NamedTuple):
    """Size of a kernel and the zeros around the image; as many on opposite sides.

    Attributes:
        height, width: of the kernel, pixels.
        pad_h: rows of zeros above and below, fewer than `height`.
        pad_w: columns of zeros left and right, fewer than `width`.
    """

    height: int
    width: int
    pad_h: int
    pad_w: int

    @property
    def taps(self) -> int:
        """Weights of a channel."""
        return self.height * self.width

    @property
    def transposed(self) -> "Kernel":
        """The kernel that takes the output's gradient to the input's; its weights are flipped."""
        return Kernel(self.height, self.width, self.height - 1 - self.pad_h, self.width - 1 - self.pad_w)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(Ho, Wo) of an image of that size; not positive where the kernel is larger than the padded image."""
        return height + 2 * self.pad_h - self.height + 1, width + 2 * self.pad_w - self.width + 1

    @classmethod
    def unflatten(cls, numbers: Sequence[int]) -> tuple["Kernel", ...]:
        """Kernels from the numbers of them all, one after the other, as an operator's argument has them."""
        return tuple(cls(*numbers[first : first + 4]) for first in range(0, len(numbers), 4))
