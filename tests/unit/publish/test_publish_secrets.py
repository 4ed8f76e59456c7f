"""Nothing that is published holds a credential, wherever one was planted; and an error never repeats it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.publish.publish_case import make_recipe, make_run
from tunesmith.artifacts import Weights
from tunesmith.cli.app import main
from tunesmith.errors import PublishError
from tunesmith.publish import stage
from tunesmith.recipe.secrets import find_secrets
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir

TOKEN = "hf_" + "aB3" * 11
KINDS = {
    TOKEN: "a Hugging Face token",
    "sk-" + "proj-" + "x1" * 20: "an API key",
    "AKIA" + "ABCDEFGH12345678": "an AWS access key",
    "ghp_" + "a1" * 18: "a GitHub token",
    "glpat-" + "a1" * 10: "a GitLab token",
    "xoxb-" + "1234567890-abc": "a Slack token",
    "AIza" + "a" * 35: "a Google API key",
    "-----BEGIN RSA PRIVATE KEY-----": "a private key",
    "https://me:hunter2@example.org/": "a password in a URL",
}


def plant(run: RunDir, name: str, content: bytes) -> None:
    """Put a file into the merged model as if the merge stage had copied it there from the base model."""
    files.write_bytes(run.merged / name, content)
    record = run.load(Weights)
    record.files[name] = files.sha256(run.merged / name)
    run.save(record)


@pytest.mark.parametrize("secret", KINDS, ids=KINDS.values())
def test_tokens_by_their_shape(secret: str) -> None:
    (found,) = find_secrets(f"one\ntwo {secret} three", {})
    assert (found.line, found.kind.startswith(KINDS[secret])) == (2, True)


@pytest.mark.parametrize(
    "text",
    ["hf_transfer", "sk-learn", "https://example.org:8080/@me", "tokenizer", "a" * 64, "${env:HF_TOKEN}", "risk-free"],
)
def test_what_is_no_token(text: str) -> None:
    assert find_secrets(text, {"HOME": text, "MY_TOKEN_FILE": text, "SHORT_TOKEN": "abc"}) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", json.dumps({"model_type": "llama", "_comment": TOKEN}).encode()),
        ("chat_template.jinja", b"{# https://me:hunter2@example.org/template #}"),
        ("tokenizer_config.json", b'{"added": "planted-by-environment"}'),
        ("model-2.safetensors", (95).to_bytes(8, "little") + b'{"__metadata__": {"by": "' + TOKEN.encode() + b'"}}'),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_planted_tokens_stay_here(
    tmp_path: Path, name: str, content: bytes, dry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "planted-by-environment")
    run = make_run(tmp_path / "run")
    plant(run, name, content)
    recipe = make_recipe(local=str(tmp_path / "models"))
    with pytest.raises(PublishError) as raised:
        stage.prepare(recipe, run) if dry else stage.run(recipe, run)
    told = raised.value.render()
    assert name in told and "nothing was sent" in told
    assert TOKEN not in told and "hunter2" not in told and "planted" not in told.replace("planted_tokens", "")
    assert not (tmp_path / "models").exists()


def test_values_of_the_recipe_are_references_again_in_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of an environment variable that reached a record is written as a reference, not refused."""
    monkeypatch.setenv("SOME_API_KEY", "planted-by-environment")
    run = make_run(tmp_path / "run")
    state = run.read_run()
    state["lineage"]["git"]["commit"] = "planted-by-environment"
    run.write_run(state)
    stage.run(make_recipe(local=str(tmp_path / "models")), run)
    card = (tmp_path / "models" / "my-model" / "README.md").read_text()
    assert "planted-by-environment" not in card and "${env:SOME_API_KEY}" in card


def test_a_file_laid_beside_the_model_stays_here(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    files.write_text(run.merged / "notes.txt", f"my token is {TOKEN}")
    stage.run(make_recipe(local=str(tmp_path / "models")), run)
    assert not (tmp_path / "models" / "my-model" / "notes.txt").exists()


def test_recipe_with_a_token_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"name: r\nmodel: m\ndata: {{train: [a]}}\npublish: {{local: /x/{TOKEN}}}\n")
    assert main(["check", str(path)]) == 2
    told = capsys.readouterr().err
    assert "looks like a secret" in told and TOKEN not in told
