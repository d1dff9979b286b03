"""Causal language models of Hugging Face `transformers` with tokens for Semantic IDs.

    token(l, c) = first_token + K_1 + .. + K_(l-1) + c

New tokens follow the existing ones, as `VOCABULARY_FILE` records. Folders must be safetensors, and none of their code
is run. If the body is frozen or adapted by LoRA (Hu et al. 2021), embeddings and head still train, in float32.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adagrpo.errors import UserError, install
from adagrpo.storage.model_folders import refuse_code

try:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
except ImportError as error:
    raise UserError(f"policy.kind: 'causal_lm' needs transformers; {install('hf')}") from error

VOCABULARY_FILE = "semantic_ids.json"
PAD, END = 0, 1  # the other tokens of a vocabulary of codes


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of the codes of `L` levels in a model."""

    first_token: int  # of the first code of the first level
    code_sizes: tuple[int, ...]  # (K_1 .. K_L)
    outside_token: int  # stands for all tokens that are no code of the level
    tokens: tuple[tuple[int, ...], ...] = ()  # of each code of each level where they are in no blocks; -1: has none

    @property
    def of_levels(self) -> tuple[tuple[int, ...], ...]:
        """Token of each code of each level, -1 for a code without one."""
        blocks = zip(self.starts, self.code_sizes, strict=True)
        return self.tokens or tuple(tuple(range(start, start + size)) for start, size in blocks)

    @property
    def starts(self) -> tuple[int, ...]:
        """Token of code 0 of each level."""
        return tuple(self.first_token + sum(self.code_sizes[:level]) for level in range(len(self.code_sizes)))

    @property
    def end(self) -> int:
        """One past the last code."""
        return self.first_token + sum(self.code_sizes)

    def dump(self) -> str:
        """Return the vocabulary as JSON."""
        content = {
            "first_token": self.first_token,
            "level_sizes": list(self.code_sizes),
            "outside_token": self.outside_token,
        } | ({"tokens": self.tokens} if self.tokens else {})
        return json.dumps(content) + "\n"

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read the JSON of `dump`; UserError if the file is damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            sizes = tuple(int(size) for size in content["level_sizes"])
            tokens = tuple(tuple(map(int, level)) for level in content.get("tokens", ()))
            return cls(int(content["first_token"]), sizes, int(content["outside_token"]), tokens)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: damaged; export the folder again") from error


def from_configuration(
    options: dict[str, Any], code_sizes: tuple[int, ...], *, seed: int
) -> tuple[PreTrainedModel, Vocabulary]:
    """Return a random model and a vocabulary of padding, end and codes.

    `options` are `model_type` and keys of its configuration; UserError for an unknown or invalid one.
    """
    vocabulary = Vocabulary(END + 1, code_sizes, PAD)
    settings = dict(options)
    kind = settings.pop("model_type", None)
    decided = {"vocab_size": vocabulary.end, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": None}
    for key in decided.keys() & settings.keys():
        raise UserError(f"policy.lm.config.{key}: the catalogue decides it; leave it out")
    try:
        known = AutoConfig.for_model(str(kind))
        for key in settings.keys() - known.to_dict().keys() - known.attribute_map.keys():
            raise UserError(f"policy.lm.config.{key}: {kind} has no such key")
        config = AutoConfig.for_model(str(kind), **settings, **decided)
        return _random(config, seed), vocabulary
    except (ValueError, TypeError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise UserError(f"policy.lm.config: no causal LM can be made of it ({_first_line(error)})") from error


def from_folder(
    folder: Path, code_sizes: tuple[int, ...], *, seed: int, weights: bool
) -> tuple[PreTrainedModel, Vocabulary]:
    """Load a model from a local folder and add tokens for the codes.

    UserError for another folder, one with code, or codes of another catalogue.

    New embeddings have mean and standard deviation of the existing ones; without `weights` all are drawn.
    """
    model = load_folder(folder, seed=seed, weights=weights)
    known = folder / VOCABULARY_FILE
    if known.is_file():
        vocabulary = Vocabulary.read(known)
        if vocabulary.code_sizes != code_sizes:
            raise UserError(f"{known}: made for codes of sizes {vocabulary.code_sizes}, the catalogue has {code_sizes}")
        return model, vocabulary
    vocabulary = Vocabulary(embedded_tokens(model), code_sizes, end_token(model))
    model.resize_token_embeddings(vocabulary.end, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for module in {id(part.weight): part for part in parts}.values():  # tied ones once
        with torch.no_grad():
            old, new = module.weight[: vocabulary.first_token], module.weight[vocabulary.first_token :]
            new.copy_(old.mean(0) + old.std(0) * torch.randn(new.shape, generator=generator))
            if getattr(module, "bias", None) is not None:
                module.bias[vocabulary.first_token :] = 0
    model.tie_weights()
    return model, vocabulary


def load_folder(folder: Path, *, seed: int, weights: bool) -> PreTrainedModel:
    """Load a model from a local folder unchanged; see `from_folder`."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; policy.lm.checkpoint is a local Hugging Face folder")
    refuse_code(folder, "policy.lm.checkpoint")
    try:
        model: PreTrainedModel
        if weights:
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, attn_implementation="sdpa", dtype=torch.float32
            )
        else:
            model = _random(AutoConfig.from_pretrained(folder, local_files_only=True), seed)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: no causal LM in safetensors ({_first_line(error)})") from error
    return model


def embedded_tokens(model: PreTrainedModel) -> int:
    """Return the number of token embeddings."""
    module = model.get_input_embeddings()
    assert isinstance(module, nn.Embedding)
    return module.num_embeddings


def end_token(model: PreTrainedModel) -> int:
    """Return the end-of-text token, or 0 if the model has none."""
    end = getattr(model.config, "eos_token_id", None)
    end = end[0] if isinstance(end, list) else end
    return end if isinstance(end, int) and 0 <= end < embedded_tokens(model) else 0


def adapt(model: PreTrainedModel, *, frozen_body: bool, lora_rank: int, lora_alpha: int, bfloat16: bool) -> None:
    """Choose what trains, in place: everything, embeddings and head, or these and LoRA adapters.

    The adapters are scaled by `lora_alpha` / rank; `bfloat16` is of the frozen weights. UserError for LoRA without
    `peft`.
    """
    if not (frozen_body or lora_rank):
        return
    trained = [model.get_input_embeddings(), model.get_output_embeddings()]
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    if bfloat16:  # weights alone: buffers, such as the frequencies of rotary positions, have to be exact
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    if lora_rank:
        if importlib.util.find_spec("peft") is None:
            raise UserError(f"policy.lm.lora_rank: LoRA needs peft; {install('peft')}")
        from peft import LoraConfig, inject_adapter_in_model

        options = LoraConfig(r=lora_rank, lora_alpha=lora_alpha, lora_dropout=0.0, target_modules="all-linear")
        inject_adapter_in_model(options, model)
        for module in trained:  # injecting froze them
            module.requires_grad_(True)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()


def template_tokens(folder: Path, key: str, text: str) -> tuple[int, ...]:
    """Tokenize the text before (`preamble`) or after (`suffix`) every history; errors as of `read_tokenizer`."""
    tokens = read_tokenizer(folder, key)(text, add_special_tokens=key == "preamble")["input_ids"]
    return tuple(int(token) for token in tokens)


def read_tokenizer(folder: Path, key: str) -> Any:
    """Load a folder's tokenizer for `policy.lm.<key>`; UserError if it has none, or contains code."""
    refuse_code(folder, "policy.lm.checkpoint")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: no tokenizer here, so policy.lm.{key} cannot be read") from error


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a float32 copy of a model with merged adapters."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if hasattr(module, "get_base_layer"):
            module.merge()
            plain.set_submodule(name, module.get_base_layer())
    plain.float()
    plain.config.dtype = torch.float32
    return plain.requires_grad_(True)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a folder's tokenizer to another, if there is one."""
    refuse_code(source, "policy.lm.checkpoint")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(target)


def inner_dropout(model: PreTrainedModel) -> str | None:
    """Return the name of the body's first dropout, or None."""
    for name, module in model.base_model.named_modules():
        rates = [rate for field, rate in vars(module).items() if "drop" in field and isinstance(rate, float)]
        if max([*rates, module.p if isinstance(module, nn.Dropout) else 0.0]) > 0:
            return str(name)
    return None


def _random(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=torch.float32
        )
    return model


def _tied_names(model: Any) -> dict[str, str]:  # tied parameters, each with its stored one
    if not getattr(model.config, "tie_word_embeddings", False):
        return {}
    return dict(model._tied_weights_keys or {})


def to_model_names(module: Any, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Save weights of `module.lm` under names of `transformers`, tied ones once."""
    tied = _tied_names(module.lm)
    inner = f"{prefix}lm."
    for name in [name for name in state if name.startswith(inner)]:
        tensor = state.pop(name)
        if name.removeprefix(inner) not in tied:
            state[prefix + name.removeprefix(inner)] = tensor


def from_model_names(module: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Load what `to_model_names` saved."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}lm.{name.removeprefix(prefix)}"] = state.pop(name)
    for name, source in _tied_names(module.lm).items():
        if f"{prefix}lm.{source}" in state:
            state[f"{prefix}lm.{name}"] = state[f"{prefix}lm.{source}"]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
