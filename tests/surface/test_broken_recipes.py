"""Each broken recipe gives clear problems at the right line, through the real command, and never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe_cases.expected import CASES
from tunesmith.cli.app import main

FOLDER = Path(__file__).parent.parent / "recipe_cases"


def test_every_case_has_an_expectation() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(CASES)
    assert len(CASES) >= 50


@pytest.mark.parametrize("name", sorted(CASES))
def test_broken_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line, what, do = CASES[name]
    path = FOLDER / f"{name}.yaml"
    code = main(["check", str(path)])
    told = capsys.readouterr().err
    assert code == 2
    assert what in told and do in told, told
    assert "Traceback" not in told and "bug" not in told
    if line is not None:
        assert f"{path}:{line}" in told, told
