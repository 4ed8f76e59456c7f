"""Tiny random models, tokenizers and rows, with unequal sizes so that a transposed axis cannot hide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.artifacts import Dataset
from tunesmith.recipe import schema
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.shards import ShardWriter

VOCAB_SIZE = 320
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = ("call the weather of Berlin now", "what is seven times eight", "the answer is fifty six", "tools are here")


def write_tokenizer(path: Path, *, vocab_size: int = VOCAB_SIZE) -> None:
    """Write a byte-level BPE with three special tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 4, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(TEMPLATE)


def config_of(family: str, *, tied: bool = False) -> Any:
    """Return the configuration of a tiny model: 3 layers, 48 wide, 4 heads of 12 over 2 of keys and values."""
    from transformers import AutoConfig

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "gpt2":
        sizes = {"vocab_size": VOCAB_SIZE, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 128}
        sizes |= {"bos_token_id": 1, "eos_token_id": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    if family == "gemma2":
        sizes |= {"query_pre_attn_scalar": 12, "sliding_window": 16, "tie_word_embeddings": True}
    if family == "granite":
        sizes |= {"logits_scaling": 3.0, "attention_multiplier": 0.2}
    if family == "mistral":
        sizes |= {"sliding_window": None}
    return AutoConfig.for_model(family, **sizes)


def write_model(
    path: Path, family: str = "llama", *, tied: bool = False, dtype: str = "float32", seed: int = 0, shards: str = "1GB"
) -> Path:
    """Write a random checkpoint with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(family, tied=tied))
    with torch.no_grad():  # small random weights make every logit alike; spread them
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(getattr(torch, dtype)).save_pretrained(str(path), max_shard_size=shards)
    write_tokenizer(path)
    return path


def write_rows(
    path: Path, *, num_rows: int, segments: int = 1, seed: int = 1, longest: int = 40, shared: bool = False
) -> dict[str, int]:
    """Write random tokenised rows; returns their counts.

    Args:
        shared: most rows begin with the same 17 tokens, and half of these go on with one of two texts of 16 and 40.
    """
    random = np.random.default_rng(seed)
    alike = np.random.default_rng(seed + 1)
    first, second, third = (alike.integers(3, VOCAB_SIZE, length).astype(np.uint32) for length in (17, 16, 40))
    beginnings = [first[:0], first, first, np.concatenate([first, second]), np.concatenate([first, third])]
    num_tokens = num_trained = 0
    with ShardWriter(path, segments) as writer:
        for _ in range(num_rows):
            row = []
            for segment in range(segments):
                length = int(random.integers(5, longest))
                ids = random.integers(3, VOCAB_SIZE, length).astype(np.uint32)
                if shared and segment == 0:
                    ids = np.concatenate([beginnings[int(random.integers(len(beginnings)))], ids])
                    length = len(ids)
                trained = random.random(length) < 0.6
                trained[-1] = True
                if segments == 3:
                    trained = np.full(length, segment > 0)
                num_tokens, num_trained = num_tokens + length, num_trained + int(trained.sum())
                row.append((ids, trained))
            writer.add(row)
        writer.close({})
    return {"num_sequences": num_rows, "num_tokens": num_tokens, "num_trained_tokens": num_trained}


def recipe_for(
    base: Path, output_dir: Path, *, seed: int = 7, dtype: str = "float32", packing: bool = True, **train: Any
) -> schema.Recipe:
    """Return a resolved recipe."""
    settings = {
        "num_train_epochs": 1.0,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
        "num_processes": 1,
        "parallelism": "ddp",
        "torch_compile": False,
    } | train
    if isinstance(settings.get("lora"), dict):
        settings["lora"] = schema.Lora(**settings["lora"])
    return schema.Recipe(
        name="tiny",
        model=schema.Model(str(base), dtype=dtype, attn_implementation="varlen"),  # type: ignore[arg-type]
        data=schema.Data(train=(schema.Source("rows.jsonl"),), packing=packing, max_length=80, num_workers=1),
        seed=seed,
        output_dir=str(output_dir),
        train=schema.Train(**settings),
    )


def run_with_rows(
    path: Path, *, num_rows: int = 24, num_held_out: int = 0, objective: str = "sft", shared: bool = False
) -> RunDir:
    """Return a run directory whose data stage is done."""
    run_dir = RunDir(path)
    segments = 3 if objective == "dpo" else 1
    counts = write_rows(run_dir.train_tokens, num_rows=num_rows, segments=segments, shared=shared)
    if num_held_out:
        write_rows(run_dir.validation_tokens, num_rows=num_held_out, segments=segments, seed=99)
    run_dir.save(
        Dataset(
            objective=objective,
            train=run_dir.relative(run_dir.train_tokens),
            validation=run_dir.relative(run_dir.validation_tokens) if num_held_out else None,
            counts={},
            longest_tokens=80,
            key=f"{num_rows}-{objective}",
            tokenizer_fingerprint="t",
            template_fingerprint="c",
            **counts,
        )
    )
    return run_dir


def losses(run_dir: RunDir, name: str = "train/loss") -> list[tuple[int, float]]:
    """Return the curve of a run's metrics.jsonl."""
    lines = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]
