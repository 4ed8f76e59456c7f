"""What training leaves: `train/final`, a directory that PEFT, transformers and vLLM load, and the record of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.artifacts import Checkpoint
from tunesmith.model.adapter_files import adapter_parameters, save_adapter
from tunesmith.model.adapters import AdapterSettings, adapters_of
from tunesmith.model.companions import write_companions
from tunesmith.model.load import DTYPES
from tunesmith.model.nf4 import Nf4Linear
from tunesmith.recipe.schema import Recipe
from tunesmith.rows.conversation import Conversation
from tunesmith.store import files
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.chat import TemplateProblem, encode_conversation
from tunesmith.tokens.fingerprint import PROBES_FILE, render_probes
from tunesmith.tokens.templates import ChatTemplate, template_for
from tunesmith.tokens.tokenizer import ChatTokenizer, load_tokenizer
from tunesmith.train.setting import Setting
from tunesmith.train.world import World

_RECORD = "training.json"
_QUANTISED = "quantised.json"  # read by `tunesmith.merge`


def gathered(model: Any, recipe: Recipe, world: World) -> dict[str, Tensor] | None:
    """Return the trained tensors whole, on rank 0's CPU; None where the model holds them whole itself.

    Every rank must call it: shards are put together one tensor at a time.
    """
    if recipe.train.parallelism != "fsdp2" or world.size == 1:
        return None
    adapters = bool(adapters_of(model))
    named = adapter_parameters(model) if adapters else dict(model.named_parameters())
    dtype = torch.float32 if adapters else DTYPES[recipe.model.dtype]
    whole: dict[str, Tensor] = {}
    for name, parameter in named.items():
        tensor = parameter.detach()
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if world.is_first:
            whole[name] = tensor.to("cpu", dtype)
    return whole


def write_final(setting: Setting, model: Any, tensors: dict[str, Tensor] | None, record: Checkpoint) -> Checkpoint:
    """Write the trained model with its companions and its record, all at once or not at all.

    Args:
        tensors: what `gathered` gave.

    Returns:
        The record with the fingerprint of the template.
    """
    recipe, run_dir, base = setting.recipe, setting.run_dir, setting.base
    tokenizer = load_tokenizer(base)
    template = template_for(tokenizer, recipe.data.chat_template)
    probes = render_probes(tokenizer, template)
    record = dataclasses.replace(record, template_fingerprint=probes.fingerprint)
    with files.writing_directory(run_dir.trained) as directory:
        if adapters_of(model):
            settings = AdapterSettings.of(recipe.train.lora, recipe.train.method)
            save_adapter(directory, model, settings, record.base_model, tensors)
            _note_quantised(directory, model, recipe)
        else:
            model.save_pretrained(str(directory), max_shard_size=f"{recipe.merge.max_shard_gib}GB", state_dict=tensors)
            _note_dtype(directory, recipe)
        write_companions(base, directory, template=template.text, end_ids=end_of_turn(tokenizer, template))
        files.write_json(directory / PROBES_FILE, probes.to_json())
        files.write_json(directory / _RECORD, {"identity": setting.identity, "record": record.to_json()})
    return record


def _note_dtype(directory: Path, recipe: Recipe) -> None:
    """Name the number format of the weights: shards compute in float32, and transformers notes what it sees there."""
    config = json.loads((directory / "config.json").read_text())
    if config.get("dtype") != recipe.model.dtype:
        files.write_json(directory / "config.json", config | {"dtype": recipe.model.dtype})


def _note_quantised(directory: Path, model: Any, recipe: Recipe) -> None:
    """Name the layers that were in NF4: merging folds onto what was left of them."""
    layers = sorted(
        name.removesuffix(".inner") for name, module in model.named_modules() if isinstance(module, Nf4Linear)
    )
    if layers:
        document = {"format": "nf4, double quantisation", "dtype": recipe.model.dtype, "layers": layers}
        files.write_json(directory / _QUANTISED, document)


def finished(run_dir: RunDir, identity: str) -> Checkpoint | None:
    """Return the record of a training that came to its end but was not taken up, or None."""
    try:
        document = json.loads((run_dir.trained / _RECORD).read_text())
        return Checkpoint.from_json(document["record"]) if document["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def end_of_turn(tokenizer: ChatTokenizer, template: ChatTemplate) -> tuple[int, ...]:
    """Return the special token that a template puts at the end of an answer and that is trained, if there is one."""
    turns = ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"})
    try:
        ids, trained = encode_conversation(tokenizer, template, Conversation(turns), "assistant")
    except TemplateProblem:
        return ()
    special = set(tokenizer.special_texts.values())
    ends = [token for token, flag in zip(ids, trained, strict=True) if flag and token in special]
    return tuple(ends[-1:])
