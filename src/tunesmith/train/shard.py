"""What is done to a model before it trains, in this order, and why in this order.

1. Gradient checkpointing wraps a layer's forward: what is compiled and sharded afterwards is the wrapped layer. Without
   it, cheap parts are made again in the backward pass; not in compiled layers, where the compiler decides that itself,
   and not yet in shards (untried).
2. Compiling, layer by layer: they are alike, so that one compilation serves all of them, and a layer's graph has no
   communication in it.
3. FSDP2 puts its gathering and scattering around each (compiled) layer, and around all that is left.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from tunesmith.model.cheap_parts import recompute_cheap_parts
from tunesmith.model.in_place import add_embeddings_in_place
from tunesmith.model.load import DTYPES
from tunesmith.recipe.schema import Recipe
from tunesmith.train.token_losses import TokenLosses
from tunesmith.train.world import World


def prepare(losses: TokenLosses, recipe: Recipe, world: World) -> None:
    """Checkpoint, compile and shard a model in place, as the recipe says."""
    train = recipe.train
    model = losses.model
    sharded = train.parallelism == "fsdp2" and world.size > 1
    if not sharded:  # shards have gradients of their own, and gather those of whole weights in between
        add_embeddings_in_place(model)
        losses.adds_in_place = True
    if train.gradient_checkpointing is True:
        # transformers renamed it in 5.23, and warns of the old name.
        renamed = hasattr(model, "activation_checkpointing_enable")
        enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    elif train.torch_compile is not True and not sharded:
        losses.recomputes = recompute_cheap_parts(model) > 0
    if train.torch_compile is True:
        for layer in layers_of(model):
            layer.compile(dynamic=True)
    if sharded:
        _shard(losses, recipe, world)


def layers_of(model: Any) -> list[nn.Module]:
    """Return the decoder's layers: the longest list of modules of one class."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    alike = [found for found in lists if len({type(layer) for layer in found}) == 1]
    return list(max(alike, key=len, default=[]))


def _shard(losses: TokenLosses, recipe: Recipe, world: World) -> None:
    """Cut weights into shards. A whole model moves in float32 shards and computes in the recipe's format; adapters are
    float32 among frozen weights of that format, each in its own.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    settings: dict[str, Any] = {"mesh": init_device_mesh(world.device.type, (world.size,))}
    if recipe.train.method == "full":
        losses.float()
        compute = DTYPES[recipe.model.dtype]
        settings["mp_policy"] = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    for layer in layers_of(losses.model):
        fully_shard(layer, **settings)
    fully_shard(losses, **settings)
    for module in losses.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the global count already
            if world.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)  # gloo has no sum that divides


def let_go(losses: TokenLosses) -> None:
    """Give up whole weights that ranks have gathered: before shards are read, and after they were changed by no step.

    FSDP2 keeps those of the outermost module from a forward pass to its backward pass, and a pass without gradients has
    none: the module would go on with the old weights, and show them in place of its shards.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # its import takes a second, and who shards has it
    for module in losses.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()
