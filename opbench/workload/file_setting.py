"""A setting's value that is a file: a text that names the content, and knows where the file lies."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from opbench.errors import UsageError

__all__ = ["FileSetting"]

HASH_DIGITS = 12


class FileSetting(str):
    """`WORD:NAME@HASH`: a word of a setting, the file's name without its suffix, the start of its content's SHA-256.

    The text is what a case is called and compared by. Where the file lies is no part of it, so the same file is the
    same setting on another machine, and another content under the same name is another setting.

    Attributes:
        path: of the file.
    """

    __slots__ = ("path",)
    path: str

    def __new__(cls, text: str, path: str) -> Self:
        """The setting of a text that `of` made."""
        value = super().__new__(cls, text)
        value.path = path
        return value

    @classmethod
    def of(cls, name: str, word: str, path: str) -> Self:
        """The setting of a file as it is now.

        Args:
            name: of the setting, for messages.
            word: of the setting.
            path: of the file.

        Raises:
            UsageError: the file cannot be read.
        """
        try:
            content = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            raise UsageError(f"setting {name}: cannot read {path!r}: {getattr(error, 'strerror', error)}") from None
        plain = re.sub(r"[^\w.+-]", "_", Path(path).stem)[:100]
        return cls(f"{word}:{plain}@{_hash(content)}", path)

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """What a copy is made of."""
        return type(self), (str(self), self.path)

    @property
    def word(self) -> str:
        """The setting's word."""
        return self.partition(":")[0]

    def content(self) -> bytes:
        """What the file holds.

        Raises:
            OSError: it cannot be read.
            ValueError: its content is no longer what the text names.
        """
        content = Path(self.path).read_bytes()
        if _hash(content) != self.rpartition("@")[2]:
            raise ValueError(f"{self.path} has changed since the sweep was planned")
        return content

    def to_json(self) -> dict[str, str]:
        """What from_json reads back."""
        return {"file": str(self), "path": self.path}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """The setting that to_json wrote; ValueError where it wrote another thing."""
        text, path = data.get("file"), data.get("path")
        if not (isinstance(text, str) and isinstance(path, str)):
            raise ValueError(f"a setting's file must have a text and a path, got {data!r:.60}")
        return cls(text, path)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
