"""Tiny random checkpoints with unequal dimensions, a byte-level tokenizer and a ChatML template with tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{%- for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "qwen3": _SIZES,
    # Windows shorter than the prompts, so that they cut.
    "mistral": _SIZES | {"sliding_window": 9},
    "gemma3_text": _SIZES
    | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"num_hidden_layers": 4},
    # Scores that are squashed, and a sink per head: attention written out.
    "gemma2": _SIZES | {"sliding_window": 7, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
    "gpt_oss": _SIZES
    | {"sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2}
    | {"rope_scaling": None, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 512},
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_checkpoint(path: Path, family: str = "llama", *, seed: int = 0, **sizes: Any) -> Path:
    """Write a random float32 checkpoint whose greedy answers are long and varied; `sizes` replace the family's."""
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.3,
        tie_word_embeddings=False,
        **FAMILIES[family] | sizes,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_reciting_checkpoint(path: Path, text: str, *, num_prompt_tokens: int) -> Path:
    """Write a model that answers a prompt of a known length with `text`, and ends.

    Its layers add nothing, its position embeddings are unit vectors, and its head maps each position to the next token.
    """
    tokenizer = byte_tokenizer()
    size = 512
    config = AutoConfig.for_model(
        "gpt2",
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        n_embd=size,
        n_positions=size,
        n_layer=1,
        n_head=4,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config)
    answer = [*tokenizer.encode(text), tokenizer.eos_token_id]
    with torch.no_grad():
        for parameter in (*model.transformer.h.parameters(), model.transformer.wte.weight, model.lm_head.weight):
            parameter.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(size))
        for i, token in enumerate(answer):
            model.lm_head.weight[token, num_prompt_tokens - 1 + i] = 1.0
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
