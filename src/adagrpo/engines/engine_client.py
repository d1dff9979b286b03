"""Ask a server of vLLM or SGLang for items: the best by beam search, or samples. Standard library alone.

    ids = SemanticIds(FOLDER)                                        # semantic_ids.py of the folder
    server = VllmServer("http://127.0.0.1:8000", FOLDER)             # or SglangServer("http://127.0.0.1:30000")
    best = search(server, ids, ["item-7", "item-3"], width=50, exclude=["item-7", "item-3"])

`search` is the beam search of `adagrpo evaluate`, held here instead of in the engine: of each hypothesis the server is
asked for the log-probabilities of the tokens that may follow, and of no others. They are those of the whole vocabulary,
before any processor, so hypotheses are ranked as `generate` ranks them with a prefix function. An item of `L` tokens
takes `L` rounds; the server's prefix cache holds the prompt. Equals are ordered as there: by the rank of the hypothesis
that they continue, then by token.

A server that is full (429, 503) is asked again after what its Retry-After says, and otherwise after a pause that
doubles. So is one whose answer breaks off. No more than `concurrency` requests are under way at once. Redirects are not
followed, and proxies are not used, so neither prompts nor a token are sent anywhere but to the address that was given.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

__all__ = ["Found", "Samples", "Server", "ServerError", "SglangServer", "VllmServer", "search"]

AT_ONCE = 128  # log-probabilities of chosen tokens a request: what vLLM allows
PROMPTS = 64  # prompts a request
LONGEST_PAUSE = 30.0  # seconds
LONGEST_ANSWER = 2**28  # bytes


class ServerError(Exception):
    """The server refused a request, failed for good, or answered what cannot be read."""


class Found(NamedTuple):
    """One item of a list."""

    item: Any
    score: float  # log-probability of its tokens


class Samples(NamedTuple):
    """`G` completions of one prompt."""

    tokens: list[list[int]]
    log_probs: list[list[float]]  # of each token, as the server says


class Server(Protocol):
    """What can be asked of an engine."""

    says_held: bool  # whether log-probabilities of samples are of what was drawn from, or of the whole vocabulary

    def next_log_probs(self, prompts: Sequence[list[int]], tokens: Sequence[list[int]]) -> list[list[float]]:
        """The log-probability of each of a prompt's tokens as the next."""

    def draw(
        self,
        prompts: Sequence[list[int]],
        count: int,
        *,
        length: int,
        temperature: float,
        seeds: Sequence[int],
        exclude: Sequence[Sequence[Any]] | None = None,
    ) -> list[Samples]:
        """`count` samples of each prompt, held to the catalogue by the engine's processor.

        Args:
            prompts: tokens of each.
            count: samples a prompt.
            length: tokens of a sample.
            temperature: divides the logits.
            seeds: of each prompt's samples, which take it and the `count - 1` numbers above it.
            exclude: items that are left out, by prompt.
        """

    def update(self, folder: str) -> None:
        """Serve the weights of another folder from now on."""


class _Ids(Protocol):
    """`SemanticIds` of an exported folder."""

    levels: int
    following: dict[tuple[int, ...], list[int]]

    def prompt(self, items: Sequence[Any]) -> list[int]: ...
    def item(self, tokens: Iterable[int]) -> Any: ...
    def prefix_function(
        self, prompt_length: int, exclude: Sequence[Sequence[Any]] | None = None
    ) -> Callable[[int, Any], list[int]]: ...


def search(
    server: Server,
    ids: _Ids,
    history: Sequence[Any],
    *,
    width: int = 50,
    count: int = 10,
    exclude: Sequence[Any] | None = None,
) -> list[Found]:
    """The best items after a history, best first; fewer than `count` if there are no more.

    Args:
        server: of the exported folder.
        ids: of that folder.
        history: item ids, oldest first.
        width: hypotheses kept at each level.
        count: items returned.
        exclude: items that are never written, say the history.

    Raises:
        ServerError: the server failed.
        KeyError: an item is not in the catalogue.
    """
    prompt = ids.prompt(history)
    allowed = ids.prefix_function(0, None if exclude is None else [exclude])
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(ids.levels):
        open_beams = [(written, score, allowed(0, written)) for written, score in beams]
        open_beams = [beam for beam in open_beams if beam[2]]
        values = server.next_log_probs(
            [[*prompt, *written] for written, _, _ in open_beams], [tokens for _, _, tokens in open_beams]
        )
        grown = [
            ((*written, token), score + value)
            for (written, score, tokens), row in zip(open_beams, values, strict=True)
            for token, value in zip(tokens, row, strict=True)
        ]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]  # stable: equals stay in their order
    return [Found(ids.item(written), score) for written, score in beams[:count]]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect to be refused as any other status is."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: no request follows."""


class _Http:
    """Requests to one server."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 60.0,
        retries: int = 4,
        backoff_seconds: float = 0.5,
        concurrency: int = 4,
        token: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Describe a server; nothing is sent yet.

        Args:
            url: of its root, `http` or `https`.
            timeout_seconds: for the connection, and then for each wait for more of the answer; a request as a whole
                has no limit.
            retries: how often a request is sent again.
            backoff_seconds: the first pause; each is twice the one before, 30 seconds at most.
            concurrency: requests at a time.
            token: a bearer token.
            sleep: called with seconds to wait.

        Raises:
            ValueError: the address is of another kind.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must be http:// or https://, got {url}")
        self.url, self.timeout, self.retries, self.backoff = url.rstrip("/"), timeout_seconds, retries, backoff_seconds
        self.concurrency, self.sleep = concurrency, sleep
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request, asked again while the server is full or cannot be reached."""
        content = json.dumps(body).encode()
        problem = ""
        for attempt in range(self.retries + 1):
            request = urllib.request.Request(self.url + path, content, self.headers)
            pause = min(self.backoff * 2**attempt, LONGEST_PAUSE)
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    return json.loads(_content(response))
            except urllib.error.HTTPError as error:
                moved = ", and redirects are not followed" if 300 <= error.code < 400 else ""
                problem = f"answered status {error.code}{moved}: {_reason(error)}"
                if error.code not in (408, 429) and error.code < 500:
                    break
                pause = _asked_pause(error.headers.get("Retry-After"), pause)
            except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
                problem = f"could not be asked ({type(error).__name__}: {error})"
            if attempt < self.retries:
                self.sleep(pause)
        raise ServerError(f"{self.url}{path} {problem}")

    def post_all(self, path: str, bodies: Sequence[dict[str, Any]]) -> Iterator[Any]:
        """The answers to many requests, in their order."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            yield from pool.map(lambda body: self.post(path, body), bodies)


def _content(response: http.client.HTTPResponse) -> bytes:
    """An answer, which may not be of any length.

    Raises:
        ValueError: it is longer than `LONGEST_ANSWER`.
    """
    content = response.read(LONGEST_ANSWER + 1)
    if len(content) > LONGEST_ANSWER:
        raise ValueError(f"the answer is longer than {LONGEST_ANSWER >> 20} MB")
    return content


def _reason(refusal: urllib.error.HTTPError) -> str:
    """The beginning of what came with a refusal; nothing where that broke off."""
    try:
        with refusal:
            return refusal.read(500).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""


def _asked_pause(header: str | None, otherwise: float) -> float:
    """Seconds that a Retry-After asks for, as far as it is a number."""
    return min(float(header), LONGEST_PAUSE) if header and header.strip().isdecimal() else otherwise


class VllmServer:
    """vLLM's OpenAI-compatible server, of version 0.32 or later (`logprob_token_ids`)."""

    says_held = False

    def __init__(self, url: str, model: str, **options: Any) -> None:
        """Describe a server; nothing is sent yet.

        Args:
            url: of its root, without `/v1`.
            model: the name that it serves the folder under: the folder, unless it was started with another.
            options: of the connection: timeout_seconds, retries, backoff_seconds, concurrency, token.
        """
        self.http, self.model = _Http(url, **options), model

    def next_log_probs(self, prompts: Sequence[list[int]], tokens: Sequence[list[int]]) -> list[list[float]]:
        """See `Server`. Prompts of a request share its tokens, so each is asked for those of all of them."""
        bodies, places = list[dict[str, Any]](), list[tuple[int, int]]()
        for first in range(0, len(prompts), PROMPTS):
            part = slice(first, first + PROMPTS)
            asked = sorted({token for row in tokens[part] for token in row})
            for start in range(0, len(asked), AT_ONCE):
                chosen = asked[start : start + AT_ONCE]
                bodies.append(
                    {"model": self.model, "prompt": list(prompts[part]), "max_tokens": 1, "temperature": 1.0}
                    | {"add_special_tokens": False, "logprobs": len(chosen), "logprob_token_ids": chosen}
                    | {"return_tokens_as_token_ids": True}
                )
                places.append((first, len(prompts[part])))
        known: list[dict[str, float]] = [{} for _ in prompts]
        for (first, size), answer in zip(places, self.http.post_all("/v1/completions", bodies), strict=True):
            with _reading():
                for choice in _choices(answer, size):
                    found = _read(choice, "logprobs", "top_logprobs", 0)
                    known[first + choice["index"]] |= {token: float(value) for token, value in found.items()}
        return [_chosen(row, found) for row, found in zip(tokens, known, strict=True)]

    def draw(
        self,
        prompts: Sequence[list[int]],
        count: int,
        *,
        length: int,
        temperature: float,
        seeds: Sequence[int],
        exclude: Sequence[Sequence[Any]] | None = None,
    ) -> list[Samples]:
        """See `Server`. The log-probabilities are of the whole vocabulary, unless the server's `--logprobs-mode` says
        otherwise."""
        bodies = [
            {"model": self.model, "prompt": prompt, "n": count, "max_tokens": length, "temperature": temperature}
            | {"seed": seeds[row], "logprobs": 0, "return_token_ids": True, "add_special_tokens": False}
            | {"vllm_xargs": {"catalog": 1} | ({"exclude": list(exclude[row])} if exclude and exclude[row] else {})}
            for row, prompt in enumerate(prompts)
        ]
        drawn = []
        for answer in self.http.post_all("/v1/completions", bodies):
            with _reading():
                choices = sorted(_choices(answer, count), key=lambda choice: choice["index"])
                tokens = [[int(token) for token in _read(choice, "token_ids")] for choice in choices]
                said = [[float(value) for value in _read(choice, "logprobs", "token_logprobs")] for choice in choices]
            drawn.append(Samples(tokens, said))
        return drawn

    def update(self, folder: str) -> None:
        """Not over HTTP.

        Raises:
            ServerError: always; vLLM has no route that reads weights from a folder, so start it again.
        """
        raise ServerError(f"vLLM reads no weights over HTTP; start it again with {folder}")


class SglangServer:
    """SGLang's own routes, of version 0.5 or later."""

    says_held = True

    def __init__(self, url: str, processor: str = "", **options: Any) -> None:
        """Describe a server; nothing is sent yet.

        Args:
            url: of its root.
            processor: `PROCESSOR` of `sglang_processor`, which `draw` sends.
            options: of the connection: timeout_seconds, retries, backoff_seconds, concurrency, token.
        """
        self.http, self.processor = _Http(url, **options), processor

    def next_log_probs(self, prompts: Sequence[list[int]], tokens: Sequence[list[int]]) -> list[list[float]]:
        """See `Server`; each prompt is asked for its own tokens."""
        starts = range(0, len(prompts), PROMPTS)
        bodies: list[dict[str, Any]] = [
            {"input_ids": list(prompts[first : first + PROMPTS]), "return_logprob": True}
            | {"token_ids_logprob": [list(row) for row in tokens[first : first + PROMPTS]]}
            | {"sampling_params": {"max_new_tokens": 1, "temperature": 1.0}}
            for first in starts
        ]
        found: list[dict[str, float]] = []
        for body, answer in zip(bodies, self.http.post_all("/generate", bodies), strict=True):
            if not isinstance(answer, list) or len(answer) != len(body["input_ids"]):
                raise ServerError("SGLang answered another number of completions than it was asked for")
            with _reading():
                rows = [_read(one, "meta_info", "output_token_ids_logprobs", 0) for one in answer]
                found += [{f"token_id:{token}": float(value) for value, token, *_ in row} for row in rows]
        return [_chosen(row, known) for row, known in zip(tokens, found, strict=True)]

    def draw(
        self,
        prompts: Sequence[list[int]],
        count: int,
        *,
        length: int,
        temperature: float,
        seeds: Sequence[int],
        exclude: Sequence[Sequence[Any]] | None = None,
    ) -> list[Samples]:
        """See `Server`. The log-probabilities are of the distribution drawn from: held, at that temperature."""
        bodies = [
            {"input_ids": [prompt] * count, "return_logprob": True, "custom_logit_processor": self.processor}
            | {
                "sampling_params": [
                    {"max_new_tokens": length, "temperature": temperature, "sampling_seed": seeds[row] + copy}
                    | {"custom_params": {"exclude": list(exclude[row]) if exclude else []}}
                    for copy in range(count)
                ]
            }
            for row, prompt in enumerate(prompts)
        ]
        drawn = []
        for answer in self.http.post_all("/generate", bodies):
            with _reading():
                written = [_read(one, "meta_info", "output_token_logprobs") for one in answer]
                tokens = [[int(token) for _, token, *_ in row] for row in written]
                said = [[float(value) for value, *_ in row] for row in written]
            drawn.append(Samples(tokens, said))
        return drawn

    def update(self, folder: str) -> None:
        """Have the server read the weights of a folder that it sees, and forget its cache.

        Raises:
            ServerError: it could not.
        """
        answer = self.http.post("/update_weights_from_disk", {"model_path": folder, "flush_cache": True})
        if not _read(answer, "success"):
            raise ServerError(f"SGLang did not read {folder}: {answer.get('message')}")


@contextmanager
def _reading() -> Iterator[None]:
    """Where an answer is read.

    Raises:
        ServerError: it is of another form than what is read there.
    """
    try:
        yield
    except (TypeError, AttributeError, KeyError, ValueError, IndexError) as error:
        raise ServerError(f"the server's answer cannot be read ({type(error).__name__}: {error})") from error


def _choices(answer: Any, size: int) -> list[dict[str, Any]]:
    choices = _read(answer, "choices")
    if len(choices) != size or {choice.get("index") for choice in choices} != set(range(size)):
        raise ServerError(f"the server answered {len(choices)} completions, asked for {size}")
    return list(choices)


def _read(answer: Any, *path: str | int) -> Any:
    """A field of an answer.

    Raises:
        ServerError: it is not there.
    """
    for key in path:
        try:
            answer = answer[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(f"the server's answer has no {'.'.join(map(str, path))}") from error
    return answer


def _chosen(tokens: Sequence[int], found: dict[str, float]) -> list[float]:
    try:
        values = [found[f"token_id:{token}"] for token in tokens]
    except KeyError as error:
        raise ServerError(f"the server left out the log-probability of {error.args[0]}") from error
    if any(math.isnan(value) for value in values):
        raise ServerError("the server gave a log-probability that is no number")
    return values
