"""Files of measured offsets: how one is written, read, and laid over a case of any shape."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbench.errors import UsageError
from opbench.files import write_whole

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from opbench.workload.file_setting import FileSetting

    Array = npt.NDArray[Any]

__all__ = ["load_offsets", "save_offsets", "spread_px", "take_offsets"]

AXES = "(images, height, width, taps, 2)"
ORDERS = ("xy", "yx")


def save_offsets(
    path: str | Path, offsets: Array | torch.Tensor | Iterable[Array | torch.Tensor], *, order: str
) -> None:
    """Write offsets that a model predicted, for `--set OPERATOR.offset_distribution=trained:FILE`.

    The file is NumPy's .npy with one float32 array (images, height, width, taps, 2) of pairs (x, y) in pixels.

    Args:
        path: of the file, by convention NAME.npy.
        offsets: NHWC, (images, height, width, ..., 2), in pixels of the map that is sampled: the axes between width and
            the pair become taps, such as groups x points of DCNv3 and DCNv4, or heads x levels x points of deformable
            attention, in this order. Several are joined along images, so all but the first axis must agree.
        order: of a pair: "xy", as DCNv3, DCNv4 and deformable attention have it, or "yx", as DCNv2 has it.

    Raises:
        UsageError: another order, or no such array, or numbers that are not finite.
        StorageError: the file cannot be written.
    """
    import numpy as np

    if order not in ORDERS:
        raise UsageError(f"order must be of {', '.join(ORDERS)}, got {order!r}")
    parts = [offsets] if hasattr(offsets, "ndim") else list(offsets)
    arrays = [np.asarray(part.detach().cpu().float() if hasattr(part, "detach") else part) for part in parts]
    shaped = []
    for array in arrays:
        if array.ndim < 4 or array.shape[-1] != 2:
            raise UsageError(f"offsets must be (images, height, width, ..., 2), got {array.shape}")
        shaped.append(array.reshape(*array.shape[:3], math.prod(array.shape[3:-1]), 2))
    if len({array.shape[1:] for array in shaped}) != 1:
        raise UsageError(f"offsets must agree in all but the first axis, got {[array.shape for array in arrays]}")
    joined = np.concatenate(shaped).astype(np.float32)
    written = io.BytesIO()
    np.save(written, _checked(joined[..., ::-1] if order == "yx" else joined, str(path)), allow_pickle=False)
    write_whole(Path(path), written.getvalue())


def load_offsets(setting: FileSetting) -> Array:
    """The float32 array (images, height, width, taps, 2) of a file, pairs (x, y) in pixels.

    Raises:
        UsageError: the file is not what save_offsets writes.
        OSError, ValueError: as FileSetting.content.
    """
    import numpy as np

    content = setting.content()
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{setting.path} is no .npy file of numbers: {error}") from None
    return _checked(array, setting.path)


def spread_px(array: Array) -> float:
    """Standard deviation of a file's offsets, pixels, to four digits."""
    return float(f"{array.astype('float64').std():.4g}")


def take_offsets(array: Array, shape: tuple[int, int, int, int]) -> Array:
    """A file's offsets for a case: (batch, height, width, taps, 2), of `shape` but for the pair.

    Each pixel takes the offsets of one pixel of the file. A smaller case takes the middle of the file's map; beyond the
    edge of a larger one the map goes on mirrored, so neighbours stay neighbours. Images and taps are taken in order,
    and again from the first one where the file has fewer.
    """
    import numpy as np

    batch, height, width, taps = shape
    images, rows, columns, file_taps, _ = array.shape
    found = array[np.arange(batch) % images]
    found = found[:, _mirrored(height, rows)][:, :, _mirrored(width, columns)]
    return np.ascontiguousarray(found[..., np.arange(taps) % file_taps, :])


def _mirrored(length: int, there: int) -> Array:
    import numpy as np

    if length <= there:
        return np.arange(length) + (there - length) // 2
    place = np.arange(length) % (2 * there)
    return np.where(place < there, place, 2 * there - 1 - place)


def _checked(array: Array, path: str) -> Array:
    """The array in float32 where it has the file's axes and numbers."""
    import numpy as np

    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim != 5 or array.shape[-1] != 2:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UsageError(f"{path} must hold an array of numbers {AXES}, got {found}")
    if not array.size:
        raise UsageError(f"{path} holds no offsets: {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError(f"{path} holds offsets that are not finite")
    return array.astype(np.float32)
