"""What the harness's configuration says: template, start token, and what makes work new."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tunesmith.artifacts import Endpoint
from tunesmith.evaluate.lm_eval.catalogue import Chosen, Entry
from tunesmith.evaluate.lm_eval.work_order import Examinee, Job, Orders, adds_start_token
from tunesmith.recipe.schema import LmEval
from tunesmith.store.run_dir import RunDir
from tunesmith.tokens.templates import template_for
from tunesmith.tokens.tokenizer import load_tokenizer

ENDPOINT = Endpoint("http://127.0.0.1:9/", "served", "embedded", "tuned")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def with_start(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer, which puts <|im_start|> in front of a text."""
    from tokenizers import Tokenizer, processors

    path = tmp_path_factory.mktemp("models") / "with-start"
    shutil.copytree(tokenizer, path)
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    token = ("<|im_start|>", backend.token_to_id("<|im_start|>"))
    backend.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[token])
    backend.save(str(path / "tokenizer.json"))
    return path


def nowhere() -> Endpoint:
    raise AssertionError("nobody is asked")


def orders(
    tmp_path: Path, model: Path | None, *, template: str = "model", weights: str = "w1", **settings: Any
) -> Orders:
    harness = LmEval(("t",), **({"backend": "endpoint"} | settings))
    identity = {"model": weights, "chat_template": template, "engine": "embedded", "max_model_len": 128}
    examinee = Examinee(nowhere, identity, model, "embedded", "float32", template, 128 if model else None)
    return Orders(harness, examinee, "tuned", RunDir(tmp_path / "run"), "0.4.13", concurrency=6)


def jobs(made: Orders, tmp_path: Path, data: Path | None = None) -> list[Job]:
    entry = Entry("task", (), "generate_until", False, False, (str(data),) if data else ())
    return made.jobs([Chosen("t", {"t": entry}, False, True)], str(tmp_path / "outputs"))


def test_an_endpoint_gets_ids_with_the_start_token_that_the_tokenizer_adds(
    tmp_path: Path, tokenizer: Path, with_start: Path
) -> None:
    assert not adds_start_token(tokenizer) and adds_start_token(with_start)
    config = orders(tmp_path, with_start).config(ENDPOINT)
    arguments = config["model_args"]
    assert config["model"] == "local-completions" and arguments["base_url"] == "http://127.0.0.1:9/v1/completions"
    assert (arguments["add_bos_token"], arguments["tokenized_requests"]) == (True, True)
    assert (arguments["max_length"], arguments["num_concurrent"], config["batch_size"]) == (128, 6, 1)
    # A chat template writes the start token itself.
    assert not orders(tmp_path, with_start, apply_chat_template=True).config(ENDPOINT)["model_args"]["add_bos_token"]
    settings = json.loads((with_start / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    (with_start / "tokenizer_config.json").write_text(json.dumps(settings))
    assert not adds_start_token(with_start)


def test_the_template_of_training_is_what_the_harness_applies(tmp_path: Path, tokenizer: Path) -> None:
    made = orders(tmp_path, tokenizer, backend="checkpoint", template="chatml", apply_chat_template=True)
    arguments = made.config(None)["model_args"]
    directory = Path(arguments["tokenizer"])
    assert arguments["pretrained"] == str(tokenizer) and directory != tokenizer
    assert load_tokenizer(directory).model_template == template_for(load_tokenizer(tokenizer), "chatml").text
    assert (tokenizer / "chat_template.jinja").read_text() == tiny.TEMPLATE
    plain = orders(tmp_path, tokenizer, backend="checkpoint", template="chatml").config(None)
    assert "tokenizer" not in plain["model_args"]


def test_a_configuration_survives_the_harness_s_yaml(tmp_path: Path, tokenizer: Path) -> None:
    made = orders(
        tmp_path, tokenizer, extra={"system_instruction": "yes: no # 1e5\n\u2028"}, gen_kwargs={"until": ("\n", "a")}
    )
    (job,) = jobs(made, tmp_path)
    job.begin(made.config(ENDPOINT))
    config = yaml.safe_load(job.config.read_text())
    assert config["system_instruction"] == "yes: no # 1e5\n\u2028" and config["gen_kwargs"] == {"until": ["\n", "a"]}
    assert config["tasks"] == ["t"] and config["output_path"] == str(job.directory / "results.json")


def test_without_files_the_endpoint_s_tokenizer_has_to_be_named(tmp_path: Path, tokenizer: Path) -> None:
    plain = orders(tmp_path, None)
    config = plain.config(ENDPOINT)
    assert not plain.knows_tokens and config["model"] == "local-completions"
    assert config["model_args"]["tokenized_requests"] is False and "max_length" not in config["model_args"]
    chat = orders(tmp_path, None, apply_chat_template=True)
    assert chat.speaks_chat and chat.config(ENDPOINT)["model"] == "local-chat-completions"
    assert chat.config(ENDPOINT)["model_args"]["base_url"] == "http://127.0.0.1:9/v1/chat/completions"
    named = orders(tmp_path, None, tokenizer=str(tokenizer), apply_chat_template=True)
    assert named.knows_tokens and not named.speaks_chat
    assert named.config(ENDPOINT)["model_args"]["tokenizer"] == str(tokenizer)
    assert jobs(plain, tmp_path)[0].shelf is None


def test_what_decides_numbers_is_in_the_key_and_nothing_else(tmp_path: Path, tokenizer: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("1")

    def key(**settings: Any) -> str:
        return jobs(orders(tmp_path, tokenizer, **settings), tmp_path, data)[0].key

    first = key()
    assert first == key(batch_size=3)  # an endpoint's requests hold one prompt
    assert first == key(template="chatml")  # no template is applied
    others = {
        "limit": key(limit=5),
        "shots": key(num_fewshot=5),
        "template": key(apply_chat_template=True),
        "which template": key(apply_chat_template=True, template="chatml"),
        "backend": key(backend="checkpoint"),
        "batch": key(backend="checkpoint", batch_size=3),
        "generation": key(gen_kwargs={"temperature": 0.5}),
        "more": key(extra={"system_instruction": "x"}),
        "model": key(weights="w2"),
    }
    data.write_text("2")
    others["data"] = key()
    newer = orders(tmp_path, tokenizer)
    newer._version = "0.5.0"
    others["harness"] = jobs(newer, tmp_path, data)[0].key
    assert len({first, *others.values()}) == 1 + len(others)
