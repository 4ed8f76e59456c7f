"""What a checkpoint says about its tokenizer, in the spellings that checkpoints use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fixtures.families import write_family
from tunesmith.errors import DataError
from tunesmith.tokens.templates import named_templates, template_for
from tunesmith.tokens.tokenizer import load_tokenizer


def change(directory: Path, name: str, **entries: object) -> None:
    path = directory / name
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(document | entries))


def test_ids_have_no_special_tokens_of_their_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_family(tmp_path, "llama3"))
    assert tokenizer.bos_id is not None
    assert tokenizer.bos_id not in tokenizer.encode("Hello")
    assert tokenizer.encode("<|begin_of_text|>")[0] == tokenizer.bos_id
    assert tokenizer.encode_batch(["Hello", "äöü"]) == [tokenizer.encode("Hello"), tokenizer.encode("äöü")]
    ids = tokenizer.encode("Hello<|eot_id|>")
    assert tokenizer.decode(ids) == "Hello<|eot_id|>" and tokenizer.decode(ids, skip_special=True) == "Hello"


def test_every_end_of_sequence_counts(tmp_path: Path) -> None:
    directory = write_family(tmp_path, "llama3")
    plain = load_tokenizer(directory)
    end, call_end = plain.token_id("<|eot_id|>"), plain.token_id("<|eom_id|>")
    assert plain.eos_ids == (end,)
    change(directory, "generation_config.json", eos_token_id=[call_end, end])
    change(directory, "config.json", eos_token_id=plain.token_id("<|python_tag|>"))
    assert load_tokenizer(directory).eos_ids == (call_end, end, plain.token_id("<|python_tag|>"))


def test_fingerprint_follows_what_changes_ids(tmp_path: Path) -> None:
    first = load_tokenizer(write_family(tmp_path / "a", "chatml"))
    again = load_tokenizer(write_family(tmp_path / "b", "chatml"))
    other = load_tokenizer(write_family(tmp_path / "c", "phi"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    change(tmp_path / "b", "tokenizer_config.json", eos_token="<|endoftext|>")
    assert load_tokenizer(tmp_path / "b").fingerprint != first.fingerprint


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    directory = write_family(tmp_path, "chatml")
    expected = load_tokenizer(directory).encode("Hello! How can I help you?")
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    change(directory, "tokenizer.json", truncation=truncation)
    assert load_tokenizer(directory).encode("Hello! How can I help you?") == expected


def test_templates_of_a_model_in_every_spelling(tmp_path: Path) -> None:
    directory = write_family(tmp_path, "chatml")
    assert load_tokenizer(directory).model_template is None
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    change(directory, "tokenizer_config.json", chat_template=named)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.model_template == "A" and template_for(tokenizer, "model").text == "B"
    change(directory, "tokenizer_config.json", chat_template="C")
    assert template_for(load_tokenizer(directory), "model").text == "C"
    (directory / "chat_template.jinja").write_text("D")
    assert template_for(load_tokenizer(directory), "model").text == "D"


def test_a_model_without_a_template_names_the_others(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_family(tmp_path, "chatml"))
    with pytest.raises(DataError, match="no chat template") as caught:
        template_for(tokenizer, "model")
    assert all(name in caught.value.do for name in named_templates())


def test_unknown_names_and_broken_files_are_told(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_family(tmp_path, "chatml"))
    with pytest.raises(DataError, match="neither a known name nor a file") as caught:
        template_for(tokenizer, "chatlm")
    assert "chatml" in caught.value.do
    file = tmp_path / "t.jinja"
    file.write_text("fine\n{% for x in %}")
    with pytest.raises(DataError, match="not valid Jinja") as caught:
        template_for(tokenizer, str(file))
    assert caught.value.where == f"{file}:2"
    file.write_bytes(b"\xef\xbb\xbf{{ messages }}")
    with pytest.raises(DataError, match="byte-order mark"):
        template_for(tokenizer, str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        template_for(tokenizer, str(file))


def test_a_named_template_needs_its_end_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_family(tmp_path, "llama3"))
    with pytest.raises(DataError, match=r"ends a turn with <\|im_end\|>") as caught:
        template_for(tokenizer, "chatml")
    assert "llama3" in caught.value.do and "gemma" not in caught.value.do


def test_missing_and_broken_tokenizers_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer in this directory"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_tokenizer_json_is_converted(tmp_path: Path) -> None:
    words = {"<unk>": 0, "</s>": 1, **{bytes([b]).decode("latin-1"): b + 2 for b in range(33, 127)}}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh i\n")
    (tmp_path / "vocab.json").write_text(json.dumps(words | {"hi": 200}))
    config = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "eos_token": "</s>", "bos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hi") == [200]
    assert tokenizer.eos_ids == (tokenizer.token_id("</s>"),)
