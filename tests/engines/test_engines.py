"""Processors as they lie in an exported folder, driven as vLLM and SGLang drive them, against our own searches."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import adagrpo.engines
from adagrpo.decoding import beam_search, score_sequences
from adagrpo.engines.flat_trie import FlatTrie, flatten
from adagrpo.engines.sglang_processor import PROCESSOR
from adagrpo.errors import ServiceError
from adagrpo.groups.served_draw import served_rollouts
from adagrpo.pipeline.export import write_engines
from adagrpo.policies import prefix_function
from adagrpo.policies.causal_lm import CausalLMPolicy
from adagrpo.policies.language_model import VOCABULARY_FILE, from_configuration
from adagrpo.semantic_ids.catalog import Catalog
from adagrpo.types import Histories

from .fake_engines import (
    Model,
    Request,
    Served,
    greedy,
    run_moving,
    run_sglang,
    run_slots,
    scripted,
    served,
    slot_states,
)

SIZES, ITEMS, GONE = (6, 5, 6), 70, (3, 40)
NAMES = [f"item-{number}" for number in range(ITEMS)]
OPTIONS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


class World(NamedTuple):
    policy: CausalLMPolicy
    catalog: Catalog
    model: Model
    folder: Path
    ids: Any


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    codes = space[torch.randperm(len(space), generator=torch.Generator().manual_seed(0))[:ITEMS]]
    listed = torch.ones(ITEMS, dtype=torch.bool)
    listed[list(GONE)] = False
    catalog = Catalog.from_codes(codes, SIZES, listed=listed)
    lm, vocabulary = from_configuration({"model_type": "llama", **OPTIONS}, SIZES, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    policy = CausalLMPolicy(lm, vocabulary, codes, max_history=3).eval()
    folder = tmp_path_factory.mktemp("exported")
    (folder / VOCABULARY_FILE).write_text(vocabulary.dump())
    texts: dict[str, list[int]] = {"preamble": [], "between": [], "suffix": []}
    about = {"item_ids": NAMES, "codes": codes.tolist(), "delisted": [NAMES[item] for item in GONE], "max_history": 3}
    (folder / "catalog.json").write_text(json.dumps(about | texts))
    shutil.copyfile(prefix_function.__file__, folder / "semantic_ids.py")
    write_engines(vocabulary, catalog, folder)
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def model(tokens: list[int]) -> torch.Tensor:
        key = tuple(tokens)
        if key not in known:
            with torch.no_grad():
                known[key] = lm(torch.tensor([tokens])).logits[0, -1]
        return known[key].clone()

    return World(policy, catalog.with_outside(), model, folder, prefix_function.SemanticIds(folder))


@pytest.fixture(scope="module")
def exported(world: World) -> Iterator[dict[str, ModuleType]]:
    """The modules as an engine imports them, with the folder on its path."""
    sys.path.insert(0, str(world.folder))
    names = ("vllm_processor", "sglang_processor", "engine_client", "flat_trie")
    yield {name: importlib.import_module(f"catalog_engines.{name}") for name in names}
    sys.path.remove(str(world.folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "catalog_engines"]:
        del sys.modules[name]


def histories() -> list[list[int]]:
    draw = np.random.default_rng(3)
    return [draw.permutation(ITEMS)[: 1 + row % 3].tolist() for row in range(11)]


@torch.no_grad()
def ours(world: World, rows: list[list[int]], width: int, excluded: list[list[int]] | None = None) -> Any:
    lengths = torch.tensor([len(row) for row in rows])
    items = torch.tensor([row + [0] * (3 - len(row)) for row in rows])
    out = None
    if excluded is not None:
        longest = max(map(len, excluded))
        out = world.catalog.trie.excluding(torch.tensor([row + [-1] * (longest - len(row)) for row in excluded]))
    context = world.policy.encode(Histories(items, lengths))
    return beam_search(world.policy, context, width, trie=world.catalog.trie, excluded=out)


def tokens_of(world: World, codes: torch.Tensor) -> list[int]:
    of_levels = world.policy.vocabulary.of_levels
    return [of_levels[level][code] for level, code in enumerate(codes.tolist())]


def asked(world: World) -> tuple[list[Request], list[list[int]], list[Request]]:
    """Held requests with what each leaves out, and two that are not held among them."""
    rows = histories()
    first = ours(world, rows, 1)
    best = world.catalog.lookup(first.codes)[:, 0].tolist()
    excluded = [[best[row], *history] if row % 2 else [] for row, history in enumerate(rows)]
    held = [
        Request(
            world.ids.prompt([NAMES[item] for item in history]),
            3,
            {"exclude": [NAMES[item] for item in out]} if out else {"catalog": 1},
        )
        for history, out in zip(rows, excluded, strict=True)
    ]
    free = [Request(held[row].prompt, 4) for row in (0, 5)]
    return held, excluded, free


def check_greedy(world: World, held: list[Request], excluded: list[list[int]], free: list[Request]) -> None:
    best = ours(world, histories(), 1, [row or [-1] for row in excluded])
    assert [one.output_ids for one in held] == [tokens_of(world, codes[0]) for codes in best.codes]
    for one in free:
        for place, token in enumerate(one.output_ids):
            assert token == int(world.model([*one.prompt, *one.output_ids[:place]]).argmax())


@pytest.mark.parametrize(("seats", "seed"), [(1, 0), (4, 1), (5, 2), (13, 3)])
def test_the_moving_batch_writes_what_our_search_finds(world: World, exported: Any, seats: int, seed: int) -> None:
    held, excluded, free = asked(world)
    processor = exported["vllm_processor"].MovingCatalogProcessor(None, torch.device("cpu"), False)
    assert processor.needs_output_token_ids() and not processor.is_argmax_invariant()
    run_moving(processor, world.model, [*held[:3], *free, *held[3:]], seats=seats, seed=seed)
    check_greedy(world, held, excluded, free)
    assert not processor.requests  # nothing is kept of those that have left


@pytest.mark.parametrize(("slots", "seed"), [(1, 0), (4, 1), (13, 2)])
def test_the_slots_of_the_newer_runner_write_it_too(world: World, exported: Any, slots: int, seed: int) -> None:
    held, excluded, free = asked(world)
    states = slot_states(slots, 16)
    processor = exported["vllm_processor"].CatalogProcessor(SimpleNamespace(speculative_config=None), states)
    run_slots(processor, states, world.model, [*held[:3], *free, *held[3:]], seed=seed)
    check_greedy(world, held, excluded, free)


def test_sglang_writes_it_too(world: World, exported: Any) -> None:
    held, excluded, free = asked(world)
    run_sglang(exported["sglang_processor"].CatalogLogitProcessor(), world.model, [*free, *held])
    check_greedy(world, held, excluded, free)


def test_what_may_follow_is_what_the_prefix_function_says(world: World, exported: Any) -> None:
    """Every prefix, whole items, what is no prefix, and all excluded; allowed logits are untouched."""
    trie = exported["flat_trie"].opened()
    prefixes = [*world.ids.following, *world.ids.item_of, (2, 2), (-1,), (9999, 1), (2, 2, 2)]
    draw = np.random.default_rng(0)
    below = [item for item, tokens in world.ids.tokens_of.items() if tokens[0] == min(world.ids.following[()])]
    for exclude in ([], below, below[1:], draw.permutation(NAMES)[:40].tolist(), NAMES, ["unknown"]):
        allowed = world.ids.prefix_function(0, [[item for item in exclude if item != "unknown"]])
        logits = torch.from_numpy(draw.normal(size=(len(prefixes), 2 + sum(SIZES))))
        owners = torch.full((len(prefixes),), 7)
        closed = trie.closed({7: trie.excluding(exclude), 6: list(range(trie.size))})
        held = trie.hold(logits, trie.walk_lists(prefixes), owners, closed)
        for row, prefix in enumerate(prefixes):
            expected = torch.full((logits.shape[1],), -torch.inf, dtype=logits.dtype)
            tokens = allowed(0, prefix) or [world.ids.end_token]
            expected[tokens] = logits[row, tokens]
            assert torch.equal(held[row], expected), (prefix, exclude)


def test_a_flat_trie_by_hand() -> None:
    sequences = np.array([[5, 9], [4, 8], [5, 7], [4, 6]])
    arrays = flatten(sequences, np.array([True, True, True, False]))
    assert arrays["first"].tolist() == [0, 2, 3, 5, 5, 5, 5] and arrays["token"].tolist() == [4, 5, 8, 7, 9]
    assert arrays["leaf"].tolist() == [5, 3, 4, -1]
    trie = FlatTrie(arrays, "abcd", 2, 0)
    assert trie.excluding("b") == [1, 3] and trie.excluding("a") == [5] and trie.excluding("dz") == []
    assert trie.excluding("abc") == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="two items have the same tokens"):
        flatten(sequences[[0, 0]], np.array([True, True]))


def test_what_cannot_work_is_refused(world: World, exported: Any) -> None:
    vllm, sglang = exported["vllm_processor"], exported["sglang_processor"]
    with pytest.raises(ValueError, match="speculative decoding"):
        vllm.CatalogProcessor(SimpleNamespace(speculative_config=object()), slot_states(1, 4))
    for wrong, said in ({"exclude": "item-1"}, "a list"), ({"exclude": ["nowhere"]}, "'nowhere', which is no item"):
        with pytest.raises(ValueError, match=said):
            vllm.CatalogProcessor.validate_params(SimpleNamespace(extra_args=wrong))
    vllm.MovingCatalogProcessor.validate_params(SimpleNamespace(extra_args={"exclude": ["item-1"]}))
    processor = vllm.MovingCatalogProcessor(None, torch.device("cpu"), False)
    processor.requests[0] = ([-1], [])
    with pytest.raises(RuntimeError, match="--no-async-scheduling"):
        processor.apply(torch.zeros(1, 2 + sum(SIZES)))
    with pytest.raises(ValueError, match="custom_params"):
        sglang.CatalogLogitProcessor()(torch.zeros(1, 2 + sum(SIZES)), [None])


def test_sglang_makes_the_class_of_what_is_sent(world: World, exported: Any) -> None:
    """As its `CustomLogitProcessor.from_str` does it."""
    made = pickle.loads(bytes.fromhex(json.loads(PROCESSOR)["callable"]))
    assert made is exported["sglang_processor"].CatalogLogitProcessor
    assert (world.folder / "catalog_engines" / "sglang_processor.json").read_text().strip() == PROCESSOR


def test_the_package_needs_nothing_else_of_ours() -> None:
    for path in Path(adagrpo.engines.__file__).parent.glob("*.py"):
        found = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {name.name for node in found if isinstance(node, ast.Import) for name in node.names}
        names |= {node.module or "" for node in found if isinstance(node, ast.ImportFrom) and not node.level}
        outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert outside <= {"torch", "numpy", "safetensors", "vllm", "sglang"}, path


# ---------------------------------------------------------------- the client


@pytest.fixture
def server(world: World, exported: Any) -> Iterator[Served]:
    def moving() -> Any:
        return exported["vllm_processor"].MovingCatalogProcessor(None, torch.device("cpu"), False)

    with served(world.model, moving, exported["sglang_processor"].CatalogLogitProcessor()) as state:
        yield state


def of(exported: Any, kind: str, state: Served, **options: Any) -> Any:
    client = exported["engine_client"]
    if kind == "vllm":
        return client.VllmServer(state.url, "model", **options)
    return client.SglangServer(state.url, PROCESSOR, **options)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize(("width", "at_once", "prompts"), [(1, 128, 64), (20, 128, 64), (80, 4, 7)])
def test_the_clients_search_is_ours(
    world: World, exported: Any, server: Served, monkeypatch: Any, kind: str, width: int, at_once: int, prompts: int
) -> None:
    monkeypatch.setattr(exported["engine_client"], "AT_ONCE", at_once)
    monkeypatch.setattr(exported["engine_client"], "PROMPTS", prompts)
    rows = histories()[:3]
    seen = [[NAMES[item] for item in row] for row in rows]
    expected = ours(world, rows, width, [row if place % 2 else [-1] for place, row in enumerate(rows)])
    items = world.catalog.lookup(expected.codes.clamp(min=0))
    for row, history in enumerate(seen):
        found = exported["engine_client"].search(
            of(exported, kind, server), world.ids, history, width=width, exclude=history if row % 2 else None
        )
        assert [one.item for one in found] == [NAMES[item] for item in items[row, :10].tolist()][: len(found)]
        assert len(found) == min(width, 10)
        np.testing.assert_allclose([one.score for one in found], expected.scores[row, : len(found)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_samples_are_items_that_may_be_written(world: World, exported: Any, server: Served, kind: str) -> None:
    prompts = [world.ids.prompt([NAMES[row]]) for row in (0, 1)]
    exclude = [[], NAMES[: ITEMS // 2]]
    drawn = of(exported, kind, server).draw(
        prompts, 30, length=3, temperature=1.5, seeds=[30 * row + 1 for row in range(len(prompts))], exclude=exclude
    )
    for out, samples in zip(exclude, drawn, strict=True):
        items = [world.ids.item(tokens) for tokens in samples.tokens]
        assert len(items) == 30 and None not in items and not set(items) & set(out) and len(set(items)) > 5


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_rollouts_of_a_worker_have_our_probabilities(world: World, exported: Any, server: Served, kind: str) -> None:
    """Sampled at another temperature: frequencies are those of our constrained distribution, and nothing drifts."""
    rows = histories()[:2]
    items = torch.tensor([row + [0] * (3 - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    worker = of(exported, kind, server)
    found = served_rollouts(worker, world.policy, world.catalog, Histories(items, lengths), 300, temperature=1.5)
    assert found.rollouts.items.min() >= 0 and found.drift.largest < 1e-5
    every = world.catalog.codes[[item for item in range(ITEMS) if item not in GONE]].expand(2, -1, -1)
    context = world.policy.encode(Histories(items, lengths))
    whole = score_sequences(world.policy, context, every, temperature=1.5, trie=world.catalog.trie).sum(-1).exp()
    torch.testing.assert_close(whole.sum(1), torch.ones(2))
    for row in range(2):
        place = {tuple(codes): number for number, codes in enumerate(every[row].tolist())}
        numbers = torch.tensor([place[tuple(codes)] for codes in found.rollouts.codes[row].tolist()])
        expected = whole[row, numbers].log()
        torch.testing.assert_close(found.rollouts.log_probs[row].sum(-1), expected, rtol=1e-4, atol=1e-5)
        often = numbers.bincount(minlength=ITEMS - len(GONE)) / 300
        assert (often - whole[row]).abs().sum() / 2 < 0.25  # at most 0.4 sqrt(68 / 300) = 0.19 is expected


@torch.no_grad()
def test_a_worker_that_serves_something_else_is_found_out(world: World, exported: Any, server: Served) -> None:
    one = Histories(torch.tensor([[4]]), torch.tensor([1]))
    worker = of(exported, "vllm", server)
    drawn = worker.draw([world.ids.prompt([NAMES[5]])], 8, length=3, temperature=1.0, seeds=[0])
    worker.draw = lambda *_, **options: drawn  # samples behind another history
    assert served_rollouts(worker, world.policy, world.catalog, one, 8).drift.largest > 0.01
    for wrong in ([[2, 2, 2]], [[2]], tokens_of_nothing(world)):
        worker.draw = lambda *_, wrong=wrong, **options: [SimpleNamespace(tokens=wrong, log_probs=[[0.0, 0.0, 0.0]])]
        with pytest.raises(ServiceError, match=r"no item; does it serve this export\?"):
            served_rollouts(worker, world.policy, world.catalog, one, 1)


def tokens_of_nothing(world: World) -> list[list[int]]:
    """Codes of the right levels that are no item."""
    space = torch.cartesian_prod(*map(torch.arange, SIZES))
    return [tokens_of(world, space[world.catalog.lookup(space) < 0][0])]


def test_a_full_server_is_asked_again_when_it_says(world: World, exported: Any, server: Served) -> None:
    pauses: list[float] = []
    one = of(exported, "sglang", server, sleep=pauses.append, backoff_seconds=0.25)
    server.refusals[:] = [(503, {"Retry-After": "3"}), (429, {}), (500, {"Retry-After": "9999"})]
    assert len(one.next_log_probs([[2, 3]], [[4, 5]])[0]) == 2
    assert pauses == [3.0, 0.5, 30.0]
    server.refusals[:] = [(503, {})] * 5
    with pytest.raises(exported["engine_client"].ServerError, match=r"answered status 503: .*busy"):
        one.next_log_probs([[2, 3]], [[4, 5]])
    server.refusals[:] = [(400, {})]
    pauses.clear()
    with pytest.raises(exported["engine_client"].ServerError, match="status 400"):
        one.next_log_probs([[2, 3]], [[4, 5]])
    assert pauses == []


def test_a_redirect_is_refused_and_nobody_else_sees_the_request(exported: Any, server: Served) -> None:
    with scripted([b""]) as (url, asked):
        server.refusals[:] = [(302, {"Location": f"{url}/stolen"})]
        with pytest.raises(exported["engine_client"].ServerError, match="status 302, and redirects are not followed"):
            of(exported, "sglang", server, token="secret").next_log_probs([[2, 3]], [[4, 5]])
    assert asked == [] and len(server.requests) == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + 100_000 * b"[",
        b"HTTP/1.1 503 Full\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n",
    ],
    ids=["cut off", "not HTTP", "too deep", "a refusal cut off"],
)
def test_a_server_whose_answer_breaks_off_is_asked_again(exported: Any, broken: bytes) -> None:
    good = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"success": true}'
    pauses: list[float] = []
    with scripted([broken, good]) as (url, asked):
        exported["engine_client"].SglangServer(url, sleep=pauses.append).update("next")
    assert len(asked) == 2 and pauses == [0.5]


def test_weights_are_read_again_by_sglang_alone(world: World, exported: Any, server: Served) -> None:
    error = exported["engine_client"].ServerError
    of(exported, "sglang", server).update("next")
    assert server.requests[-1] == ("/update_weights_from_disk", {"model_path": "next", "flush_cache": True})
    with pytest.raises(error, match="did not read nowhere: no such folder"):
        of(exported, "sglang", server).update("nowhere")
    with pytest.raises(error, match="start it again"):
        of(exported, "vllm", server).update("next")


def test_what_a_server_leaves_out_is_said(exported: Any) -> None:
    client = exported["engine_client"]
    server = client.VllmServer("http://nowhere", "model")
    server.http.post_all = lambda path, bodies: [{"choices": [{"index": 0, "logprobs": {"top_logprobs": [{}]}}]}]
    with pytest.raises(client.ServerError, match="left out the log-probability of token_id:5"):
        server.next_log_probs([[1]], [[5]])
    server.http.post_all = lambda path, bodies: [{"choices": []}]
    with pytest.raises(client.ServerError, match="0 completions, asked for 1"):
        server.next_log_probs([[1]], [[5]])
    server.http.post_all = lambda path, bodies: [{"choices": [{"index": 0}]}]
    with pytest.raises(client.ServerError, match=r"no logprobs\.top_logprobs"):
        server.next_log_probs([[1]], [[5]])
    with pytest.raises(ValueError, match="http"):
        client.VllmServer("nowhere", "model")


@pytest.mark.parametrize(
    ("kind", "verb", "answer"),
    [
        ("vllm", "score", {"choices": None}),
        ("vllm", "score", {"choices": [3]}),
        ("vllm", "score", {"choices": [{"index": 0, "logprobs": {"top_logprobs": [None]}}]}),
        ("vllm", "score", {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:5": None}]}}]}),
        ("vllm", "draw", {"choices": [{"index": 0, "token_ids": [None], "logprobs": {"token_logprobs": [0.0]}}]}),
        ("vllm", "draw", {"choices": [{"index": 0, "token_ids": [5], "logprobs": {"token_logprobs": None}}]}),
        ("sglang", "score", [None]),
        ("sglang", "score", [{"meta_info": {"output_token_ids_logprobs": [None]}}]),
        ("sglang", "score", [{"meta_info": {"output_token_ids_logprobs": [[[None, 5]]]}}]),
        ("sglang", "draw", None),
        ("sglang", "draw", [{"meta_info": {"output_token_logprobs": None}}]),
        ("sglang", "draw", [{"meta_info": {"output_token_logprobs": [[None, 5]]}}]),
    ],
)
def test_an_answer_of_another_form_is_an_error_of_the_server(exported: Any, kind: str, verb: str, answer: Any) -> None:
    client = exported["engine_client"]
    server = client.VllmServer("http://nowhere", "model") if kind == "vllm" else client.SglangServer("http://nowhere")
    server.http.post_all = lambda path, bodies: [answer]
    with pytest.raises(client.ServerError, match="the server's answer"):
        if verb == "score":
            server.next_log_probs([[1]], [[5]])
        else:
            server.draw([[1]], 1, length=1, temperature=1.0, seeds=[0])


def test_greedy_takes_the_largest() -> None:
    assert greedy(torch.tensor([[0.0, 2.0], [1.0, 0.0]])) == [1, 0]
