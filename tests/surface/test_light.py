"""The command line is light: no ML library is imported to help, check, plan or print the schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "transformers", "numpy", "datasets", "pandas", "pyarrow", "httpx", "rich", "safetensors")


def imported(*arguments: str) -> set[str]:
    """Return the top-level modules that a command imports."""
    program = (
        "import sys, json\nfrom tunesmith.cli.app import main\n"
        f"code = main({list(arguments)!r})\n"
        "print('MODULES', code, ' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    code, *modules = done.stdout.splitlines()[-1].removeprefix("MODULES ").split()
    assert code == "0", done.stdout + done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("run", "--help"),
        ("schema",),
        ("bfcl", "categories"),
        ("check", "recipes/quickstart.yaml"),
        ("plan", "recipes/quickstart.yaml"),
    ],
    ids=" ".join,
)
def test_no_heavy_library_is_imported(arguments: tuple[str, ...]) -> None:
    assert not imported(*arguments) & set(HEAVY)


def test_help_does_not_even_read_yaml() -> None:
    assert not imported("--help") & {"yaml", "argparse", "jinja2", "tokenizers", "dataclasses_json"}
