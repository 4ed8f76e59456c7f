"""Checkpoints read without any ML library, and what is said of broken ones. Files are made byte by byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import ModelError
from tunesmith.model.headers import model_facts, read_headers
from tunesmith.model.locate import locate
from tunesmith.recipe.facts import Facts, Linear
from tunesmith.recipe.memory import num_trainable_parameters
from tunesmith.recipe.resolve import resolve
from tunesmith.recipe.schema import Data, Lora, Model, Recipe, Source, Train

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 6, "num_hidden_layers": 2, "vocab_size": 10}
TENSORS = {
    "model.embed_tokens.weight": (10, 6),
    "model.layers.0.self_attn.q_proj.weight": (4, 6),
    "model.layers.0.input_layernorm.weight": (6,),
    "lm_head.weight": (10, 6),
}


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], *, dtype: str = "BF16") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def checkpoint(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    write_safetensors(path / "model.safetensors", TENSORS)
    return path


def sharded(path: Path) -> Path:
    checkpoint(path)
    (path / "model.safetensors").unlink()
    names = list(TENSORS)
    parts = {"a.safetensors": names[:2], "b.safetensors": names[2:]}
    for file, part in parts.items():
        write_safetensors(path / file, {name: TENSORS[name] for name in part})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize("make", [checkpoint, sharded])
def test_facts(tmp_path: Path, make: Any) -> None:
    facts = model_facts(make(tmp_path))
    assert facts.num_parameters == 60 + 24 + 6 + 60
    assert (facts.num_layers, facts.hidden_size, facts.vocab_size, facts.dtype) == (2, 6, 10, "bfloat16")
    assert facts.architecture == "LlamaForCausalLM" and not facts.tied
    assert facts.linears == (Linear("model.layers.0.self_attn.q_proj", 4, 6),)


def test_offsets_reach_the_data(tmp_path: Path) -> None:
    info = read_headers(checkpoint(tmp_path))["lm_head.weight"]
    assert info.end == (tmp_path / "model.safetensors").stat().st_size and info.end - info.start == 120


def cut(path: Path) -> None:
    file = checkpoint(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def cut_in_the_header(path: Path) -> None:
    file = checkpoint(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])


def empty(path: Path) -> None:
    (checkpoint(path) / "model.safetensors").write_bytes(b"")


def pickled(path: Path) -> None:
    (checkpoint(path) / "model.safetensors").rename(path / "pytorch_model.bin")


def pointer(path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (checkpoint(path) / "model.safetensors").write_text(text)


def shard_absent(path: Path) -> None:
    (sharded(path) / "b.safetensors").unlink()


def tensor_absent(path: Path) -> None:
    write_safetensors(sharded(path) / "b.safetensors", {"other": (2,)})


def bad_config(path: Path) -> None:
    (checkpoint(path) / "config.json").write_text("{not json")


def config_list(path: Path) -> None:
    (checkpoint(path) / "config.json").write_text("[]")


def no_config(path: Path) -> None:
    (checkpoint(path) / "config.json").unlink()


def adapter(path: Path) -> None:
    no_config(path)
    (path / "adapter_config.json").write_text("{}")


def no_weights(path: Path) -> None:
    (checkpoint(path) / "model.safetensors").unlink()


def bad_index(path: Path) -> None:
    (checkpoint(path) / "model.safetensors.index.json").write_text("{}")


def wrong_shape(path: Path) -> None:
    file = checkpoint(path) / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"[10, 6]", b"[11, 6]"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (cut, "cut short"),
        (cut_in_the_header, "cut short or not safetensors"),
        (empty, "cut short or not safetensors"),
        (pointer, "cut short or not safetensors"),
        (pickled, "not in safetensors"),
        (shard_absent, "1 of 2 weight files are missing, first b.safetensors"),
        (tensor_absent, "2 tensors of the index are in no file"),
        (bad_config, "not valid JSON"),
        (config_list, "no JSON object"),
        (no_config, "no config.json"),
        (adapter, "an adapter"),
        (no_weights, "no weights"),
        (bad_index, "no weight_map"),
        (wrong_shape, "header is damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_checkpoints(tmp_path: Path, break_it: Any, message: str) -> None:
    break_it(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        model_facts(tmp_path)
    assert str(tmp_path) in caught.value.where and caught.value.do


def test_locating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "some/model")
    assert locate(Model("some/model"), "outputs") == Path("some/model")
    monkeypatch.setenv("MODELS", str(tmp_path / "some"))
    assert locate(Model("${env:MODELS}/model"), "outputs") == tmp_path / "some/model"
    merged = tmp_path / "outputs/runs/20260101-000000-mine/merge/model"
    (merged.parent.parent).mkdir(parents=True)
    (merged.parent.parent / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="no merged model yet"):
        locate(Model("run:mine"), "outputs")
    checkpoint(merged)
    assert locate(Model("run:mine"), "outputs").samefile(merged)
    for name in ("./absent", "/absent", "a/b/c", "run:other"):
        with pytest.raises(ModelError):
            locate(Model(name), "outputs")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="file, not a directory"):
        locate(Model("file"), "outputs")


FACTS = Facts(
    num_parameters=1_000_000, num_layers=2, hidden_size=64, vocab_size=1000, has_fast_bfloat16=True,
    device_memory_bytes=8 << 30,
    linears=tuple(
        Linear(f"model.layers.{n}.{name}", *shape)
        for n in (0, 1)
        for name, shape in (("a.q_proj", (64, 32)), ("b.up", (96, 64)))
    ),
)  # fmt: skip


def planned(**train: Any) -> Recipe:
    recipe = Recipe("x", Model("m"), Data((Source("d"),)), train=Train(**train))
    return resolve(recipe, FACTS)[0]


def test_trainable_parameters_are_counted_from_names() -> None:
    both = 2 * 8 * (64 + 32 + 96 + 64)
    assert num_trainable_parameters(planned(lora=Lora(r=8)), FACTS) == both
    assert num_trainable_parameters(planned(method="dora", lora=Lora(r=8)), FACTS) == both + 2 * (64 + 96)
    assert num_trainable_parameters(planned(lora=Lora(r=8, target_modules=("q_proj",))), FACTS) == 2 * 8 * (64 + 32)
    assert num_trainable_parameters(planned(method="full"), FACTS) == 1_000_000
