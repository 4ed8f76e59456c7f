"""A file system in memory: a tree of files and directories, and the place in it where commands act."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.evaluate.bfcl.multi_turn.apis.surroundings import Surroundings
from tunesmith.evaluate.bfcl.multi_turn.apis.tree import Directory, File

_FORBIDDEN_IN_NAMES = '|/\\?%*:"><'
_MAX_DEPTH = 200  # of a search; only a directory copied into itself is deeper


def _has_forbidden_character(name: str) -> bool:
    return any(character in name for character in _FORBIDDEN_IN_NAMES)


class GorillaFileSystem:
    """This tool is a simple file system: directories to walk through and to make, files to make, read and write."""

    def __init__(self, scenario: dict[str, Any], surroundings: Surroundings) -> None:
        self._budget, self._extras = surroundings.budget, surroundings.long_context
        self.root = Directory("/")
        if "root" in scenario:
            name, tree = next(iter(scenario["root"].items()))
            self.root = Directory(name)
            self._fill(self.root, tree["contents"])
        self._here = self.root

    def _fill(self, directory: Directory, contents: dict[str, Any]) -> None:
        """Make what a scenario describes; with long context, files grow a tail and the innermost directories fill."""
        is_innermost = True
        for name, described in contents.items():
            if described["type"] == "directory":
                is_innermost = False
                child = Directory(name, directory)
                self._fill(child, described["contents"])
                directory.contents[name] = child
            elif described["type"] == "file":
                content = described["content"]
                if self._extras and name not in self._extras.files_as_they_are:
                    content += self._extras.file_tail
                directory.contents[name] = File(name, content)
        if is_innermost and self._extras:
            for name in self._extras.file_names:
                directory.add_file(name)

    def pwd(self) -> dict[str, Any]:
        """Return the path of the current directory."""
        names: list[str] = []
        directory: Directory | None = self._here
        while directory is not None:
            self._budget.steps()
            names.append(directory.name)
            directory = directory.parent
        return {"current_working_directory": "/" + "/".join(reversed(names))}

    def ls(self, a: bool = False) -> dict[str, Any]:
        """List what is in the current directory.

        Args:
            a: Whether to show hidden entries, too.
        """
        self._budget.steps(len(self._here.contents))
        return {"current_directory_content": [name for name in self._here.contents if a or not name.startswith(".")]}

    def cd(self, folder: str) -> dict[str, Any]:
        """Go to another directory, one level at a time.

        Args:
            folder: Name of a directory in the current one, or '..', '.' or '/'.
        """
        folder = folder.rstrip("/") or "/"
        if folder not in (".", "..", "/") and "/" in folder:
            return {"error": f"cd: {folder}: Unsupported path. Only one folder level at a time is supported."}
        if folder == "..":
            if self._here.parent:
                self._here = self._here.parent
                return {}
            if self.root == self._here:
                return {"error": "Current directory is already the root. Cannot go back."}
            return {"error": "cd: ..: No such directory"}
        found = self._directory_at(folder)
        if found is None:
            return {"error": f"cd: '{folder}': No such file or directory"}
        self._here = found
        return {"current_working_directory": found.name}

    def mkdir(self, dir_name: str) -> dict[str, Any] | None:
        """Make a directory in the current one.

        Args:
            dir_name: Its name; no path.
        """
        if _has_forbidden_character(dir_name):
            return {"error": f"mkdir: cannot create directory '{dir_name}': Invalid character"}
        if dir_name in self._here.contents:
            return {"error": f"mkdir: cannot create directory '{dir_name}': File exists"}
        self._here.add_directory(dir_name)
        return None

    def touch(self, file_name: str) -> dict[str, Any] | None:
        """Make an empty file in the current directory.

        Args:
            file_name: Its name; no path.
        """
        if _has_forbidden_character(file_name):
            return {"error": f"touch: cannot touch '{file_name}': Invalid character"}
        if file_name in self._here.contents:
            return {"error": f"touch: cannot touch '{file_name}': File exists"}
        self._here.add_file(file_name)
        return None

    def echo(self, content: str, file_name: str | None = None) -> dict[str, Any] | None:
        """Write text to a file of the current directory in place of what it holds, or show the text.

        Args:
            content: The text.
            file_name: An existing file; without it the text is shown.
        """
        if file_name is None:
            return {"terminal_output": content}
        if _has_forbidden_character(file_name):
            return {"error": f"echo: cannot write to '{file_name}': Invalid character"}
        if not file_name:
            return {"terminal_output": content}
        if file_name not in self._here.contents:
            return {"error": f"echo: cannot write to '{file_name}': No such file"}
        item = self._entry(file_name)
        if not isinstance(item, File):
            raise AttributeError(f"'{type(item).__name__}' object has no attribute '_write'")
        item.content = content
        return None

    def cat(self, file_name: str) -> dict[str, Any]:
        """Show what a file of the current directory holds.

        Args:
            file_name: Its name; no path.
        """
        if _has_forbidden_character(file_name):
            return {"error": f"cat: '{file_name}': Invalid character"}
        if file_name not in self._here.contents:
            return {"error": f"cat: '{file_name}': No such file or directory"}
        item = self._entry(file_name)
        if not isinstance(item, File):
            return {"error": f"cat: '{file_name}': Is a directory"}
        return {"file_content": item.content}

    def find(self, path: str = ".", name: str | None = None) -> dict[str, Any]:
        """Find files and directories at or below a path.

        Args:
            path: Where to begin.
            name: What their names must contain; without it everything is found.
        """
        start = self._directory_at(path)
        if start is None:
            return {"error": f"find: '{path}': No such file or directory"}
        return {"matches": list(self._search(start, path.rstrip("/"), name, 0))}

    def _search(self, directory: Directory, path: str, wanted: str | None, depth: int) -> Iterator[str]:
        if depth > _MAX_DEPTH:
            raise RecursionError("maximum recursion depth exceeded while calling a Python object")
        for name, item in directory.contents.items():
            found = f"{path}/{name}"
            self._budget.steps()
            self._budget.characters(len(found))
            if wanted is None or wanted in name:
                yield found
            if isinstance(item, Directory):
                yield from self._search(item, found, wanted, depth + 1)

    def wc(self, file_name: str, mode: str = "l") -> dict[str, Any]:
        """Count the lines, words or characters of a file of the current directory.

        Args:
            file_name: Its name; no path.
            mode: 'l' for lines, 'w' for words, 'c' for characters.
        """
        if mode not in ["l", "w", "c"]:
            return {"error": f"wc: invalid mode '{mode}'"}
        text = self._text_of(file_name)
        if text is None:
            return {"error": f"wc: {file_name}: No such file or directory"}
        if mode == "l":
            return {"count": len(text.splitlines()), "type": "lines"}
        if mode == "w":
            return {"count": len(text.split()), "type": "words"}
        return {"count": len(text), "type": "characters"}

    def sort(self, file_name: str) -> dict[str, Any]:
        """Show the lines of a file of the current directory in order; the file stays as it is.

        Args:
            file_name: Its name; no path.
        """
        text = self._text_of(file_name)
        if text is None:
            return {"error": f"sort: {file_name}: No such file or directory"}
        return {"sorted_content": "\n".join(sorted(text.splitlines()))}

    def grep(self, file_name: str, pattern: str) -> dict[str, Any]:
        """Show the lines of a file of the current directory that contain a text.

        Args:
            file_name: Its name; no path.
            pattern: The text, letter by letter.
        """
        text = self._text_of(file_name)
        if text is None:
            return {"error": f"grep: {file_name}: No such file or directory"}
        return {"matching_lines": [line for line in text.splitlines() if pattern in line]}

    def du(self, human_readable: bool = False) -> dict[str, Any]:
        """Tell how many bytes the current directory and everything below it take.

        Args:
            human_readable: Whether to use units such as KB and MB.
        """
        num_bytes: float = self._size_bytes(self._here, 0)
        if not human_readable:
            return {"disk_usage": f"{num_bytes} bytes"}
        for unit in ("B", "KB", "MB", "GB", "TB"):
            if num_bytes < 1024:
                return {"disk_usage": f"{num_bytes:.2f} {unit}"}
            num_bytes /= 1024
        return {"disk_usage": f"{num_bytes:.2f} PB"}

    def _size_bytes(self, item: File | Directory, depth: int) -> int:
        self._budget.steps()
        if depth > _MAX_DEPTH:
            raise RecursionError("maximum recursion depth exceeded")
        if isinstance(item, Directory):
            return sum(self._size_bytes(child, depth + 1) for child in item.contents.values())
        self._budget.characters(item.num_characters)
        return len(item.content.encode("utf-8"))

    def tail(self, file_name: str, lines: int = 10) -> dict[str, Any]:
        """Show the last lines of a file of the current directory.

        Args:
            file_name: Its name; no path.
            lines: How many.
        """
        text = self._text_of(file_name)
        if text is None:
            return {"error": f"tail: {file_name}: No such file or directory"}
        all_lines = text.splitlines()
        if lines > len(all_lines):
            lines = len(all_lines)
        return {"last_lines": "\n".join(all_lines[-lines:])}

    def diff(self, file_name1: str, file_name2: str) -> dict[str, Any]:
        """Show where two files of the current directory differ, line by line up to the end of the shorter one.

        Args:
            file_name1: One name; no path.
            file_name2: The other.
        """
        missing = {"error": f"diff: {file_name1} or {file_name2}: No such file or directory"}
        if not (file_name1 in self._here.contents and file_name2 in self._here.contents):
            return missing
        left, right = self._text_of(file_name1), self._text_of(file_name2)
        if left is None or right is None:
            return missing
        pairs = zip(left.splitlines(), right.splitlines(), strict=False)
        return {"diff_lines": "\n".join(f"- {old}\n+ {new}" for old, new in pairs if old != new)}

    def mv(self, source: str, destination: str) -> dict[str, Any]:
        """Move a file or directory of the current directory into another directory here, or give it a new name.

        Args:
            source: Its name; no path.
            destination: A directory here, or the new name; no path.
        """
        return self._transfer("mv", source, destination)

    def cp(self, source: str, destination: str) -> dict[str, Any]:
        """Copy a file or directory of the current directory into another directory here, or under a new name.

        Args:
            source: Its name; no path.
            destination: A directory here, or the name of the copy; no path.
        """
        return self._transfer("cp", source, destination)

    def _transfer(self, command: str, source: str, destination: str) -> dict[str, Any]:
        """Move or copy.

        A directory arrives as a new one that holds the very same entries: after a copy, writing to a file is seen
        under both names, and from within a moved subdirectory `..` leads to the directory that is no more.
        """
        verb, done = ("move", "moved") if command == "mv" else ("copy", "copied")
        here = self._here
        if source not in here.contents:
            return {"error": f"{command}: cannot {verb} '{source}': No such file or directory"}
        item = self._entry(source)
        if "/" in destination:
            return {"error": f"{command}: path not allowed in destination. Provide only a file or directory name."}
        target, name, told = here, destination, destination
        if destination in here.contents:
            inside = self._entry(destination)
            if not isinstance(inside, Directory):
                return {"error": f"{command}: cannot {verb} '{source}' to '{destination}': Not a directory"}
            target, name, told = inside, source, f"{destination}/{source}"
            # A copy is refused by `add_file` and `add_directory`, with their words, and not here.
            if command == "mv" and source in inside.contents:
                return {"error": f"mv: cannot move '{source}' to '{destination}/{source}': File exists"}
        if command == "mv":
            here.contents.pop(source)
        if isinstance(item, File):
            self._budget.characters(item.num_characters)
            target.add_file(name, item.content)
        else:
            made = target.add_directory(name)
            self._budget.steps(len(item.contents))
            made.contents = item.contents if command == "mv" else item.contents.copy()
        return {"result": f"'{source}' {done} to '{told}'"}

    def rm(self, file_name: str) -> dict[str, Any]:
        """Remove a file or directory of the current directory, with all it holds.

        Args:
            file_name: Its name; no path.
        """
        if file_name not in self._here.contents:
            return {"error": f"rm: cannot remove '{file_name}': No such file or directory"}
        self._entry(file_name)
        self._here.contents.pop(file_name)
        return {"result": f"'{file_name}' removed"}

    def rmdir(self, dir_name: str) -> dict[str, Any]:
        """Remove an empty directory of the current directory.

        Args:
            dir_name: Its name; no path.
        """
        if dir_name not in self._here.contents:
            return {"error": f"rmdir: cannot remove '{dir_name}': No such file or directory"}
        item = self._entry(dir_name)
        if not isinstance(item, Directory):
            return {"error": f"rmdir: cannot remove '{dir_name}': Not a directory"}
        if item.contents:
            return {"error": f"rmdir: cannot remove '{dir_name}': Directory not empty"}
        self._here.contents.pop(dir_name)
        return {"result": f"'{dir_name}' removed"}

    def _entry(self, name: str) -> File | Directory:
        return self._here if name == "." else self._here.contents[name]

    def _text_of(self, name: str) -> str | None:
        """Return what a file of the current directory holds; None when there is no such file."""
        item = self._entry(name) if name in self._here.contents else None
        if not isinstance(item, File):
            return None
        self._budget.characters(item.num_characters)
        text: str = item.content
        return text

    def _directory_at(self, path: str | None) -> Directory | None:
        """Return the directory at a path, from here or from the root; None when there is none."""
        if path is None or path == ".":
            return self._here
        if path == "/":
            return self.root
        names = path.strip("/").split("/")
        directory = self.root if path.startswith("/") else self._here
        for name in names:
            self._budget.steps()
            found = directory if name == "." else directory.contents.get(name)
            if not isinstance(found, Directory):
                return None
            directory = found
        return directory
