"""What differs between model families and cannot be read from a checkpoint. A family that is not here still trains.

`logits_*` repeat what each family's `forward` does after the output head; `model.head` checks the result against the
model's own logits, and computes them the long way where the two differ.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Facts about the models of one or more `model_type`s.

    Attributes:
        tool_call_parser: vLLM's `--tool-call-parser` for the maker's own chat template.
        logits_multiplied_by, logits_divided_by: names of the numbers in config.json that scale the logits.
        source: where the facts stand.
    """

    model_types: tuple[str, ...]
    tool_call_parser: str | None = None
    logits_multiplied_by: str | None = None
    logits_divided_by: str | None = None
    source: str = "https://docs.vllm.ai/en/v0.11.0/features/tool_calling.html"


_MODELS = "https://github.com/huggingface/transformers/tree/v5.2.0/src/transformers/models"

FAMILIES = (
    Family(("llama",), tool_call_parser="llama3_json"),
    Family(("mistral", "mixtral", "ministral"), tool_call_parser="mistral"),
    Family(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), tool_call_parser="hermes"),
    Family(("phi3",), tool_call_parser="phi4_mini_json"),
    Family(("deepseek_v3",), tool_call_parser="deepseek_v3"),
    Family(("gpt_oss",), tool_call_parser="openai"),
    Family(("internlm2",), tool_call_parser="internlm"),
    Family(("jamba",), tool_call_parser="jamba"),
    Family(("glm4_moe",), tool_call_parser="glm45"),
    Family(
        ("granite", "granitemoe", "granitemoeshared", "granitemoehybrid"),
        tool_call_parser="granite",
        logits_divided_by="logits_scaling",
        source=f"{_MODELS}/granite/modeling_granite.py",
    ),
    Family(("cohere", "cohere2"), logits_multiplied_by="logit_scale", source=f"{_MODELS}/cohere/modeling_cohere.py"),
    Family(
        ("falcon_h1",), logits_multiplied_by="lm_head_multiplier", source=f"{_MODELS}/falcon_h1/modeling_falcon_h1.py"
    ),
)


def family_of(model_type: str) -> Family:
    """Return the facts about a family; empty ones for a family that is not in the table."""
    return next((family for family in FAMILIES if model_type in family.model_types), Family((model_type,)))
