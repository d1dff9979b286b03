"""Any Hugging Face causal LM as a policy: histories are prompts of code tokens, each read once.

    prompt(x) = preamble, c_1 .. c_L of the first item, between, c_1 .. c_L of the second, .., suffix
    target    = c_1 .. c_L
    π(c | x, c_<l) = softmax over the **whole** vocabulary, read at the K_l tokens of the level
    mask(q, k) = k in the prompt or the suffix, or k in the completion of q and not after q

Code K_l ("outside") sums all other tokens, so `level_sizes` is K_l + 1 (`Catalog.with_outside`). NLL at all positions
is one causal pass. Scoring packs completions behind one prompt under `mask`; decoding keeps its keys and values once
per sample.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from adagrpo.errors import UserError
from adagrpo.networks import Dropout
from adagrpo.objective import nll
from adagrpo.policies import language_model
from adagrpo.policies.language_model import (
    VOCABULARY_FILE,
    Vocabulary,
    from_model_names,
    inner_dropout,
    to_model_names,
)
from adagrpo.policies.named_tokens import NamedTokens
from adagrpo.policies.shared_codes import SharedCodesPolicy
from adagrpo.policies.shared_prefix import (
    Block,
    CausalContext,
    CausalState,
    KeysValues,
    PrefixLayer,
    Prompts,
    Read,
    block,
    block_mask,
    checkpointing,
    of_hypotheses,
    pack,
    states_at,
)
from adagrpo.policies.spec import PolicySpec
from adagrpo.semantic_ids.catalog import numbers_items
from adagrpo.types import Histories


class CausalLMPolicy(nn.Module):
    """Causal LM policy; implements `adagrpo.policies.policy.Policy`."""

    small = False
    trains_on_nll = True
    tokens_of_codes: Tensor
    item_codes: Tensor
    item_tokens: Tensor
    code_offsets: Tensor
    absent: Tensor
    preamble: Tensor
    between: Tensor
    suffix: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        item_codes: Tensor,  # (V, L) int64
        *,
        max_history: int = 20,
        preamble: tuple[int, ...] = (),
        between: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
        dropout: float = 0.0,  # on input embeddings and final states, beside the model's own
        gradient_checkpointing: bool = False,  # recompute the layers in the backward pass
    ) -> None:
        """Wrap a model that has tokens for the codes; `between` stands between the codes of two items.

        UserError if completions cannot be packed, or checkpointing meets dropout inside the body.
        """
        super().__init__()
        if item_codes.ndim != 2 or item_codes.shape[1] != len(vocabulary.code_sizes):
            raise ValueError(f"item_codes must be (V, {len(vocabulary.code_sizes)}), got {tuple(item_codes.shape)}")
        self.lm = model
        self.vocabulary = vocabulary
        # the last code of each level stands for all other tokens
        self.level_sizes = tuple(size + 1 for size in vocabulary.code_sizes)
        self.max_history = max_history
        self.dropout = Dropout(dropout)
        levels = len(vocabulary.code_sizes)
        blocks = [[*tokens, vocabulary.outside_token] for tokens in vocabulary.of_levels]
        offsets = torch.tensor([0, *map(len, blocks[:-1])]).cumsum(0)
        tokens = torch.tensor([token for block in blocks for token in block])
        self.register_buffer("code_offsets", offsets, persistent=False)
        self.register_buffer("absent", tokens < 0, persistent=False)
        self.register_buffer(
            "tokens_of_codes", tokens.masked_fill(tokens < 0, vocabulary.outside_token), persistent=False
        )
        self.register_buffer("item_codes", item_codes, persistent=False)
        self.register_buffer("item_tokens", self._tokens(item_codes), persistent=False)
        self.register_buffer("preamble", torch.tensor(preamble, dtype=torch.int64), persistent=False)
        self.register_buffer("between", torch.tensor(between, dtype=torch.int64), persistent=False)
        self.register_buffer("suffix", torch.tensor(suffix, dtype=torch.int64), persistent=False)
        self._dtype = torch.bfloat16 if any(p.dtype == torch.bfloat16 for p in model.parameters()) else torch.float32
        self._layers = int(model.config.get_text_config().num_hidden_layers)
        longest = len(preamble) + len(suffix) + (max_history - 1) * len(between) + (max_history + 1) * levels - 1
        room = getattr(model.config, "max_position_embeddings", None) or longest
        types = getattr(model.config, "layer_types", None)
        if types is None or "sliding_attention" in types:  # without types a window is that of all layers
            room = min(room, getattr(model.config, "sliding_window", None) or longest)
        if room < longest:
            raise UserError(
                f"policy.lm: the model sees {room} tokens at once, a prompt and an item can take {longest}; "
                "lower max_history, or give the configuration more positions"
            )
        self._checkpointed = gradient_checkpointing
        dropped = inner_dropout(model)
        self.same_in_training = dropout == 0 and not gradient_checkpointing and dropped is None
        if gradient_checkpointing:
            key, kind = "policy.lm.gradient_checkpointing", model.config.model_type
            if not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
                raise UserError(f"{key}: {kind} has no layers that support it")
            if dropped is not None:
                raise UserError(
                    f"{key}: not with dropout inside the body, here {dropped}; set it to 0 (policy.dropout may stay)"
                )
            model.activation_checkpointing_enable({"use_reentrant": False})
        self.register_state_dict_post_hook(to_model_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(from_model_names)  # type: ignore[no-untyped-call]
        self._check_packing()

    @property
    def checkpoint_files(self) -> dict[str, str]:
        """Configuration and vocabulary."""
        return {"config.json": self.lm.config.to_json_string(), VOCABULARY_FILE: self.vocabulary.dump()}

    def encode(
        self, histories: Histories, rows: Tensor | None = None, positions: Tensor | None = None
    ) -> CausalContext:
        """Lay out prompts, read on first use; see `Policy.encode`."""
        items, lengths = histories.items, histories.lengths
        if items.shape[1] > self.max_history:
            raise ValueError(f"histories have {items.shape[1]} positions, the policy takes {self.max_history}")
        whole = rows is None or positions is None
        if rows is None or positions is None:
            rows, positions = torch.arange(len(lengths), device=items.device), lengths - 1
        before, gap = self.preamble.expand(len(items), -1), len(self.between)
        written = torch.cat([self.between.expand(*items.shape, -1), self.item_tokens[items]], dim=2).flatten(1)
        tokens = torch.cat([before, written[:, gap:]], dim=1)
        width = self.item_codes.shape[1] + gap
        prompt_lengths, read = (len(self.preamble) + count * width - gap for count in (positions + 1, lengths))
        return CausalContext(Prompts(tokens, read, torch.is_grad_enabled()), rows, prompt_lengths, whole)

    def frozen(self) -> CausalLMPolicy:
        return self

    def supervised_loss(self, context: CausalContext, targets: Tensor) -> Tensor:
        """Return the (N,) NLL of targets (N,), in nats per code."""
        codes = self.item_codes[targets]
        hidden = self._teacher_forced(context, self.item_tokens[targets])
        if hidden is None:
            return nll(self.score(context, codes.unsqueeze(1)).squeeze(1))
        return nll(self._log_probs(hidden[:, :1], hidden[:, None, 1:], codes.unsqueeze(1), 1.0).squeeze(1))

    def score(self, context: CausalContext, codes: Tensor, *, temperature: float = 1.0) -> Tensor:
        samples, group, levels = codes.shape
        shared = len(self.suffix)
        layout = block(shared, group, levels - 1, codes.device)
        written = self._tokens(codes)[..., :-1].flatten(1)
        tokens = torch.cat([self.suffix.expand(samples, -1), written], dim=1)  # (B, P)
        prompts = context.prompts
        if prompts.read is None and prompts.differentiable and torch.is_grad_enabled():
            packed = pack(prompts.tokens, tokens, layout, context.rows, context.prompt_lengths)
            before, _ = self._body(packed.tokens, packed.positions, packed.mask, None)
            after = states_at(before, context.rows, packed.indices)
        else:
            before = self._read(prompts).hidden
            after = before[context.rows, :0]
            if tokens.shape[1]:
                after, _ = self._behind(context, self._cache(context), tokens, layout)
        start = after[:, shared - 1 : shared] if shared else states_at(before, context.rows, context.last)
        after = after[:, shared:].reshape(samples, group, levels - 1, start.shape[-1])
        return self._log_probs(start, after, codes, temperature)

    def start(self, context: CausalContext) -> CausalState:
        cache, shared = self._cache(context), len(self.suffix)
        if not shared:
            hidden = states_at(self._read(context.prompts).hidden, context.rows, context.last)
            return CausalState(hidden, 0, cache, context.prompt_mask, context.prompt_lengths, ())
        layout = block(shared, 0, 0, context.prompt_lengths.device)
        hidden, new = self._behind(context, cache, self.suffix.expand(len(context), -1), layout)
        prompt_mask = functional.pad(context.prompt_mask, (0, shared), value=True)
        return CausalState(hidden[:, -1:], 0, _joined(cache, new), prompt_mask, context.prompt_lengths + shared, ())

    def logits(self, state: CausalState) -> Tensor:
        return self._level_logits(state.hidden, state.level)

    def advance(self, state: CausalState, parents: Tensor, codes: Tensor) -> CausalState:
        level = state.level + 1
        if level == len(self.vocabulary.code_sizes):  # complete: nothing will be read from these hypotheses
            return CausalState(state.hidden[:, :0], level, state.prompt, state.prompt_mask, state.prompt_lengths, ())
        width = codes.shape[1]
        written: KeysValues = tuple(
            (of_hypotheses(keys, parents, state.level), of_hypotheses(values, parents, state.level))
            for keys, values in state.written
        )
        tokens = self.tokens_of_codes[codes + self.code_offsets[state.level]]
        positions = (state.prompt_lengths + state.level).unsqueeze(1).expand(-1, width)
        own = torch.eye(width, dtype=torch.bool, device=codes.device).repeat(1, level)  # (W', level * W')
        parts = [[prompt, *written[layer : layer + 1]] for layer, prompt in enumerate(state.prompt)]
        hidden, new = self._body(tokens, positions, block_mask(state.prompt_mask, own), parts)
        new = _joined(written, new) if written else new
        return CausalState(hidden, level, state.prompt, state.prompt_mask, state.prompt_lengths, new)

    def _tokens(self, codes: Tensor) -> Tensor:
        return self.tokens_of_codes[codes + self.code_offsets]

    def _body(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        parts: list[list[tuple[Tensor, Tensor]]] | None,
    ) -> tuple[Tensor, KeysValues]:
        """States of tokens (B, Q), with keys and values unless the cache `parts` is None."""
        vectors = self.lm.get_input_embeddings()(tokens)
        vectors = self.dropout(vectors).to(self._dtype)
        layers = None if parts is None else [PrefixLayer(part) for part in parts]
        with checkpointing(self.lm, layers is None) if self._checkpointed else nullcontext():
            output = self.lm.base_model(
                inputs_embeds=vectors,
                attention_mask=mask,
                position_ids=positions,
                cache=None if layers is None else Cache(layers=[*layers]),
                use_cache=layers is not None,
            )
        hidden: Tensor = self.dropout(output.last_hidden_state)
        new = tuple(layer.new for layer in layers or [] if layer.new is not None)
        return hidden, new

    def _read(self, prompts: Prompts) -> Read:
        if prompts.read is not None:
            return prompts.read
        with torch.set_grad_enabled(prompts.differentiable):
            hidden, cache = self._body(prompts.tokens, None, None, [[] for _ in range(self._layers)])
        prompts.read = Read(hidden, cache)
        return prompts.read

    def _cache(self, context: CausalContext) -> KeysValues:
        cache = self._read(context.prompts).cache
        return tuple((context.of_rows(keys), context.of_rows(values)) for keys, values in cache)

    def _behind(
        self, context: CausalContext, cache: KeysValues, tokens: Tensor, layout: Block
    ) -> tuple[Tensor, KeysValues]:
        mask = block_mask(context.prompt_mask, layout.sees)
        return self._body(tokens, context.prompt_lengths.unsqueeze(1) + layout.steps, mask, [[part] for part in cache])

    def _teacher_forced(self, context: CausalContext, targets: Tensor) -> Tensor | None:
        """(N, L, D) states that predict targets (N, L); None unless one causal pass gives them."""
        prompts, levels = context.prompts, targets.shape[1]
        if len(self.suffix) or len(self.between) or prompts.read is not None:
            return None
        if not (prompts.differentiable and torch.is_grad_enabled()):
            return None
        tokens = functional.pad(prompts.tokens, (0, levels))
        columns = context.prompt_lengths.unsqueeze(1) + torch.arange(levels, device=targets.device)  # (N, L)
        rows = context.rows.unsqueeze(1)
        furthest = context.prompt_lengths.new_zeros(len(tokens)).scatter_reduce(
            0, context.rows, context.prompt_lengths, "amax"
        )
        last = context.prompt_lengths == furthest[context.rows]
        tokens[rows.expand_as(columns)[last], columns[last]] = targets[last]
        if not torch.equal(tokens[rows, columns], targets):
            return None
        length = prompts.tokens.shape[1]
        real = torch.arange(length, device=targets.device) < prompts.lengths.unsqueeze(1)
        kept = self.same_in_training and torch.equal(tokens[:, :length][real], prompts.tokens[real])
        hidden, cache = self._body(tokens[:, :-1], None, None, [[] for _ in range(self._layers)] if kept else None)
        if kept:  # later scoring reuses these prompts
            prompts.read = Read(hidden[:, :length], tuple((k[:, :, :length], v[:, :, :length]) for k, v in cache))
        return states_at(hidden, context.rows, columns - 1)

    def _level_logits(self, hidden: Tensor, level: int) -> Tensor:  # (..., K_l + 1) float32
        head: Any = self.lm.get_output_embeddings()
        logits: Tensor = head(hidden.to(head.weight.dtype)).float()
        if self.vocabulary.tokens:  # scattered
            first = int(self.code_offsets[level])
            codes = slice(first, first + self.vocabulary.code_sizes[level])
            tokens, absent = self.tokens_of_codes[codes], self.absent[codes]
            own = logits.index_select(-1, tokens).masked_fill(absent, -torch.inf)
            outside = logits.index_fill(-1, tokens[~absent], -torch.inf).logsumexp(-1, keepdim=True)
            return torch.cat([own, outside], dim=-1)
        first = self.vocabulary.starts[level]
        past = first + self.vocabulary.code_sizes[level]
        outside = torch.cat([logits[..., :first], logits[..., past:]], dim=-1).logsumexp(-1, keepdim=True)
        return torch.cat([logits[..., first:past], outside], dim=-1)

    def _log_probs(self, start: Tensor, after: Tensor, codes: Tensor, temperature: float) -> Tensor:  # (B, G, L)
        scores = []
        for level in range(codes.shape[2]):
            hidden = start if level == 0 else after[:, :, level - 1]
            log_probs = (self._level_logits(hidden, level) / temperature).log_softmax(-1)
            scores.append(log_probs.expand(-1, codes.shape[1], -1).gather(-1, codes[..., level : level + 1]))
        return torch.cat(scores, dim=-1)

    def _check_packing(self) -> None:
        items = torch.arange(3) % len(self.item_codes)
        codes = self.item_codes[items[1:]].unsqueeze(0)  # (1, 2, L)
        histories = Histories(items[:2].unsqueeze(0), torch.tensor([2]))
        mode = self.training
        self.eval()
        try:
            with torch.enable_grad():
                packed = self.score(self.encode(histories), codes).detach()
            with torch.no_grad():
                cached = self.score(self.encode(histories), codes)
            exact = self._dtype == torch.float32  # otherwise embeddings, body and head are of different types
            with torch.no_grad(), nullcontext() if exact else torch.autocast(codes.device.type, self._dtype):
                plain = torch.stack([self._plain(histories, row) for row in codes[0]]).unsqueeze(0)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"policy.lm: {self.lm.config.model_type} cannot be a policy ({reason})") from error
        finally:
            self.train(mode)
        if not max(float((way - plain).abs().max()) for way in (packed, cached)) < (1e-3 if exact else 0.2):
            raise UserError(
                f"policy.lm: {self.lm.config.model_type} cannot be a policy: with completions packed behind one prompt "
                "it gives other probabilities than for plain sequences"
            )

    def _plain(self, histories: Histories, codes: Tensor) -> Tensor:  # (L,)
        prompt = self.encode(histories).prompts.tokens
        tokens = self._tokens(codes)
        written = torch.cat([self.suffix, tokens]).unsqueeze(0)
        sequence: dict[str, Tensor] = {"input_ids": torch.cat([prompt, written], dim=1)}
        if self._dtype != torch.float32:  # embeddings are float32, norm layers may refuse them
            vectors = self.lm.get_input_embeddings()(sequence.pop("input_ids"))
            sequence = {"inputs_embeds": vectors.to(self._dtype)}
        logits: Tensor = self.lm(**sequence).logits[0].float()
        log_probs = logits.log_softmax(-1)[-len(tokens) - 1 : -1]
        return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _joined(first: KeysValues, second: KeysValues) -> KeysValues:
    return tuple(
        (torch.cat([keys, more_keys], dim=2), torch.cat([values, more_values], dim=2))
        for (keys, values), (more_keys, more_values) in zip(first, second, strict=True)
    )


def build(spec: PolicySpec) -> CausalLMPolicy | SharedCodesPolicy:
    """Build a run's policy, within `SharedCodesPolicy` if items share Semantic IDs."""
    options, catalog = spec.options.lm, spec.catalog
    assert options is not None  # the configuration checks it
    sizes = tuple(size - 1 for size in catalog.level_sizes)
    given: dict[str, Any] = {"seed": spec.seed, "weights": not spec.trained}
    folder = spec.folder / str(options.checkpoint)
    template: dict[str, tuple[int, ...]] = {}
    if options.tokens:
        named, codes = len(options.tokens), catalog.codes.cpu()
        if len(sizes) != named and not (len(sizes) == named + 1 and numbers_items(codes.numpy())):
            raise UserError(
                f"policy.lm.tokens: names the tokens of {named} levels, the Semantic IDs have {len(sizes)}; "
                "name as many"
            )
        model = language_model.load_folder(folder, **given)
        names = NamedTokens(folder, options.tokens, sizes[:named], codes[:, :named])
        vocabulary = names.vocabulary(language_model.end_token(model), language_model.embedded_tokens(model))
        around = names.pieces(options.preamble or "", options.item, options.separator, options.suffix or "")
        template = around._asdict()
    elif options.checkpoint is not None:
        model, vocabulary = language_model.from_folder(folder, sizes, **given)
        for key, text in (("preamble", options.preamble), ("suffix", options.suffix)):
            if text is not None:
                template[key] = language_model.template_tokens(folder, key, text)
    else:
        model, vocabulary = language_model.from_configuration(options.config or {}, sizes, seed=spec.seed)
    language_model.adapt(
        model,
        frozen_body=options.frozen_body,
        lora_rank=options.lora_rank,
        lora_alpha=options.lora_alpha,
        bfloat16=options.dtype == "bfloat16",
    )
    levels = len(vocabulary.code_sizes)
    policy = CausalLMPolicy(
        model,
        vocabulary,
        catalog.codes[:, :levels].cpu(),
        max_history=spec.max_history,
        **template,
        dropout=spec.options.dropout,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    return policy if catalog.num_levels == levels else SharedCodesPolicy(policy, catalog.trie)
