"""Engines that follow the protocols of vLLM and SGLang as far as a processor sees them, around a language model on CPU.

Read in vLLM 0.32 (`v1/worker/gpu_input_batch.py`, `v1/worker/gpu/sample`, `entrypoints/openai/completion`) and SGLang
0.5.23 (`srt/layers/sampler.py`, `srt/managers/io_struct.py`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from http.client import parse_headers
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseServer, StreamRequestHandler, TCPServer
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Model = Callable[[list[int]], Tensor]  # tokens -> (vocabulary,) logits of the next
Choose = Callable[[Tensor], list[int]]  # (R, vocabulary) logits -> a token a row


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


class BatchUpdate(NamedTuple):
    batch_size: int
    removed: Sequence[int]
    added: Sequence[tuple[int, Any, list[int] | None, list[int]]]
    moved: Sequence[tuple[int, int, MoveDirectionality]]


class Request:
    """What was asked, and what has been written."""

    def __init__(self, prompt: list[int], length: int, arguments: dict[str, Any] | None = None) -> None:
        self.prompt, self.length, self.params = prompt, length, SimpleNamespace(extra_args=arguments)
        self.origin_input_ids, self.output_ids = prompt, list[int]()
        self.log_probs = list[Tensor]()  # of each step, as SGLang says them

    @property
    def done(self) -> bool:
        return len(self.output_ids) >= self.length


def greedy(logits: Tensor) -> list[int]:
    return logits.argmax(-1).tolist()


def run_moving(
    processor: Any, model: Model, requests: list[Request], *, seats: int, seed: int, choose: Choose = greedy
) -> None:
    """vLLM's runner before V2: a batch without gaps. A token stays -1 until the next step, as when scheduled ahead."""
    draw, waiting, batch = np.random.default_rng(seed), list(requests), list[Request]()
    late: list[tuple[Request, int]] = []
    while waiting or batch or late:
        for request, token in late:  # what the runner does before processors that need the tokens
            request.output_ids[-1] = token
        removed = [index for index, request in enumerate(batch) if request.done]
        added, moved, late = [], [], []
        coming = waiting[: int(draw.integers(1, seats + 1 - len(batch) + len(removed) + 1))]
        coming = coming[: seats - len(batch) + len(removed)]
        del waiting[: len(coming)]
        for request in coming:  # the lowest gap first, then the end
            index = removed.pop(0) if removed else len(batch)
            batch[index : index + 1] = [request]
            added.append((index, request.params, request.prompt, request.output_ids))
        gaps, last = list(removed), len(batch) - 1
        while gaps:  # the last requests move into the gaps
            while last in gaps:
                gaps.remove(last)
                last -= 1
            if gaps:
                gap = gaps.pop(0)
                batch[gap] = batch[last]
                moved.append((last, gap, MoveDirectionality.UNIDIRECTIONAL))
                last -= 1
        del batch[len(batch) - len(removed) :]
        if len(batch) > 1 and draw.random() < 0.5:
            first, second = (int(place) for place in draw.choice(len(batch), 2, replace=False))
            batch[first], batch[second] = batch[second], batch[first]
            moved.append((first, second, MoveDirectionality.SWAP))
        changed = bool(removed or added or moved)
        processor.update_state(BatchUpdate(len(batch), removed[::-1], added, moved) if changed else None)
        if batch:
            logits = torch.stack([model([*one.prompt, *one.output_ids]) for one in batch])
            for request, token in zip(batch, choose(processor.apply(logits)), strict=True):
                request.output_ids.append(-1)
                late.append((request, token))


class SlotStates(NamedTuple):
    device: torch.device
    max_num_reqs: int
    all_token_ids: Any
    prompt_len: Any


def slot_states(slots: int, longest: int) -> SlotStates:
    tokens, lengths = torch.zeros(slots, longest, dtype=torch.int32), torch.zeros(slots, dtype=torch.int32)
    return SlotStates(torch.device("cpu"), slots, SimpleNamespace(gpu=tokens), SimpleNamespace(gpu=lengths))


def run_slots(
    processor: Any,
    states: SlotStates,
    model: Model,
    requests: list[Request],
    *,
    seed: int,
    choose: Choose = greedy,
) -> None:
    """vLLM's runner V2: slots are kept and used again, rows are in another order at each step."""
    draw, waiting, slots = np.random.default_rng(seed), list(requests), dict[int, Request]()
    while waiting or slots:
        free = [slot for slot in range(states.max_num_reqs) if slot not in slots]
        for slot in draw.permutation(free).tolist()[: int(draw.integers(0 if slots else 1, len(free) + 1))]:
            if waiting:
                request = waiting.pop(0)
                slots[slot] = request
                states.all_token_ids.gpu[slot] = torch.randint(0, 50, states.all_token_ids.gpu.shape[1:])
                states.all_token_ids.gpu[slot, : len(request.prompt)] = torch.tensor(request.prompt)
                states.prompt_len.gpu[slot] = len(request.prompt)
                processor.add_request(slot, request.params)
        processor.apply_staged_writes()
        order = draw.permutation(sorted(slots)).astype(np.int32)
        batch = [slots[int(slot)] for slot in order]
        lengths = [len(one.prompt) + len(one.output_ids) for one in batch]
        context = SimpleNamespace(
            expanded_idx_mapping=torch.from_numpy(order),
            idx_mapping_np=order,
            pos=torch.tensor(lengths) - 1,
        )
        logits = torch.stack([model([*one.prompt, *one.output_ids]) for one in batch])
        for row, token in enumerate(choose(processor.apply(logits, context))):
            states.all_token_ids.gpu[int(order[row]), lengths[row]] = token
            batch[row].output_ids.append(token)
        slots = {slot: request for slot, request in slots.items() if not request.done}


def run_sglang(
    processor: Any, model: Model, requests: list[Request], *, choose: Choose = greedy, temperature: float = 1.0
) -> None:
    """SGLang: the rows of the requests that named the processor, each with its parameters."""
    while batch := [request for request in requests if not request.done]:
        logits = torch.stack([model([*one.prompt, *one.output_ids]) for one in batch])
        rows = [row for row, one in enumerate(batch) if one.params.extra_args is not None]
        if rows:
            given = [batch[row].params.extra_args | {"__req__": batch[row]} for row in rows]
            logits.index_copy_(0, torch.tensor(rows), processor(logits.index_select(0, torch.tensor(rows)), given))
        said = (logits / temperature).log_softmax(-1)
        for row, (request, token) in enumerate(zip(batch, choose(logits), strict=True)):
            request.output_ids.append(token)
            request.log_probs.append(said[row])


class Served(NamedTuple):
    url: str
    requests: list[tuple[str, dict[str, Any]]]
    refusals: list[tuple[int, dict[str, str]]]  # answered first, one a request


@contextmanager
def served(
    model: Model, moving: Callable[[], Any], sglang: Any, seed: int = 0, update: Callable[[str], None] | None = None
) -> Iterator[Served]:
    """A server with the routes of both, as far as the client uses them; `update` reads the weights of a folder."""
    state = Served("", [], [])
    draws = torch.Generator().manual_seed(seed)

    def sampler(temperature: float) -> Choose:
        return lambda logits: torch.multinomial((logits / temperature).softmax(-1), 1, generator=draws)[:, 0].tolist()

    def completions(body: dict[str, Any]) -> dict[str, Any]:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        asked = body.get("logprob_token_ids") or []
        if len(asked) > 128 or (asked and body.get("logprobs") is None):
            raise ValueError("logprob_token_ids")
        requests = [Request(p, body["max_tokens"], body.get("vllm_xargs")) for p in prompts for _ in range(body["n"])]
        run_moving(moving(), model, requests, seats=5, seed=seed, choose=sampler(body["temperature"]))
        return {"choices": [choice(body, asked, row, one) for row, one in enumerate(requests)][::-1]}

    def choice(body: dict[str, Any], asked: list[int], row: int, one: Request) -> dict[str, Any]:
        values, tops = [], []
        for place, token in enumerate(one.output_ids):
            row_log_probs = model([*one.prompt, *one.output_ids[:place]]).log_softmax(-1)
            values.append(float(row_log_probs[token]))
            listed = list(dict.fromkeys([token, *asked]))
            tops.append(
                {f"token_id:{t}": float(row_log_probs[t]) for i, t in enumerate(listed) if body["logprobs"] >= i}
            )
        found = {"index": row, "text": "", "logprobs": {"token_logprobs": values, "top_logprobs": tops}}
        return found | ({"token_ids": one.output_ids} if body.get("return_token_ids") else {})

    def generate(body: dict[str, Any]) -> list[dict[str, Any]]:
        options = body["sampling_params"]
        options = options if isinstance(options, list) else [options] * len(body["input_ids"])
        named = "custom_logit_processor" in body
        requests = [
            Request(prompt, one["max_new_tokens"], one["custom_params"] if named else None)
            for prompt, one in zip(body["input_ids"], options, strict=True)
        ]
        run_sglang(
            sglang, model, requests, choose=sampler(options[0]["temperature"]), temperature=options[0]["temperature"]
        )
        answers = []
        for row, one in enumerate(requests):
            steps = one.log_probs
            information = {
                "output_token_logprobs": [[float(s[t]), t, None] for s, t in zip(steps, one.output_ids, strict=True)]
            }
            if "token_ids_logprob" in body:
                tokens = body["token_ids_logprob"][row]
                information["output_token_ids_logprobs"] = [[[float(s[t]), t, None] for t in tokens] for s in steps]
            answers.append({"text": "", "meta_info": information})
        return answers

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append((self.path, body))
            if state.refusals:
                status, headers = state.refusals.pop(0)
                self.answer(status, {"error": {"message": "busy"}}, headers)
                return
            try:
                with lock:
                    if self.path == "/v1/completions":
                        self.answer(200, completions({"n": 1} | body))
                    elif self.path == "/generate":
                        self.answer(200, generate(body))
                    else:
                        if update is not None:
                            update(body["model_path"])
                        self.answer(200, {"success": body["model_path"] != "nowhere", "message": "no such folder"})
            except ValueError as error:
                self.answer(400, {"error": {"message": str(error)}})

        def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, said in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, said)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    lock = threading.Lock()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield state._replace(url=url)


@contextmanager
def serving(server: BaseServer) -> Iterator[str]:
    """The address of a server that answers within the block."""
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def scripted(answers: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that sends given bytes, one answer a request, and the first line of each request."""
    asked: list[bytes] = []

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline())
            headers = parse_headers(self.rfile)
            self.rfile.read(int(headers.get("Content-Length", 0)))
            self.wfile.write(answers[len(asked) - 1])

    with serving(TCPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, asked
