"""Weights, gradients and optimiser state of a language model divided among processes: FSDP2, as Accelerate asks for it.

`accelerate launch --use_fsdp --fsdp_version 2` (or `ACCELERATE_USE_FSDP=true FSDP_VERSION=2` for another launcher) says
so; a recipe does not, since the result is the same. Each transformer layer is a group of `fully_shard`, gathered for
its passes alone. What is outside of them, embeddings, last norm and head, is one group more, gathered from the first
pass of a piece of work to its end, since a policy reads its head whenever it likes.

    gradient of a weight = sum over processes, and never a mean: a loss is divided by the counts of the whole step

Rows of the first dimension are divided as `torch.chunk` does it. Other policies and rankers are not divided.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, distributed, nn

from adagrpo.errors import UserError
from adagrpo.policies.policy import Policy
from adagrpo.trainer.divided import is_divided
from adagrpo.trainer.lockstep import Lockstep
from adagrpo.trainer.processes import LostProcess, Processes

__all__ = ["is_asked_for", "sharded", "transformer_layers", "whole_tensors"]


def is_asked_for() -> bool:
    """Whether the launcher asks for sharded weights."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


@contextmanager
def sharded(models: Sequence[nn.Module | Policy[Any, Any]], shared_by: Processes) -> Iterator[None]:
    """Shard the language models of policies among processes for as long as the block lasts, where that is asked for.

    Args:
        models: policies, changed in place; in the same order in every process. One that is no language model is left
            as it is.
        shared_by: the processes; nothing is done for one alone.

    Raises:
        UserError: what the launcher asks for is not what we do.
        LostProcess: another process is gone.
    """
    found = [lm for model in models if (lm := _language_model(model)) is not None]
    if not is_asked_for() or shared_by.count == 1 or not found:
        yield
        return
    plugin = _plugin()
    lockstep = Lockstep(shared_by.numbers)
    shared_by.lockstep = lockstep
    try:
        for lm in found:
            lockstep.models.append(_Sharded(lm, plugin, lockstep, shared_by.count))
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo/transport" in str(error):  # in an exchange of FSDP's own
            raise LostProcess from error
        raise
    finally:
        shared_by.lockstep = None


def whole_tensors(weights: Mapping[str, Tensor], *, kept: bool) -> dict[str, Tensor]:
    """Divided tensors put together, one after another, in the memory of the machine; all processes call it.

    Args:
        weights: of which those that are not divided stay as they are.
        kept: False where this process only takes part.
    """
    result = {}
    for name, tensor in weights.items():
        whole = tensor.full_tensor().cpu() if is_divided(tensor) else tensor
        if kept:
            result[name] = whole
    return result


class _Sharded:
    """A sharded language model; implements `Stepped`."""

    def __init__(self, lm: Any, plugin: FullyShardedDataParallelPlugin, lockstep: Lockstep, count: int) -> None:
        # more than a second to import, and no other command needs them
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self.lm, self.idle = lm, True
        device = next(lm.parameters()).device
        mesh = init_device_mesh(device.type, (count,))
        options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": bool(plugin.reshard_after_forward)}
        names = plugin.transformer_cls_names_to_wrap
        layers = transformer_layers(lm, names)
        if not layers:
            raise UserError(
                f"FSDP_TRANSFORMER_CLS_TO_WRAP: the policy has no layers {', '.join(names or [])}; leave it out"
            )
        for layer in layers:
            fully_shard(layer, **options)
        fully_shard(lm, **options)
        for module in lm.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum
                module.set_force_sum_reduction_for_comms(True)
                module.set_reduce_scatter_unused_params(True)
        with torch.no_grad():
            lm(inputs_embeds=self._zeros(), use_cache=False)  # says which module is the outermost one
        self.close()
        self.idle = False
        lm.get_input_embeddings().register_forward_pre_hook(lambda *_: self._before(lockstep))
        lm.base_model.register_forward_hook(lambda module, inputs, output: self._after(lockstep, output))

    def open(self) -> None:
        """See `Stepped.open`."""
        self.lm.unshard()

    def close(self) -> None:
        """See `Stepped.close`."""
        self.lm.reshard()

    def idle_pass(self) -> Tensor:
        """See `Stepped.idle_pass`."""
        self.idle = True
        try:
            states: Tensor = self.lm.base_model(inputs_embeds=self._zeros(), use_cache=False).last_hidden_state
        finally:
            self.idle = False
        return states

    def _zeros(self) -> Tensor:
        weight = next(self.lm.parameters())
        width = self.lm.config.get_text_config().hidden_size
        return torch.zeros(1, 1, width, device=weight.device, requires_grad=torch.is_grad_enabled())

    def _before(self, lockstep: Lockstep) -> None:
        lockstep.before_pass(self)

    def _after(self, lockstep: Lockstep, output: Any) -> None:
        if not self.idle:
            lockstep.after_pass(output.last_hidden_state)


def _language_model(model: nn.Module | Policy[Any, Any]) -> Any | None:
    """The model of `transformers` within a policy."""
    if not isinstance(model, nn.Module) or importlib.util.find_spec("transformers") is None:
        return None
    from transformers import PreTrainedModel

    return next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)


def transformer_layers(lm: nn.Module, names: Sequence[str] | None = None) -> list[nn.Module]:
    """The transformer layers of a model of `transformers`, each of which is gathered for its passes alone.

    Args:
        lm: the model.
        names: of their classes, as the launcher has them; None takes all layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules: Iterable[nn.Module] = lm.modules()
    if names:
        return [module for module in modules if type(module).__name__ in names]
    return [module for module in modules if isinstance(module, GradientCheckpointingLayer)]


def _plugin() -> FullyShardedDataParallelPlugin:
    """What the launcher asks for.

    Raises:
        UserError: it is not what we do.
    """
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(f"FSDP_VERSION: weights are sharded by FSDP2, got {version}; launch with --fsdp_version 2")
    for name in ("OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        if os.environ.get(f"FSDP_{name}", "false").lower() == "true":
            other = "; policy.lm.gradient_checkpointing does that" if name == "ACTIVATION_CHECKPOINTING" else ""
            raise UserError(f"FSDP_{name}: not supported, must be false{other}")
    return FullyShardedDataParallelPlugin()
