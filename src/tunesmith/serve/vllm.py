"""vLLM's OpenAI server, as a command line.

Flags: https://docs.vllm.ai/en/latest/cli/serve.html, parsers: https://docs.vllm.ai/en/latest/features/tool_calling.html
"""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError, ServeError
from tunesmith.model.families import family_of
from tunesmith.serve.engine import ServedModel
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer

# What a chat template teaches the model to write decides how calls are read; the first hit wins.
_PARSER_BY_MARKER = (
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
    ("<|tool_call|>", "phi4_mini_json"),
    ('"parameters"', "llama3_json"),
)
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py, MaxLoRARanks, v0.11.0


class Vllm:
    """vLLM, from the environment that runs tunesmith or from one of its own."""

    name = "vllm"

    def command(self, model: ServedModel, host: str, port: int) -> list[str]:
        # vLLM works in processes of its own, which must not outlive us either.
        command = [sys.executable, "-m", "tunesmith.serve.keeper"]
        command += [_python(model), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path)]
        command += ["--served-model-name", model.name if model.adapter is None else f"{model.name}-without-adapter"]
        command += _adapter_arguments(model)
        command += ["--host", host, "--port", str(port), "--dtype", model.dtype]
        command += ["--gpu-memory-utilization", str(model.gpu_memory_utilization)]
        # The checkpoint's own sampling defaults (repetition_penalty, say) would make greedy answers differ from ours.
        command += ["--generation-config", "vllm"]
        if model.max_model_len is not None:
            command += ["--max-model-len", str(model.max_model_len)]
        if model.trust_remote_code:
            command += ["--trust-remote-code"]
        command += _template_arguments(model)
        parser = tool_call_parser(model)
        # Tools that must not be called are not shown, as in the evaluation and by the embedded server.
        command += ["--exclude-tools-when-tool-choice-none"]
        return command + (["--enable-auto-tool-choice", "--tool-call-parser", parser] if parser else [])

    def environment(self) -> dict[str, str]:
        return {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def tool_call_parser(model: ServedModel) -> str | None:
    """Return vLLM's parser for the calls of a model, or None when its family is not known to make any."""
    text = _template_text(model)
    for marker, parser in _PARSER_BY_MARKER:
        if marker in text:
            return parser
    return family_of(str(_read(model.path / "config.json").get("model_type", ""))).tool_call_parser


def _template_text(model: ServedModel) -> str:
    try:
        return template_for(load_tokenizer(model.path), model.chat_template).text
    except DataError:
        if model.chat_template == "model":
            return ""  # a model without a template completes plain text, and makes no calls
        raise


def _template_arguments(model: ServedModel) -> list[str]:
    """Return the flag for a template that is not the model's own; vLLM reads it from a file."""
    if model.chat_template == "model":
        return []
    if Path(model.chat_template).is_file():
        return ["--chat-template", model.chat_template]
    directory = Path(tempfile.mkdtemp(prefix="tunesmith-template-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)  # the server never outlives us
    file = directory / f"{model.chat_template}.jinja"
    file.write_text(_template_text(model), encoding="utf-8")
    return ["--chat-template", str(file)]


def _python(model: ServedModel) -> str:
    if model.vllm_python is None:
        return sys.executable
    found = shutil.which(str(Path(model.vllm_python).expanduser()))
    if found is None:
        do = "give the Python of an environment that has vLLM, /opt/vllm/bin/python for one"
        raise ServeError("serve.vllm_python is no program", where=model.vllm_python, do=do)
    return found


def _adapter_arguments(model: ServedModel) -> list[str]:
    """Return the flags that put an adapter on top of the model, under the name that requests give."""
    if model.adapter is None:
        return []
    config = _read(model.adapter / "adapter_config.json")
    if not isinstance(config.get("r"), int):
        do = "set serve.unmerged_adapter to false: the merged model is served"
        raise ServeError("there is no LoRA adapter here", where=str(model.adapter), do=do)
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    allowed = next((size for size in _LORA_RANKS if size >= rank), rank)
    modules = json.dumps({"name": model.name, "path": str(model.adapter)})
    return ["--enable-lora", "--max-lora-rank", str(allowed), "--lora-modules", modules]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
