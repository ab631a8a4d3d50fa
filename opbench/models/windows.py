"""Images cut into windows, and Swin's relative positions inside one."""

import torch

__all__ = ["merge", "partition", "relative_position_index"]


def partition(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """(N, H, W, C) to (N * windows, pixels of a window, C); `window` (height, width) divides H and W."""
    batch, height, width, channels = x.shape
    tall, wide = window
    rows, columns = height // tall, width // wide
    return x.reshape(batch, rows, tall, columns, wide, channels).transpose(2, 3).reshape(-1, tall * wide, channels)


def merge(windows: torch.Tensor, window: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """What partition made, to (N, height, width, C)."""
    tall, wide = window
    split = windows.view(-1, height // tall, width // wide, tall, wide, windows.shape[-1])
    return split.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def relative_position_index(window: tuple[int, int], device: torch.device | None = None) -> torch.Tensor:
    """Row of Swin's table of relative positions for each pair of pixels, (pixels, pixels) of int64."""
    rows, columns = (torch.arange(side, device=device) for side in window)
    down = rows[:, None] - rows[None, :] + window[0] - 1  # from 0
    right = columns[:, None] - columns[None, :] + window[1] - 1
    both = down[:, None, :, None] * (2 * window[1] - 1) + right[None, :, None, :]
    pixels = window[0] * window[1]
    return both.reshape(pixels, pixels)
