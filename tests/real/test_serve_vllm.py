"""vLLM itself, where it and a CUDA device are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.tiny_checkpoint import byte_tokenizer, make_reciting_checkpoint
from tunesmith.hardware import probe
from tunesmith.serve.engine import ServedModel
from tunesmith.serve.stage import serving

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None or probe().device != "cuda", reason="needs vLLM and a CUDA device"),
]
TOOL: Any = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}


def test_a_call_comes_out_of_vllm(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "find it"}]
    encoded = byte_tokenizer().apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True, return_dict=True)
    call = '<tool_call>\n{"name": "find", "arguments": {"x": 1}}\n</tool_call>'
    path = make_reciting_checkpoint(tmp_path / "model", call, num_prompt_tokens=len(encoded["input_ids"]))
    model = ServedModel(path, "recites", dtype="float32", max_model_len=512, gpu_memory_utilization=0.3)
    with serving(model, engine="vllm", log=tmp_path / "log", timeout_seconds=600) as server:
        body = {"model": "recites", "messages": messages, "tools": [TOOL], "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    (made,) = answer["choices"][0]["message"]["tool_calls"]
    assert made["function"]["name"] == "find" and json.loads(made["function"]["arguments"]) == {"x": 1}
