"""The runner's part without a model: what every slot of the cache holds, and what a plan may ask for.

One number stands for the content of a slot: a hash of all tokens up to its position, and of the arithmetic of each. A
plan is right when all that it reads has the number that the sequence's own tokens give.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from longcat import _testing as testing
from longcat._core import OutOfMemoryError

BLOCK = 64  # kBlockSize
VOCAB = 50
LONGEST = 380  # tokens of a sequence


def blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK)


@dataclass
class Request:
    request_id: int
    prompt: list[int]
    max_tokens: int
    stop_token_ids: list[int]
    constrained: bool
    scores: bool
    index: int  # among the sequences of its prompt
    token_ids: list[int] = field(default_factory=list)  # as the device knows them, ahead of the host
    values: list[int] = field(default_factory=list)  # what the slot of each of them is to hold
    num_known: int = 0  # tokens that the host knows
    num_scored: int = 0
    masked: int = -1  # output tokens the last mask has seen
    furthest: int = 0  # tokens computed since its blocks were last taken by hand
    begun: bool = False

    def __post_init__(self):
        for token_id in self.prompt:
            self.append(token_id)
        self.num_known = len(self.prompt)

    def append(self, token_id: int) -> None:
        generated = len(self.token_ids) >= len(self.prompt)
        self.values.append(hash((self.values[-1] if self.values else 0, token_id, generated)))
        self.token_ids.append(token_id)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - len(self.prompt)

    @property
    def waits(self) -> bool:
        return self.constrained and self.masked != self.num_output

    def draw(self) -> int:
        return hash((self.values[-1], self.request_id)) % VOCAB


class CacheModel:
    """A scheduler, driven as the engine drives it, with every plan checked and carried out."""

    def __init__(self, **options):
        self.options = dict(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=8, num_host_blocks=0) | options
        self.scheduler = testing.Scheduler(**self.options)
        self.cache = [[0] * BLOCK for _ in range(self.options["num_blocks"])]
        self.host: dict[int, list[int]] = {}
        self.lost: set[int] = set()  # host blocks of a failed step, which may hold nothing
        self.borrowed: list[tuple[list[int], int]] = []  # blocks, and what was written to them
        self.live: dict[int, Request] = {}
        self.ended: dict[int, str] = {}
        self.told: list[list[int]] = []  # prompts with their whole completions
        self.under_way: deque[list[tuple[Request, int]]] = (
            deque()
        )  # what each plan drew, one for each draw; -1: nothing
        self.drawn: list[tuple[Request, int]] = []  # by the last plan
        self.seen = Counter()
        # The first in line may need half the budget for all its tokens.
        self.patience = max(100, 2 * LONGEST // self.options["max_num_batched_tokens"])
        self.idle_rounds = self.overtaken_rounds = 0
        self.oldest = -1

    # --- what the outside does ------------------------------------------------------------------------------------

    def fits(self, num_prompt_tokens: int, max_tokens: int) -> bool:
        return blocks_for(num_prompt_tokens + max_tokens) <= self.scheduler.num_blocks

    def add(self, prompt, max_tokens, n=1, stop_token_ids=(), constrained=False, scores=False, group=-1) -> list[int]:
        assert self.fits(len(prompt), max_tokens)
        stops = list(stop_token_ids)
        logprobs = 0 if scores else -1
        ids = self.scheduler.add(prompt, max_tokens, n, constrained, logprobs, stops, group)
        for i, request_id in enumerate(ids):
            self.live[request_id] = Request(request_id, prompt, max_tokens, stops, constrained, scores and i == 0, i)
        return ids

    def abort(self, request_id: int) -> None:
        assert self.scheduler.abort(request_id) == (request_id in self.live)
        if request_id in self.live:
            self.end(request_id, "abort")

    def preempt(self, request_id: int, may_swap: bool) -> bool:
        taken = self.scheduler.preempt(request_id, may_swap)
        if taken:
            self.live[request_id].furthest = 0
            self.overtaken_rounds = 0
            self.seen["preempted by hand"] += 1
        return taken

    def give_mask(self, request_id: int, behind: int = 0) -> None:
        """The mask for the next token as the host sees it, or one that came too late by some tokens."""
        request = self.live[request_id]
        request.masked = request.num_known - len(request.prompt) - behind
        assert self.scheduler.set_mask(request_id, request.masked)

    def give_masks(self) -> None:
        for request in self.live.values():
            if request.constrained:
                self.give_mask(request.request_id)

    def borrow(self, num_blocks: int) -> None:
        """As a forward pass on its own does: the blocks are written at once."""
        value = -1 - self.seen["borrowed"]
        try:
            blocks = self.scheduler.borrow(num_blocks)
        except OutOfMemoryError:  # moves to come need some of those that are free
            return
        for block in blocks:
            self.cache[block] = [value] * BLOCK
        self.borrowed.append((blocks, value))
        self.seen["borrowed"] += 1

    def give_back(self) -> None:
        blocks, value = self.borrowed.pop()
        assert 0 not in blocks and all(self.cache[block] == [value] * BLOCK for block in blocks)
        self.scheduler.give_back(blocks)

    def start_over(self) -> None:
        """The steps under way fail: how far they came, and what the cache and the host hold, is unknown."""
        for request_id in self.scheduler.start_over():
            self.end(request_id, "error")
        for request in self.live.values():  # what was drawn is lost, but for what the host knows
            del request.token_ids[request.num_known :], request.values[request.num_known :]
            request.furthest = 0
        self.under_way.clear()
        self.drawn = []
        lent = {block for blocks, _ in self.borrowed for block in blocks}
        self.cache = [cells if block in lent else [0] * BLOCK for block, cells in enumerate(self.cache)]
        self.host.clear()
        self.lost = set(range(self.options["num_host_blocks"]))
        self.overtaken_rounds = 0
        self.seen["started over"] += 1

    # --- steps ----------------------------------------------------------------------------------------------------

    def step(self, overlap: bool = True) -> None:
        """What Engine::step does, and whether the step brought somebody further."""
        if len(self.under_way) > 1:
            self.commit()
        before = {request_id: (r.furthest, r.num_output) for request_id, r in self.live.items()}
        in_plan = self.schedule()
        ended = 0
        while len(self.under_way) > (1 if in_plan and overlap else 0):
            ended += self.commit()
        moved = {i for i, r in self.live.items() if i in before and (r.furthest, r.num_output) != before[i]}
        if self.borrowed or any(r.waits for r in self.live.values()):
            self.idle_rounds = self.overtaken_rounds = 0
            return
        self.idle_rounds = 0 if moved or ended or not self.live else self.idle_rounds + 1
        oldest = min(self.live, default=-1)
        self.overtaken_rounds = 0 if oldest in moved or oldest != self.oldest else self.overtaken_rounds + 1
        self.oldest = oldest
        assert self.idle_rounds <= self.patience, "nobody comes further"
        assert self.overtaken_rounds <= self.patience, f"request {oldest} is passed over"

    def schedule(self) -> bool:
        """Makes a plan and carries it out. False when it is empty."""
        waiting = self.queued()
        plan = self.scheduler.schedule()
        sequences = self.scheduler.sequences()
        forked = {s["request_id"] for s in plan["draws"]} - {c["request_id"] for c in plan["chunks"]}
        admitted = {i for i in waiting - forked if sequences[i]["running"]}
        short = {i for i, s in sequences.items() if s["is_short"]}
        slots = self.options["max_num_seqs"]
        assert len(short) <= (max(1, slots // 4) if slots > 1 else 0)
        self.seen["short one ahead of its turn"] += len(admitted & short)
        in_turn, left = admitted - short, waiting - admitted - forked
        assert not in_turn or not left or max(in_turn) < min(left), f"{in_turn} before {left}"
        for request in (self.live[i] for i in admitted):
            self.seen["sequence begins on its own"] += request.index > 0 and not request.begun
            request.begun = True
        if not plan["chunks"] and not plan["moves"]:
            idle = not self.under_way and not self.borrowed and not any(r.waits for r in self.live.values())
            assert not (idle and self.live), "nothing is under way, nobody is awaited, and the plan is empty"
            return False
        self.seen["moves alone"] += not plan["chunks"]
        for move in plan["moves"]:
            self.move(*move)
        self.check_chunks(plan, sequences)
        for chunk in plan["chunks"]:
            self.write(chunk)
        self.take_draws(plan)
        return True

    def commit(self) -> int:
        """The host learns what the oldest plan drew. Returns how many ended by it."""
        drawn = self.under_way.popleft()
        reasons = {}
        for request, token_id in drawn:
            if request.request_id not in self.live:
                self.seen["result after its end"] += 1
                continue
            num_output = request.num_known - len(request.prompt)
            if token_id >= 0:
                assert request.token_ids[request.num_known] == token_id
                request.num_known += 1
                num_output += 1
            if token_id in request.stop_token_ids:
                reasons[request.request_id] = "stop"
            elif num_output == request.max_tokens:
                reasons[request.request_id] = "length"
        assert dict(self.scheduler.commit([token_id for _, token_id in drawn])) == reasons
        for request_id, reason in reasons.items():
            request = self.live[request_id]
            assert not request.scores or request.num_scored == len(request.prompt) - 1
            self.told.append(request.token_ids[: request.num_known])
            self.end(request_id, reason)
        return len(reasons)

    def finish_all(self) -> None:
        """Everything that lives comes to its end, and nothing is held afterwards."""
        while self.borrowed:
            self.give_back()
        num_tokens = sum(len(r.prompt) + r.max_tokens for r in self.live.values())
        for _ in range(self.patience + 4 * num_tokens):
            if not self.live:
                break
            self.give_masks()
            self.step()
            self.check_books()
        assert not self.live, f"{sorted(self.live)} never end"
        while self.under_way:
            self.commit()
        assert self.scheduler.sequences() == {}
        assert self.scheduler.num_free == self.scheduler.num_blocks
        assert self.scheduler.num_free_host_blocks == self.options["num_host_blocks"]
        assert len(self.ended) == self.scheduler.stats()["num_requests"]

    # --- the rules of a plan ----------------------------------------------------------------------------------------

    def queued(self) -> set[int]:
        """Those that wait for their turn: not the sequences that wait for their sibling's prompt."""
        sequences = self.scheduler.sequences()
        hanging = {fork for s in sequences.values() for fork in s["forks"]}
        return {i for i, s in sequences.items() if not s["running"]} - hanging

    def move(self, kind: str, block: int, other: int) -> None:
        self.seen[kind] += 1
        if kind == "copy":
            assert block > 0 and other > 0
            self.cache[other] = list(self.cache[block])
        elif kind == "swap out":
            assert other not in self.host, f"host block {other} is in use"
            self.host[other] = list(self.cache[block])
            self.lost.discard(other)
        elif kind == "swap in":
            assert block > 0 and other in self.host, f"host block {other} was never swapped out"
            self.cache[block] = list(self.host[other])
        else:
            assert other in self.host or other in self.lost, f"host block {other} was never swapped out"
            self.host.pop(other, None)

    def check_chunks(self, plan: dict, sequences: dict) -> None:
        chunks = plan["chunks"]
        assert sum(c["count"] for c in chunks) <= self.options["max_num_batched_tokens"]
        assert len({c["request_id"] for c in chunks}) == len(chunks) <= self.options["max_num_seqs"]
        generated = [c["generated"] for c in chunks]
        assert generated == sorted(generated, reverse=True), "generated tokens come first"
        self.seen["generated and prompt tokens in a step"] += len(set(generated)) == 2
        holders: dict[int, set[int]] = {}
        for request_id, sequence in sequences.items():
            for block in sequence["blocks"]:
                holders.setdefault(block, set()).add(request_id)
        readers = Counter(block for c in chunks for block in c["blocks"])
        for c, chunk in enumerate(chunks):
            request = self.live[chunk["request_id"]]
            start, end, blocks = chunk["start"], chunk["start"] + chunk["count"], chunk["blocks"]
            num_prompt = len(request.prompt)
            token_ids = list(chunk["token_ids"])
            if chunk["source"] >= 0:
                drawn_for, token_id = self.drawn[chunk["source"]]
                assert drawn_for is request and end == len(request.token_ids) > request.num_known
                token_ids.append(token_id)
            assert 0 <= start < end and token_ids == request.token_ids[start:end]
            assert chunk["generated"] == (start >= num_prompt) and (chunk["generated"] or end <= num_prompt)
            assert len(set(blocks)) == len(blocks) == blocks_for(end) and 0 not in blocks
            assert blocks == sequences[request.request_id]["blocks"][: len(blocks)]
            for i in range(blocks_for(start)):
                wanted = request.values[i * BLOCK : min((i + 1) * BLOCK, start)]
                assert self.cache[blocks[i]][: len(wanted)] == wanted, f"request {request.request_id} block {blocks[i]}"
            forks = {s["request_id"] for s in plan["draws"] if s["chunk"] == c}  # they begin with its blocks
            for block in blocks[start // BLOCK :]:
                assert readers[block] == 1, f"block {block} is read in the step that writes it"
                assert holders[block] <= {request.request_id} | forks, f"block {block} is shared"
                assert self.scheduler.may_write(block) or len(holders[block]) > 1, f"block {block} is cached"
            self.check_scores(chunk, request)
            self.notice(chunk, request, sequences[request.request_id])
            request.furthest = max(request.furthest, end)

    def check_scores(self, chunk: dict, request: Request) -> None:
        begin, end = chunk["score_begin"], chunk["score_end"]
        if begin == end:
            return
        assert request.scores and begin == request.num_scored
        assert chunk["start"] <= begin < end <= min(chunk["start"] + chunk["count"], len(request.prompt) - 1)
        request.num_scored = end
        self.seen["scored"] += 1

    def notice(self, chunk: dict, request: Request, sequence: dict) -> None:
        """Counts what is rare, to show that it occurs."""
        start, num_prompt = chunk["start"], len(request.prompt)
        cached = sequence["num_cached_tokens"]
        self.seen["prefix hit"] += request.furthest == 0 and 0 < start == cached
        whole = start == cached == num_prompt - 1 and start % BLOCK == BLOCK - 1
        self.seen["whole prompt hit"] += request.furthest == 0 and whole
        self.seen["prompt computed again"] += request.furthest > start and not chunk["generated"]
        self.seen["output computed again"] += request.furthest > start and chunk["generated"]
        self.seen["many generated tokens in a chunk"] += chunk["generated"] and chunk["count"] > 1
        self.seen["chunked prompt"] += not chunk["generated"] and 0 < start and start + chunk["count"] < num_prompt
        self.seen["token not yet known to the host"] += chunk["source"] >= 0

    def write(self, chunk: dict) -> None:
        request = self.live[chunk["request_id"]]
        for position in range(chunk["start"], chunk["start"] + chunk["count"]):
            self.cache[chunk["blocks"][position // BLOCK]][position % BLOCK] = request.values[position]

    def take_draws(self, plan: dict) -> None:
        chunks, draws = plan["chunks"], plan["draws"]
        assert len(draws) <= self.options["max_num_seqs"]
        assert len({s["request_id"] for s in draws}) == len(draws)
        sampled = {s["chunk"] for s in draws}
        for c, chunk in enumerate(chunks):
            whole = chunk["start"] + chunk["count"] == len(self.live[chunk["request_id"]].token_ids)
            assert chunk["is_drawn_from"] == whole == (c in sampled)
        drawn = []
        for draw in draws:
            request, chunk = self.live[draw["request_id"]], chunks[draw["chunk"]]
            assert draw["num_tokens"] == len(request.token_ids) == chunk["start"] + chunk["count"]
            assert not request.waits and draw["ends"] == (request.max_tokens == 0)
            if chunk["request_id"] != request.request_id:
                assert (
                    chunk["request_id"] < request.request_id and self.live[chunk["request_id"]].prompt == request.prompt
                )
                assert request.num_output == 0
                request.furthest = len(request.prompt)
                request.begun = True
                self.seen["fork"] += 1
            token_id = -1
            if request.max_tokens > 0:
                assert request.num_output < request.max_tokens
                token_id = request.draw()
                request.append(token_id)
            drawn.append((request, token_id))
        self.drawn = drawn
        self.under_way.append(drawn)

    def end(self, request_id: int, reason: str) -> None:
        assert request_id not in self.ended
        self.ended[request_id] = reason
        del self.live[request_id]
        self.seen["ended: " + reason] += 1

    # --- conservation -----------------------------------------------------------------------------------------------

    def check_books(self) -> None:
        """Every block is free or held, by as many as hold it. So are host blocks, and no sequence is lost."""
        scheduler, sequences = self.scheduler, self.scheduler.sequences()
        assert set(sequences) == set(self.live)
        held = Counter(block for s in sequences.values() for block in s["blocks"])
        held.update(block for blocks, _ in self.borrowed for block in blocks)
        for block in range(self.options["num_blocks"]):
            assert scheduler.references(block) == held[block], f"block {block}"
        assert held[0] == 0 and scheduler.num_free == scheduler.num_blocks - len(held)
        swapped = [block for s in sequences.values() for block in s["swapped"]]
        assert len(set(swapped)) == len(swapped)
        assert scheduler.num_free_host_blocks == self.options["num_host_blocks"] - len(swapped)
        running = [s for s in sequences.values() if s["running"]]
        assert len(running) == scheduler.num_running <= self.options["max_num_seqs"]
        assert all(not s["blocks"] for s in sequences.values() if not s["running"])
        assert all(not s["swapped"] for s in running)
        assert len(self.queued()) == scheduler.num_waiting
