"""Looks at a model with its first layers only: which layers are alike, and that nothing escapes them."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaAttention  # noqa: E402

from tests import tiny  # noqa: E402
from tunesmith.model import cheap_parts  # noqa: E402
from tunesmith.model.adapters import AdapterSettings, attach  # noqa: E402
from tunesmith.model.attention import NAME  # noqa: E402
from tunesmith.model.first_layers import _num_needed, first_layers  # noqa: E402
from tunesmith.model.head import split, use_spans  # noqa: E402
from tunesmith.recipe.schema import Lora  # noqa: E402

NUM_LAYERS = 9


def made(family: str = "llama") -> Any:
    config = tiny.config_of(family)
    config.num_hidden_layers = NUM_LAYERS
    if family == "gemma2":
        config.layer_types = (config.layer_types * NUM_LAYERS)[:NUM_LAYERS]
    torch.manual_seed(0)
    attention = "eager" if family == "gemma2" else "sdpa"
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def layers(model: Any) -> nn.ModuleList:
    found: nn.ModuleList = model.get_decoder().layers
    return found


def calls_of_the_last_layer(model: Any) -> list[int]:
    calls: list[int] = []
    layers(model)[-1].register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(
    ("kinds", "needed"),
    [
        ("aaaaaaaaaaaa", 6),
        ("abababababab", 6),
        ("aaaaabaaaaabaaaaab", 12),
        ("aaaaaaaaab", 10),  # one that comes once
        ("abcdefghijkl", 12),
        ("aa", 2),
    ],
)
def test_every_kind_is_seen_twice(kinds: str, needed: int) -> None:
    assert _num_needed(list(kinds)) == needed


def test_the_model_is_as_before_afterwards() -> None:
    model = made()
    attach(model, AdapterSettings.of(Lora(), "lora"), seed=1)
    before, names = layers(model), list(model.state_dict())
    with pytest.raises(KeyError), first_layers(model) as fewer:
        assert fewer and len(layers(model)) == 6
        raise KeyError
    assert layers(model) is before and list(model.state_dict()) == names


def differing(model: Any, what: str) -> None:
    last = layers(model)[-1]
    if what == "attribute":
        last.self_attn.scaling *= 2
    elif what == "class":
        last.self_attn.__class__ = _Odd
    elif what == "shape":
        last.mlp.up_proj = nn.Linear(48, 80, bias=True)
    elif what == "config":
        model.config.layer_types = ["full_attention"] * (NUM_LAYERS - 1) + ["sliding_attention"]
    elif what == "object":
        for layer in layers(model):
            layer.self_attn.own = object()
    elif what == "code of the checkpoint":
        model.__class__ = type("Own", (type(model),), {"__module__": "transformers_modules.own"})


@pytest.mark.parametrize("what", ["attribute", "class", "shape", "config", "object", "code of the checkpoint"])
def test_layers_that_differ_all_stay(what: str) -> None:
    model = made()
    differing(model, what)
    with first_layers(model) as fewer:
        assert not fewer and len(layers(model)) == NUM_LAYERS


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "granite"])
def test_a_look_at_few_layers_says_what_one_at_all_says(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(family)
    calls = calls_of_the_last_layer(model)
    parts = split(model, over_spans=True)
    assert parts.over_spans == (family != "gemma2"), "Gemma 2 caps its scores"
    assert bool(calls) == (family == "gemma2"), "what few layers do not show, all are asked"
    monkeypatch.setattr("tunesmith.model.first_layers._AT_LEAST", NUM_LAYERS)
    fresh = made(family)
    deep = calls_of_the_last_layer(fresh)
    whole = split(fresh, over_spans=True)
    assert deep and whole.over_spans == parts.over_spans == use_spans(split(made(family)))
    ids = torch.arange(12).view(1, -1) * 7 % tiny.VOCAB_SIZE
    model.eval(), fresh.eval()
    assert torch.equal(parts.hidden(ids, None, None), whole.hidden(ids, None, None)), "all layers compute again"


class _Odd(LlamaAttention):
    """Is wrong over spans, and nowhere else."""

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        out, *rest = super().forward(*inputs, **settings)
        return (out * 1.5 if self.config._attn_implementation == NAME else out, *rest)


def test_a_last_layer_that_is_wrong_is_seen() -> None:
    model = made()
    differing(model, "class")
    parts = split(model, over_spans=True)
    assert not parts.over_spans and model.config._attn_implementation == "sdpa"


def test_a_decoder_that_fails_with_fewer_layers_is_looked_at_whole() -> None:
    model = made()
    model.get_decoder().register_forward_pre_hook(lambda decoder, _: decoder.layers[NUM_LAYERS - 1] and None)
    calls = calls_of_the_last_layer(model)
    assert split(model, over_spans=True).over_spans and calls


def test_mlps_of_one_kind_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    same = cheap_parts._same
    monkeypatch.setattr(cheap_parts, "_same", lambda *given: looks.append(given) or same(*given))
    model = made()
    mlps = [layer.mlp for layer in layers(model)]
    mlps[2].act_fn = nn.Tanh()
    mlps[4].forward = lambda x: mlps[4].down_proj(mlps[4].up_proj(x))  # its class's own form no more
    ids = torch.arange(12).view(1, -1) * 7 % tiny.VOCAB_SIZE
    before = model(input_ids=ids).logits
    assert cheap_parts.recompute_cheap_parts(model) == len(mlps) - 1 + 2 * NUM_LAYERS + 1
    assert len(looks) == 4, "one of most, one with another function, two forms in vain for the last"
    assert "_recomputed_mlp" not in repr(mlps[4].forward) and "_recomputed_mlp" in repr(mlps[2].forward)
    assert torch.equal(model(input_ids=ids).logits, before)
