"""Ask vLLM or SGLang for items: the best by beam search, or samples. Has never been run with an engine.

`search` is the beam search of `adagrpo evaluate`, held here instead of in the engine: of each hypothesis the server is
asked for the log-probabilities of the tokens that may follow, one round a level. They are those of the whole
vocabulary, as `generate` ranks hypotheses with a prefix function.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["Found", "Samples", "Server", "SglangServer", "VllmServer", "search"]

MOST = 128  # log-probabilities of chosen tokens that vLLM gives a request


class Found(NamedTuple):
    """One item of a list."""

    item: Any
    score: float  # log-probability of its tokens


class Samples(NamedTuple):
    """Completions of one prompt."""

    tokens: list[list[int]]
    log_probs: list[list[float]]  # of each token, as the server says


class Server(Protocol):
    """What is asked of an engine."""

    def next_log_probs(self, prompt: list[int], tokens: list[int]) -> list[float]:
        """Give the log-probability of each token as the next one of a prompt."""
        ...

    def draw(self, prompt: list[int], count: int, *, length: int, temperature: float, seed: int) -> Samples:
        """Draw samples that the engine's processor holds to the catalogue."""
        ...


def search(
    server: Server, ids: Any, history: Sequence[Any], *, width: int = 50, count: int = 10, exclude: Sequence[Any] = ()
) -> list[Found]:
    """Find the best items after a history, best first.

    Args:
        server: of the exported folder.
        ids: `SemanticIds` of that folder.
        history: item ids, oldest first.
        width: hypotheses kept at each level.
        count: items returned.
        exclude: items that are never written, say the history.
    """
    prompt, allowed = ids.prompt(history), ids.prefix_function(0, [list(exclude)])
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(ids.levels):
        grown = []
        for written, score in beams:
            if tokens := allowed(0, written):
                values = server.next_log_probs([*prompt, *written], tokens)
                grown += [((*written, token), score + value) for token, value in zip(tokens, values, strict=True)]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return [Found(ids.item(written), score) for written, score in beams[:count]]


class VllmServer:
    """vLLM's OpenAI-compatible server, of version 0.32 or later (`logprob_token_ids`)."""

    def __init__(self, url: str, model: str) -> None:
        """Take the address without `/v1`, and the name under which the folder is served."""
        self.url, self.model = url, model

    def next_log_probs(self, prompt: list[int], tokens: list[int]) -> list[float]:
        """See `Server`."""
        values: list[float] = []
        for first in range(0, len(tokens), MOST):
            part = tokens[first : first + MOST]
            body = {"model": self.model, "prompt": prompt, "max_tokens": 1, "add_special_tokens": False}
            body |= {"logprobs": len(part), "logprob_token_ids": part, "return_tokens_as_token_ids": True}
            found = _post(f"{self.url}/v1/completions", body)["choices"][0]["logprobs"]["top_logprobs"][0]
            values += [found[f"token_id:{token}"] for token in part]
        return values

    def draw(self, prompt: list[int], count: int, *, length: int, temperature: float, seed: int) -> Samples:
        """See `Server`. The log-probabilities are of the whole vocabulary."""
        body = {"model": self.model, "prompt": prompt, "n": count, "max_tokens": length, "temperature": temperature}
        body |= {"seed": seed, "logprobs": 0, "return_token_ids": True, "vllm_xargs": {"catalog": 1}}
        choices = _post(f"{self.url}/v1/completions", body)["choices"]
        said = [choice["logprobs"]["token_logprobs"] for choice in choices]
        return Samples([choice["token_ids"] for choice in choices], said)


class SglangServer:
    """SGLang's own routes, of version 0.5 or later."""

    def __init__(self, url: str, processor: str) -> None:
        """Take the address and `PROCESSOR` of `sglang_processor`."""
        self.url, self.processor = url, processor

    def next_log_probs(self, prompt: list[int], tokens: list[int]) -> list[float]:
        """See `Server`."""
        body = {"input_ids": prompt, "return_logprob": True, "token_ids_logprob": tokens}
        answer = _post(f"{self.url}/generate", body | {"sampling_params": {"max_new_tokens": 1}})
        found = {token: value for value, token, *_ in answer["meta_info"]["output_token_ids_logprobs"][0]}
        return [found[token] for token in tokens]

    def draw(self, prompt: list[int], count: int, *, length: int, temperature: float, seed: int) -> Samples:
        """See `Server`. The log-probabilities are of the distribution drawn from."""
        params = [
            {"max_new_tokens": length, "temperature": temperature, "sampling_seed": seed + copy, "custom_params": {}}
            for copy in range(count)
        ]
        body = {"input_ids": [prompt] * count, "return_logprob": True, "custom_logit_processor": self.processor}
        rows = [
            one["meta_info"]["output_token_logprobs"]
            for one in _post(f"{self.url}/generate", body | {"sampling_params": params})
        ]
        return Samples(
            [[token for _, token, *_ in row] for row in rows], [[value for value, *_ in row] for row in rows]
        )


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)
