"""Where a deformable convolution samples: kernel, stride, padding, dilation and the order of its points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Geometry", "geometry_of", "padded_offset_mask_channels"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sampling grid; every pair is (height, width).

    Output pixel (oy, ox) and kernel column i sample at
    x = ox * stride - padding + base - base * offset_scale + (i * dilation + dx) * offset_scale with
    base = dilation * (kernel - 1) // 2; y likewise from row j. So offset_scale scales the grid too.

    Attributes:
        kernel: points along each axis.
        stride, padding, dilation: in pixels.
        offset_scale: factor on offsets and on the grid around its centre.
        remove_center: whether the centre point is left out.
    """

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    offset_scale: float = 1.0
    remove_center: bool = False

    @property
    def points(self) -> int:
        """K, the number of sampling points."""
        return self.kernel[0] * self.kernel[1] - int(self.remove_center)

    @property
    def base(self) -> tuple[int, int]:
        """Distance from the first tap to the kernel's centre, in pixels."""
        return (
            self.dilation[0] * (self.kernel[0] - 1) // 2,
            self.dilation[1] * (self.kernel[1] - 1) // 2,
        )

    @property
    def constants(self) -> dict[str, int]:
        """What every Triton kernel is compiled with, by the names of its parameters.

        CENTER is the point from which on taps are counted one further; past the last where the centre is kept.
        """
        kernel_h, kernel_w = self.kernel
        return {
            "K": self.points,
            "KH": kernel_h,
            "PAD_H": self.padding[0],
            "PAD_W": self.padding[1],
            "DILATION_H": self.dilation[0],
            "DILATION_W": self.dilation[1],
            "CENTER": kernel_w // 2 * kernel_h + kernel_h // 2 if self.remove_center else self.points,
        }

    def taps(self) -> Iterator[tuple[int, int]]:
        """(row j, column i) of each point in order: columns outer, rows inner, the centre left out if removed."""
        for i in range(self.kernel[1]):
            for j in range(self.kernel[0]):
                if self.remove_center and (j, i) == (self.kernel[0] // 2, self.kernel[1] // 2):
                    continue
                yield j, i

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the output for an input of this size.

        Raises:
            ValueError: the padded input is smaller than the kernel.
        """
        sizes = []
        for axis, size in enumerate((height, width)):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = size + 2 * self.padding[axis] - reach
            if room < 0:
                raise ValueError(
                    f"input {height}x{width} with padding {self.padding} is smaller than the kernel's reach {reach}"
                )
            sizes.append(room // self.stride[axis] + 1)
        return sizes[0], sizes[1]


def geometry_of(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> Geometry:
    """From a torch.library operator's arguments: lists of two numbers each."""

    def pair(sizes: Sequence[int]) -> tuple[int, int]:
        height, width = sizes
        return height, width

    return Geometry(pair(kernel), pair(stride), pair(padding), pair(dilation), offset_scale, remove_center)


def padded_offset_mask_channels(groups: int, points: int) -> int:
    """Last dimension of DCNv4's packed offset_mask: 3 * points * groups rounded up to a multiple of 8."""
    return (3 * points * groups + 7) // 8 * 8
