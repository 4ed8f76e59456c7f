"""Command lines of the engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.tiny_checkpoint import make_checkpoint
from tunesmith.errors import ServeError
from tunesmith.serve.engine import Embedded, ServedModel, engine_named
from tunesmith.serve.vllm import Vllm, tool_call_parser


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("engine") / "a model")


def with_template(checkpoint: Path, tmp_path: Path, template: str | None, model_type: str) -> ServedModel:
    path = tmp_path / "model"
    path.mkdir()
    for file in checkpoint.iterdir():
        if file.name not in ("chat_template.jinja", "model.safetensors"):
            (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text()) | {"model_type": model_type}
    (path / "config.json").write_text(json.dumps(config))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return ServedModel(path, "m")


def test_embedded(checkpoint: Path) -> None:
    model = ServedModel(checkpoint, "n", "float32", 99, "chatml", trust_remote_code=True)
    command = Embedded().command(model, "127.0.0.1", 81)
    assert command[1:3] == ["-m", "tunesmith.serve.embedded"]
    expected = {
        "--model": str(checkpoint),
        "--served-model-name": "n",
        "--host": "127.0.0.1",
        "--port": "81",
        "--dtype": "float32",
        "--max-model-len": "99",
        "--chat-template": "chatml",
    }
    assert {name: option(command, name) for name in expected} == expected
    assert "--trust-remote-code" in command
    assert engine_named("embedded").name == "embedded" and engine_named("vllm").name == "vllm"


def test_vllm(checkpoint: Path) -> None:
    model = ServedModel(checkpoint, "n", "bfloat16", 4096, gpu_memory_utilization=0.5)
    command = Vllm().command(model, "127.0.0.1", 8001)
    expected = {
        "--model": str(checkpoint),
        "--served-model-name": "n",
        "--port": "8001",
        "--dtype": "bfloat16",
        "--max-model-len": "4096",
        "--gpu-memory-utilization": "0.5",
        "--tool-call-parser": "hermes",
    }
    assert {name: option(command, name) for name in expected} == expected
    assert "--enable-auto-tool-choice" in command and "--chat-template" not in command


def test_vllm_gets_another_template_as_a_file(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages[0].content }}")
    command = Vllm().command(ServedModel(checkpoint, "n", chat_template=str(file)), "127.0.0.1", 1)
    assert option(command, "--chat-template") == str(file)
    command = Vllm().command(ServedModel(checkpoint, "n", chat_template="chatml"), "127.0.0.1", 1)
    assert "<|im_start|>" in Path(option(command, "--chat-template")).read_text()


@pytest.mark.parametrize(
    ("template", "model_type", "parser"),
    [
        ("<tool_call>{{ tools }}", "llama", "hermes"),
        ("<tool_call><function=", "qwen3_moe", "qwen3_coder"),
        ("[TOOL_CALLS]", "mistral", "mistral"),
        ("<|python_tag|>", "llama", "llama3_json"),
        ("plain", "qwen2", "hermes"),
        ("plain", "llama", "llama3_json"),
        (None, "mistral", "mistral"),
        ("plain", "nobody", None),
    ],
)
def test_the_parser_follows_the_template_then_the_family(
    checkpoint: Path, tmp_path: Path, template: str | None, model_type: str, parser: str | None
) -> None:
    assert tool_call_parser(with_template(checkpoint, tmp_path, template, model_type)) == parser


def test_vllm_in_its_own_environment_with_an_adapter_on_top(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 12, "rank_pattern": {"q_proj": 40}}))
    model = ServedModel(checkpoint, "run-tuned", adapter=tmp_path, vllm_python="/bin/sh")
    command = Vllm().command(model, "127.0.0.1", 1)
    assert command[command.index("vllm.entrypoints.openai.api_server") - 2] == "/bin/sh"
    assert option(command, "--max-lora-rank") == "64"
    assert json.loads(option(command, "--lora-modules")) == {"name": "run-tuned", "path": str(tmp_path)}
    assert option(command, "--served-model-name") != "run-tuned" and option(command, "--model") == str(checkpoint)


def test_what_vllm_cannot_serve_is_told(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no program"):
        Vllm().command(ServedModel(checkpoint, "n", vllm_python=str(tmp_path / "python")), "127.0.0.1", 1)
    with pytest.raises(ServeError, match="no LoRA adapter"):
        Vllm().command(ServedModel(checkpoint, "n", adapter=tmp_path), "127.0.0.1", 1)
    with pytest.raises(ServeError, match="merged models only"):
        Embedded().command(ServedModel(checkpoint, "n", adapter=tmp_path), "127.0.0.1", 1)
