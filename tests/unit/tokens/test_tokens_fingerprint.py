"""The template fingerprint: equal for equal ids, and both texts shown when they differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tiny
from tunesmith.errors import StageError
from tunesmith.store import files
from tunesmith.tokens import fingerprint
from tunesmith.tokens.templates import ChatTemplate
from tunesmith.tokens.tokenizer import load_tokenizer

TOOLS_TEMPLATE = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + tiny.TEMPLATE
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.TEMPLATE


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    directory = tmp_path / "trained"
    tiny.write_tokenizer(directory)
    found = fingerprint.probes_of(directory, "model")
    files.write_json(directory / fingerprint.PROBES_FILE, found.to_json())
    return directory


def check(directory: Path, trained: Path, template: str = "model") -> str:
    found = fingerprint.probes_of(directory, template)
    return fingerprint.check_probes(found, trained, stage="merge", where=directory)


def test_equal_ids_pass_whatever_the_template_is_called(trained: Path, tmp_path: Path) -> None:
    recorded = json.loads((trained / fingerprint.PROBES_FILE).read_text())
    assert check(trained, trained) == recorded["fingerprint"]
    other = tmp_path / "same.jinja"
    other.write_text("{# a comment changes no id #}" + tiny.TEMPLATE)
    assert check(trained, trained, str(other)) == recorded["fingerprint"]
    everything = {name: probe["ids"] for name, probe in recorded["conversations"].items()}
    assert len({str(ids) for ids in everything.values()}) >= 5 and all(everything.values())


def test_another_template_is_told_with_both_texts(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jinja"
    other.write_text(tiny.TEMPLATE.replace("<|im_start|>{{ m['role'] }}\n", "<|im_start|>{{ m['role'] }}: "))
    with pytest.raises(StageError) as caught:
        check(trained, trained, str(other))
    message = str(caught.value)
    assert "stage merge" in message and "'plain'" in message
    assert "    <|im_start|>user\n    What's 12" in message and "    <|im_start|>user: What's 12" in message


def test_what_only_tools_show_is_found(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "tools.jinja"
    other.write_text(TOOLS_TEMPLATE)
    with pytest.raises(StageError, match="'tools'"):
        check(trained, trained, str(other))


def test_another_tokenizer_is_told_with_its_ids(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny.write_tokenizer(other, vocab_size=280)
    with pytest.raises(StageError, match="one text, two tokenizers"):
        check(other, trained)


def test_a_refusal_is_a_difference_and_its_words_are_not(trained: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(trained)
    refusing = fingerprint.render_probes(tokenizer, ChatTemplate(NO_SYSTEM))
    other = fingerprint.render_probes(tokenizer, ChatTemplate(NO_SYSTEM.replace("no system", "please no system")))
    assert refusing.renderings["system"].text.startswith("(refused: ")
    assert refusing.fingerprint == other.fingerprint
    with pytest.raises(StageError, match=r"'system'[^§]*refused"):
        fingerprint.check_probes(refusing, trained, stage="serve", where=trained)


def test_the_day_does_not_count(trained: Path) -> None:
    tokenizer = load_tokenizer(trained)
    dated = ChatTemplate("{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}" + tiny.TEMPLATE)
    first = fingerprint.render_probes(tokenizer, dated)
    assert first.renderings["plain"].text.startswith("29 Feb 2024 12:00:00.000000")
    assert fingerprint.render_probes(tokenizer, dated).fingerprint == first.fingerprint


def test_without_a_record_there_is_nothing_to_compare_and_a_broken_one_is_named(trained: Path) -> None:
    record = trained / fingerprint.PROBES_FILE
    expected = check(trained, trained)
    record.write_text("{}")
    with pytest.raises(StageError, match=r"template_probes\.json"):
        check(trained, trained)
    record.unlink()
    assert check(trained, trained) == expected
