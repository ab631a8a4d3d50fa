"""What is measured: a Shape, a Case (operator at one shape, dtype, level and direction), a Cell (case x provider)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

from opbench.workload.file_setting import FileSetting

__all__ = [
    "NETWORK_LEVELS",
    "OPERATOR_DIRECTIONS",
    "OPERATOR_LEVELS",
    "Case",
    "Cell",
    "Direction",
    "Dtype",
    "Level",
    "SettingValue",
    "Shape",
]

SettingValue = int | float | str

NETWORK_COUNTS = ("parameter_count", "mac_count")
"""Of a cell; only a network's are stored."""
MAX_NAME_LENGTH = 255
MAX_COUNT = 2**63
"""What a 64-bit integer column holds."""


class Level(StrEnum):
    """How much is timed: an operator has the first two, a network the last two."""

    MODULE = "module"
    """With its linear projections, as in the published tables."""
    CORE = "core"
    """The operator alone."""
    BLOCK = "block"
    """Of a network one residual block."""
    MODEL = "model"
    """A whole network, from images to logits."""


OPERATOR_LEVELS = (Level.MODULE, Level.CORE)
NETWORK_LEVELS = (Level.MODEL, Level.BLOCK)


class Direction(StrEnum):
    """Which pass is timed."""

    FWD = "fwd"
    BWD = "bwd"
    FWD_BWD = "fwd_bwd"
    TRAIN = "train"
    """Of a network: a forward and a backward pass in training, and a step of SGD, in one launch."""


OPERATOR_DIRECTIONS = (Direction.FWD, Direction.BWD, Direction.FWD_BWD)


class Dtype(StrEnum):
    """Storage and arithmetic of a case."""

    FP32 = "fp32"
    """float32, strict: no TF32 anywhere."""
    TF32 = "tf32"
    """float32 storage, TF32 matrix products and convolutions (CUDA only)."""
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def torch_name(self) -> str:
        """Name of the torch dtype that tensors are stored in."""
        return {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}[self.value]

    @property
    def element_bytes(self) -> int:
        """Bytes per stored element."""
        return 4 if self in (Dtype.FP32, Dtype.TF32) else 2

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one rounding to nearest, in the arithmetic that the dtype names."""
        return 2.0 ** {"fp32": -24, "tf32": -11, "fp16": -11, "bf16": -8}[self.value]


@dataclass(frozen=True, slots=True)
class Shape:
    """Input of an operator in NHWC: batch, height, width, channels."""

    batch: int
    height: int
    width: int
    channels: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}x{self.channels}"

    @property
    def pixels(self) -> int:
        """batch * height * width."""
        return self.batch * self.height * self.width

    @property
    def elements(self) -> int:
        """batch * height * width * channels."""
        return self.pixels * self.channels


@dataclass(frozen=True, slots=True)
class Case:
    """One operator at one level, direction, shape, dtype and choice of settings."""

    operator: str
    level: Level
    direction: Direction
    shape_list: str
    shape: Shape
    dtype: Dtype
    settings: tuple[tuple[str, SettingValue], ...] = ()

    @property
    def key(self) -> str:
        """A stable text that names this case and no other."""
        return "/".join((self.operator, self.level, self.direction, self.shape_list, str(self.shape), self.dtype)) + (
            f"/{self.settings_text}" if self.settings else ""
        )

    @property
    def settings_text(self) -> str:
        """The settings as `name=value;name=value`."""
        return ";".join(f"{name}={value}" for name, value in self.settings)

    def labels(self) -> dict[str, str]:
        """The texts that name this case in the columns of a frame."""
        return {
            "operator": self.operator,
            "level": str(self.level),
            "direction": str(self.direction),
            "shape_list": self.shape_list,
            "shape": str(self.shape),
            "dtype": str(self.dtype),
            "settings": self.settings_text,
        }

    def setting(self, name: str, default: SettingValue | None = None) -> SettingValue:
        """The value of one setting, or the default where the case has none of that name; KeyError without a default."""
        settings = dict(self.settings)
        return settings[name] if default is None else settings.get(name, default)

    def int_setting(self, name: str) -> int:
        """The value of one setting, as an integer."""
        return int(self.setting(name))

    def float_setting(self, name: str) -> float:
        """The value of one setting, as a float."""
        return float(self.setting(name))


@dataclass(frozen=True, slots=True)
class Cell:
    """One case under one provider, with what is known about it before it runs."""

    case: Case
    provider: str
    flop_count: int
    bytes_moved: int
    memory_bytes: int
    """Estimated peak memory of the timed pass."""
    gathered_bytes: int = 0
    """As Operator.gathered_bytes; 0 in older plans."""
    parameter_count: int = 0
    mac_count: int = 0
    """As of Operator: 0 but for networks."""

    @property
    def key(self) -> str:
        """A stable text that names this cell and no other."""
        return f"{self.case.key}@{self.provider}"

    def to_json(self) -> dict[str, Any]:
        """A flat dictionary that from_json reads back."""
        case = self.case
        return {
            "operator": case.operator,
            "provider": self.provider,
            "level": str(case.level),
            "direction": str(case.direction),
            "shape_list": case.shape_list,
            "shape": asdict(case.shape),
            "dtype": str(case.dtype),
            "settings": {
                name: value.to_json() if isinstance(value, FileSetting) else value for name, value in case.settings
            },
            "flop_count": self.flop_count,
            "bytes_moved": self.bytes_moved,
            "memory_bytes": self.memory_bytes,
            "gathered_bytes": self.gathered_bytes,
            **{name: count for name in NETWORK_COUNTS if (count := getattr(self, name))},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The cell that to_json wrote.

        Raises:
            KeyError, TypeError, ValueError: to_json did not write that.
        """
        case = Case(
            operator=_name(data["operator"]),
            level=Level(data["level"]),
            direction=Direction(data["direction"]),
            shape_list=_name(data["shape_list"]),
            shape=Shape(**{name: _count(size, 1) for name, size in data["shape"].items()}),
            dtype=Dtype(data["dtype"]),
            settings=tuple((_name(name), _setting(value)) for name, value in data["settings"].items()),
        )
        names = ("flop_count", "bytes_moved", "memory_bytes")
        counts = {name: _count(data[name]) for name in names} | {
            name: _count(data.get(name, 0)) for name in ("gathered_bytes", *NETWORK_COUNTS)
        }
        return cls(case, _name(data["provider"]), **counts)


def _name(value: object) -> str:
    """A text that may stand in a line of a terminal and, but for its slashes, in a file's name."""
    if not (isinstance(value, str) and value.isprintable() and len(value) <= MAX_NAME_LENGTH):
        raise ValueError(f"a name must be printable text of at most {MAX_NAME_LENGTH} characters, got {value!r:.60}")
    return value


def _count(value: object, minimum: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value < MAX_COUNT:
        raise ValueError(f"a count must be an integer from {minimum} to 2**63 - 1, got {value!r:.60}")
    return value


def _setting(value: object) -> SettingValue:
    if isinstance(value, str):
        return _name(value)
    if isinstance(value, Mapping):
        file = FileSetting.from_json(value)
        _name(str(file))
        return file
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_COUNT:
        raise ValueError(f"a setting must be a number or a text, got {value!r:.60}")
    return value
