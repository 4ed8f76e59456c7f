"""Named files and directories, compared by name and content."""

from __future__ import annotations

from typing import Any


class File:
    """A name with text."""

    def __init__(self, name: str, content: Any = "") -> None:
        self.name, self.content = name, content

    @property
    def num_characters(self) -> int:
        """How much text there is; what was written need not be text."""
        return len(self.content) if isinstance(self.content, str) else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and (self.name, self.content) == (other.name, other.content)

    __hash__ = None  # type: ignore[assignment]


class Directory:
    """A name with files and directories; equality does not look at the parent."""

    def __init__(self, name: str, parent: Directory | None = None) -> None:
        self.name, self.parent = name, parent
        self.contents: dict[str, File | Directory] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Directory) and self.name == other.name and self.contents == other.contents

    __hash__ = None  # type: ignore[assignment]

    def add_file(self, name: str, content: Any = "") -> None:
        """Make a file.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.contents:
            raise ValueError(f"File '{name}' already exists in directory '{self.name}'.")
        self.contents[name] = File(name, content)

    def add_directory(self, name: str) -> Directory:
        """Make a directory and return it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.contents:
            raise ValueError(f"Directory '{name}' already exists in directory '{self.name}'.")
        made = self.contents[name] = Directory(name, self)
        return made
