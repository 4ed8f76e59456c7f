"""vLLM's OpenAI server, as a command line.

Flags: https://docs.vllm.ai/en/latest/cli/serve.html, parsers: https://docs.vllm.ai/en/latest/features/tool_calling.html
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tunesmith.errors import DataError
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
_PARSER_BY_ARCHITECTURE = (
    ("Qwen", "hermes"),
    ("Mistral", "mistral"),
    ("Mixtral", "mistral"),
    ("Llama", "llama3_json"),
    ("Phi", "phi4_mini_json"),
    ("Granite", "granite"),
    ("Deepseek", "deepseek_v3"),
)


class Vllm:
    """vLLM, from the environment that runs tunesmith."""

    name = "vllm"

    def command(self, model: ServedModel, host: str, port: int) -> list[str]:
        # vLLM works in processes of its own, which must not outlive us either.
        command = [sys.executable, "-m", "tunesmith.serve.keeper"]
        command += [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.path)]
        command += ["--served-model-name", model.name, "--host", host, "--port", str(port), "--dtype", model.dtype]
        command += ["--gpu-memory-utilization", str(model.gpu_memory_utilization)]
        # The checkpoint's own sampling defaults (repetition_penalty, say) would make greedy answers differ from ours.
        command += ["--generation-config", "vllm"]
        if model.max_model_len is not None:
            command += ["--max-model-len", str(model.max_model_len)]
        if model.trust_remote_code:
            command += ["--trust-remote-code"]
        command += _template_arguments(model)
        parser = tool_call_parser(model)
        return command + (["--enable-auto-tool-choice", "--tool-call-parser", parser] if parser else [])

    def environment(self) -> dict[str, str]:
        return {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def tool_call_parser(model: ServedModel) -> str | None:
    """Return vLLM's parser for the calls of a model, or None when its family is not known to make any."""
    text = _template_text(model)
    for marker, parser in _PARSER_BY_MARKER:
        if marker in text:
            return parser
    architecture = _architecture(model.path)
    return next((parser for family, parser in _PARSER_BY_ARCHITECTURE if architecture.startswith(family)), None)


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
    file = directory / f"{model.chat_template}.jinja"
    file.write_text(_template_text(model), encoding="utf-8")
    return ["--chat-template", str(file)]


def _architecture(path: Path) -> str:
    try:
        names = json.loads((path / "config.json").read_bytes()).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        return ""
    return str(names[0])
