"""When one thread computes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from tunesmith.train.threads import num_threads_for, use_one_if_better  # noqa: E402


def model(width: int) -> LlamaForCausalLM:
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": 2, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=16))


@pytest.mark.parametrize(
    ("width", "tokens", "threads"),
    [(32, 1024, 1), (128, 1024, 1), (256, 150, 1), (256, 1024, 8), (576, 1024, 8), (576, 32, 1)],
)
def test_small_products_get_one_thread(width: int, tokens: int, threads: int) -> None:
    assert num_threads_for(model(width), tokens, 8) == threads


def test_what_is_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert not use_one_if_better(model(32), 64)
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert not use_one_if_better(model(512), 4096)
        assert use_one_if_better(model(32), 64)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
