"""What decisions rest on: the machine and the checkpoint, gathered by others, looked up nowhere in this room."""

from __future__ import annotations

from typing import NamedTuple

from tunesmith.frozen import frozen


class Linear(NamedTuple):
    """A linear layer of the model, without embeddings and output head; `name` is the module's."""

    name: str
    num_outputs: int
    num_inputs: int


class Tensor(NamedTuple):
    """A tensor of the checkpoint that is no linear layer's matrix: embeddings, norms, biases, the output head."""

    name: str
    num_elements: int


@frozen
class Facts:
    """Sizes in bytes; 0, None or empty means unknown."""

    device: str = "cpu"  # cpu | cuda
    device_name: str = ""
    num_devices: int = 1
    num_cpus: int = 1
    device_memory_bytes: int = 0
    has_fast_bfloat16: bool = False
    installed: frozenset[str] = frozenset()  # importable optional packages, by import name
    num_parameters: int = 0
    num_layers: int = 0
    hidden_size: int = 0
    vocab_size: int = 0
    max_position_embeddings: int | None = None
    checkpoint_dtype: str | None = None
    activation: str = ""  # of the MLPs, by transformers' name
    tied: bool = False  # output head and embeddings share their matrix
    transposed: bool = False  # linear layers store (in, out), as GPT-2's do
    linears: tuple[Linear, ...] = ()
    others: tuple[Tensor, ...] = ()
