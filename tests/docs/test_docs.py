"""What the documents promise is there: verbs, links, recipes, and generated pages that are fresh."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.cli.app import VERBS, parser_for
from tunesmith.recipe.load import load, parse_yaml

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "quickstart").glob("*.md")])


def commands() -> list[str]:
    """Return every `tunesmith …` command line that a document shows in a block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            found += [line.split("#")[0].strip() for line in block.splitlines() if line.startswith("tunesmith ")]
    return found + [example.split(" > ")[0] for verb in VERBS for example in verb.examples]


@pytest.mark.parametrize("command", commands())
def test_commands_in_documents_can_be_typed(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    verb = next(verb for verb in VERBS if verb.name == name)
    parser_for(verb).parse_args(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_named_in_the_tour_exist() -> None:
    for name in re.findall(r"`([a-z_/]+\.py|[a-z_]+/(?:[a-z_]+/)?)`", (ROOT / "docs" / "tour.md").read_text()):
        places = [ROOT / name, ROOT / "src" / "tunesmith" / name, ROOT / "src" / "tunesmith" / "recipe" / name]
        assert any(place.exists() for place in places), f"the tour names {name}"


def test_the_recipe_in_the_readme_loads(tmp_path: Path) -> None:
    block = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[0]
    path = tmp_path / "recipe.yaml"
    path.write_text(block)
    assert load(path).recipe.name == parse_yaml(block, "README.md")[0]["name"]


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_first_recipe_loads(tmp_path: Path) -> None:
    from tunesmith.cli.app import main

    path = tmp_path / "mine.yaml"
    for objective in ("sft", "dpo"):
        assert main(["init", str(path), "--objective", objective]) == 0
        assert main(["check", str(path)]) == 0
        assert main(["init", str(path)]) == 2, "nothing is overwritten"
        path.unlink()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_resolve_and_plan(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned on the quickstart's model and rows: the recipes' own lie on a Hub."""
    from tunesmith.planning import plan

    monkeypatch.chdir(ROOT)
    rows = tmp_path / "pairs.jsonl"
    pair = '{{"prompt": "Say {0}", "chosen": "{0}", "rejected": "no {0}"}}\n'
    rows.write_text("".join(pair.format(number) for number in range(40)))
    dpo = load(path).recipe.train.objective == "dpo"
    settings = ["model.name_or_path=quickstart/base"]
    if load(path).recipe.tuned is None:
        settings.append(f"data.train={rows if dpo else 'quickstart/data/train.jsonl'}")
    else:
        settings.append("tuned=quickstart/base")  # a whole model stands for what was trained
    made = plan(load(path, settings).recipe)
    if made.tuned is not None:
        assert made.training is None and "data" not in made.stages
        return
    training = made.training
    assert training is not None
    assert training.num_steps > 0 and training.data.num_tokens > 0 and training.memory.total > 0
    assert "auto" not in {str(decision.value) for decision in made.decisions}
    assert made.text().startswith(made.recipe.name)
    assert made.to_json()["data"]["num_rows"] > 0
