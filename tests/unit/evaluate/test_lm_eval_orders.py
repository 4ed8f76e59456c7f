"""What the harness's configuration says: template, start token, and what makes work new."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tunesmith.artifacts import Endpoint, Weights
from tunesmith.evaluate.lm_eval.catalogue import Catalogue, Entry
from tunesmith.evaluate.lm_eval.work_order import Orders, adds_start_token
from tunesmith.recipe.schema import Data, Evaluate, LmEval, Model, Recipe, Serve
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


def orders(tmp_path: Path, model: Path, data: Path | None = None, **settings: Any) -> Orders:
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_run({"lineage": {"model": {"weights": "w1", "rest": "r1"}}})
    run_dir.save(Weights(str(model), "base", {"model.safetensors": "abc"}, 3))
    template = settings.pop("template", "model")
    harness = LmEval(("t",), backend=settings.pop("backend", "endpoint"), **settings)
    recipe = Recipe(
        "r",
        Model(str(model), dtype="float32"),
        Data((), chat_template=template),
        output_dir=str(tmp_path / "outputs"),
        serve=Serve(engine="embedded", port=0, max_model_len=128),
        evaluate=Evaluate(lm_eval=harness, concurrency=6),
    )
    entry = Entry("task", (), "generate_until", False, False, (str(data),) if data else ())
    return Orders(recipe, run_dir, Catalogue("0.4.13", {"t": entry}, frozenset({"t"})))


def key(made: Orders, which: Any = "tuned") -> str:
    catalogue = made._catalogue
    return made.jobs(which, catalogue.choose(made._settings))[0].key


def test_an_endpoint_gets_ids_with_the_start_token_that_the_tokenizer_adds(
    tmp_path: Path, tokenizer: Path, with_start: Path
) -> None:
    assert not adds_start_token(tokenizer) and adds_start_token(with_start)
    config = orders(tmp_path, with_start).config("tuned", ENDPOINT)
    arguments = config["model_args"]
    assert config["model"] == "local-completions" and arguments["base_url"] == "http://127.0.0.1:9/v1/completions"
    assert (arguments["add_bos_token"], arguments["tokenized_requests"]) == (True, True)
    assert (arguments["max_length"], arguments["num_concurrent"], config["batch_size"]) == (128, 6, 1)
    # A chat template writes the start token itself.
    assert not orders(tmp_path, with_start, apply_chat_template=True).config("tuned", ENDPOINT)["model_args"][
        "add_bos_token"
    ]
    settings = json.loads((with_start / "tokenizer_config.json").read_text()) | {"add_bos_token": False}
    (with_start / "tokenizer_config.json").write_text(json.dumps(settings))
    assert not adds_start_token(with_start)


def test_the_template_of_training_is_what_the_harness_applies(tmp_path: Path, tokenizer: Path) -> None:
    made = orders(tmp_path, tokenizer, backend="checkpoint", template="chatml", apply_chat_template=True)
    arguments = made.config("tuned", None)["model_args"]
    directory = Path(arguments["tokenizer"])
    assert arguments["pretrained"] == str(tokenizer) and directory != tokenizer
    assert load_tokenizer(directory).model_template == template_for(load_tokenizer(tokenizer), "chatml").text
    assert (tokenizer / "chat_template.jinja").read_text() == tiny.TEMPLATE
    plain = orders(tmp_path, tokenizer, backend="checkpoint", template="chatml").config("tuned", None)
    assert "tokenizer" not in plain["model_args"]


def test_a_configuration_survives_the_harness_s_yaml(tmp_path: Path, tokenizer: Path) -> None:
    made = orders(
        tmp_path, tokenizer, extra={"system_instruction": "yes: no # 1e5\n\u2028"}, gen_kwargs={"until": ("\n", "a")}
    )
    (job,) = made.jobs("tuned", made._catalogue.choose(made._settings))
    job.begin(made.config("tuned", ENDPOINT))
    config = yaml.safe_load(job.config.read_text())
    assert config["system_instruction"] == "yes: no # 1e5\n\u2028" and config["gen_kwargs"] == {"until": ["\n", "a"]}
    assert config["tasks"] == ["t"] and config["output_path"] == str(job.directory / "results.json")


def test_what_decides_numbers_is_in_the_key_and_nothing_else(tmp_path: Path, tokenizer: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("1")
    first = key(orders(tmp_path, tokenizer, data))
    assert first == key(orders(tmp_path, tokenizer, data, batch_size=3))  # an endpoint's requests hold one prompt
    assert first == key(orders(tmp_path, tokenizer, data, template="chatml"))  # no template is applied
    others = {
        "limit": key(orders(tmp_path, tokenizer, data, limit=5)),
        "shots": key(orders(tmp_path, tokenizer, data, num_fewshot=5)),
        "template": key(orders(tmp_path, tokenizer, data, apply_chat_template=True)),
        "which template": key(orders(tmp_path, tokenizer, data, apply_chat_template=True, template="chatml")),
        "backend": key(orders(tmp_path, tokenizer, data, backend="checkpoint")),
        "batch": key(orders(tmp_path, tokenizer, data, backend="checkpoint", batch_size=3)),
        "generation": key(orders(tmp_path, tokenizer, data, gen_kwargs={"temperature": 0.5})),
        "more": key(orders(tmp_path, tokenizer, data, extra={"system_instruction": "x"})),
        "model": key(orders(tmp_path, tokenizer, data), "base"),
    }
    data.write_text("2")
    others["data"] = key(orders(tmp_path, tokenizer, data))
    newer = orders(tmp_path, tokenizer, data)
    newer._catalogue = dataclasses.replace(newer._catalogue, version="0.5.0")
    others["harness"] = key(newer)
    assert len({first, *others.values()}) == 1 + len(others)
