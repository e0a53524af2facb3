"""Estimates a step of LongCat-Flash-Lite, kernel by kernel: in bf16 or fp8 on an H200, or packed on a small card.

python bench/scripts/gpu_step.py --context 1024
python bench/scripts/gpu_step.py --context 131072 --model lite_sparse
python bench/scripts/gpu_step.py --prefill --tokens 512 2048 8192
python bench/scripts/gpu_step.py --core fp8 --experts fp8
python bench/scripts/gpu_step.py --device rtx5090 --core int8 --experts int4 --tokens 1

A kernel takes the longest of three times: its bytes, its operations on tensor cores, its longest chain of operations. A
gap to the kernel before it is added. The router and the experts run beside the dense layers: both share the memory and
the tensor cores. Bytes follow from config.json and the number of tokens; the constants below are from public figures.
Nothing here is measured. docs/cuda.md has the tables.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from importlib import resources

# [operations/s] on an H200's tensor cores: CUTLASS's kernels for many tokens; prefill attention by mma.sync, which
# without its softmax could reach 590e12.
TENSOR, ATTENTION = 550e12, 350e12
MOVES = 3.0e12  # [bytes/s] of kernels that load 16 bytes a thread: norms, RoPE, SiLU, gather, sums
PLAIN = 2.0e12  # [bytes/s] of those that load 2: the norm of index keys
START = 0.65e-6  # [s] the first bytes, unless a dependent launch reads weights before its inputs are there
# [s] a tile of prefill attention: 256 rows, 64 positions.
QUERY_TILE = 2 * 256 * 64 * (192 + 128) / ATTENTION * 132
CHAIN = 33 / 1.755e9 / 16  # [s] a value of K, of the chain of products that makes a result of few tokens
# [s] 128 values of K, of which a warp has every fourth. Of fp8 codes: making them bf16, 8 products of 33 cycles in a
# chain, a barrier and four sums.
UNIT, FP8_UNIT = 300 / 1.755e9, 450 / 1.755e9
# Of more than 32 tokens, a block has 64 rows of W and as many tokens. [s] 128 values of K: 64 products of a warp beside
# those of three others.
WIDE, WIDE_UNIT = 64, 600 / 1.755e9
CHAIN_START = 1.5e-6  # [s]
PIECE = 6.8e-6  # [s] a piece of 128 positions in MLA decode: list 2, first tile and query 2, two tiles of 1.4
TILE = 1.4e-6  # [s] 64 positions
ARRIVAL, PARTIAL = 1.5e-6, 66e3 / 110e9  # [s] the last block adds each partial result, in groups of 16
ROW = 1.5e-6  # [s] a norm of one row: two rounds of loads and a reduction
SLICE = 4096  # positions of a block of the selection
# [s] of the selection. A block of its two kernels reads a slice and arrives. The last block of a row then finds a bin;
# or it finds a candidate, in 6 rounds of 4 barriers, and writes the list.
FIND_BIN, FIND_CANDIDATE = 4e-6, 8e-6
FEW_TOKENS = 64
ELEMENT, F32 = 2, 4  # [bytes]
PACKED = {"bf16": 2.0, "fp8": 1 + 4 / 128**2, "int8": 1.0625, "int4": 0.5625}  # [bytes] a weight
PACKED_TOKENS = 32  # of a block of the kernels for packed weights and fp8 codes, which serve any number of tokens


@dataclass(frozen=True)
class Device:
    """A GPU.

    Args:
        memory: bytes/s of reads that large kernels reach.
        l2: bytes/s of reads that hit the L2 cache.
        multiprocessors, each: their number, and the bytes/s that one reads at most.
        gap, dependent_gap: seconds between kernels, and where the next is a dependent launch.
        is_hopper: CUTLASS's kernels are those of 9.0, whose dense ones are dependent launches.
        heads: of a block of MLA decode, by its shared memory.
    """

    memory: float
    l2: float
    multiprocessors: int
    each: float
    gap: float
    dependent_gap: float
    is_hopper: bool
    heads: int


DEVICES = {
    "h200": Device(3.9e12, 5.5e12, 132, 75e9, 1.0e-6, 0.4e-6, True, 32),
    # 92 % of 1.79 TB/s. CUTLASS's kernels are those of 8.0, which have no dependent launches.
    "rtx5090": Device(1.65e12, 4.0e12, 170, 40e9, 1.0e-6, 0.4e-6, False, 16),
}


@dataclass(frozen=True)
class Kernel:
    """One node of the graph.

    Args:
        bytes: that it reads and writes.
        blocks: each can use one multiprocessor.
        seconds: the least time, whatever the bytes.
        dependent: it begins before the kernel before it ends, as all do but the first behind an event or a copy, and
            CUTLASS's grouped kernels.
        preloads: it reads weights before the kernel before it ends.
        inputs: bytes that its blocks read again and again, from the L2 cache.
        tensor_seconds: its operations on tensor cores take this time.
    """

    name: str
    bytes: float
    blocks: float
    seconds: float = 0.0
    dependent: bool = True
    preloads: bool = False
    inputs: float = 0.0
    tensor_seconds: float = 0.0

    def gap(self, device: Device) -> float:
        return device.dependent_gap if self.dependent else device.gap

    def time(self, device: Device) -> float:
        """Without the gap, and with the whole memory for itself [s]."""
        speed = min(device.memory, min(self.blocks, device.multiprocessors) * device.each)
        bytes_seconds = self.bytes / speed + (0 if self.preloads else START)
        return max(self.seconds, bytes_seconds, self.inputs / device.l2, self.tensor_seconds)

    def whole(self, device: Device) -> float:
        return self.time(device) + self.gap(device)


@dataclass(frozen=True)
class Shape:
    """What the kernels of a step depend on."""

    config: dict[str, int]
    num_tokens: int
    context: int
    device: Device = DEVICES["h200"]
    core: str = "bf16"  # one of PACKED: attention, dense FFNs and head
    expert: str = "bf16"
    prefill: bool = False  # all tokens are of one prompt

    @property
    def few(self) -> bool:
        return self.num_tokens <= FEW_TOKENS

    @property
    def joins(self) -> bool:
        """Whether layers of few tokens on one x are one kernel."""
        return self.num_tokens <= (FEW_TOKENS if self.core == "bf16" else PACKED_TOKENS)

    def products(self, count: float, speed: float = TENSOR) -> float:
        """Of this many multiply-adds on tensor cores [s]. Few tokens are bound by bytes or chains."""
        return 0.0 if self.few else 2 * count / speed

    def packed(
        self, name: str, out: float, depth: int, rows: float, format: str, inputs: float, width: float | None = None
    ) -> Kernel:
        """`out` rows of packed weights or codes, for `rows` of inputs, each with `width` results (default: `out`).

        The blocks of a column read `inputs` rows.
        """
        blocks = out / 16
        traffic = out * depth * PACKED[format] + rows * ((out if width is None else width) + depth) * ELEMENT
        if format == "fp8" and inputs > PACKED_TOKENS and out % WIDE == 0:
            slices = -(-rows // WIDE)
            again = out / WIDE * slices * depth * (WIDE + min(inputs, WIDE) * ELEMENT)
            chain = CHAIN_START + depth / 128 * WIDE_UNIT
            tensor_seconds = 2 * out * depth * slices * WIDE / ATTENTION
            return Kernel(name, traffic, out / WIDE * slices, chain, inputs=again, tensor_seconds=tensor_seconds)
        chain = CHAIN_START + -(-depth // 512) * (FP8_UNIT if format == "fp8" else UNIT)
        return Kernel(name, traffic, blocks, chain, preloads=True, inputs=blocks * inputs * depth * ELEMENT)

    def linear(self, name: str, out: int, depth: int, cutlass: bool = False, tokens: int | None = None) -> Kernel:
        tokens = self.num_tokens if tokens is None else tokens
        if self.core != "bf16" and not cutlass:
            return self.packed(name, out, depth, tokens, self.core, tokens)
        traffic = (out * depth + tokens * (out + depth)) * ELEMENT
        few = self.few and not cutlass
        blocks = out / 16 if few else -(-out // 128) * -(-tokens // 128)
        again = blocks * (tokens if few else 128) * depth * ELEMENT
        chain = CHAIN_START + depth * CHAIN if few else 0.0
        products = self.products(tokens * (out if few else -(-out // 128) * 128) * depth)
        dependent = few or self.device.is_hopper
        return Kernel(name, traffic, blocks, chain, dependent, preloads=few, inputs=again, tensor_seconds=products)

    def moves(self, name: str, num_bytes: float, blocks: float, seconds: float = ROW, speed: float = MOVES) -> Kernel:
        """Loads and stores by all threads, of 16 bytes each."""
        return Kernel(name, num_bytes, blocks, max(seconds, num_bytes / speed))

    def rows(self, name: str, width: int, count: int) -> Kernel:
        """`count` rows of this width read or written for each token."""
        return self.moves(name, count * self.num_tokens * width * ELEMENT, self.num_tokens)

    @property
    def selects(self) -> bool:
        return self.context > self.config.get("index_topk", self.context)

    @property
    def attended(self) -> int:
        """Positions that a token attends to."""
        return min(self.context, self.config.get("index_topk", self.context))

    def indexer(self) -> list[Kernel]:
        """Of an attention that selects for itself and the next one."""
        c, tokens = self.config, self.num_tokens
        heads, dim, rope, hidden = c["index_n_heads"], c["index_head_dim"], c["qk_rope_head_dim"], c["hidden_size"]
        store = self.moves("norm, rope, store of keys", 2 * tokens * dim * ELEMENT, tokens, speed=PLAIN)
        keys = [self.linear("index key", dim, hidden), store]
        if not self.selects:
            return keys
        weights = 2 * heads * hidden * ELEMENT  # two planes
        scores = tokens * self.context * F32
        blocks = tokens * -(-self.context // SLICE)
        return [
            *keys,
            self.linear("index queries", heads * dim, c["q_lora_rank"]),
            Kernel("rope of index queries", 2 * tokens * heads * rope * ELEMENT, tokens, ROW / 2),
            Kernel("head weights", weights, heads / 16, CHAIN_START + 2 * hidden * CHAIN),
            Kernel("index scores", tokens * self.context * dim * ELEMENT + scores, 2 * self.device.multiprocessors),
            Kernel("bins of the selection", scores, blocks, FIND_BIN),
            Kernel("lists of the selection", scores, blocks, FIND_CANDIDATE),
        ]

    def attention(self, is_owner: bool) -> list[Kernel]:
        c, tokens = self.config, self.num_tokens
        heads, nope, rope, value = (c[f"{name}"] for name in _HEADS)
        hidden, q_lora, kv_lora = c["hidden_size"], c["q_lora_rank"], c["kv_lora_rank"]
        kv_a = -(-(kv_lora + rope) // 128) * 128 if self.core == "fp8" else kv_lora + rope  # whole blocks
        down = [self.linear("q_a, kv_a", q_lora + kv_a, hidden)]
        if not self.joins:
            down = [self.linear("q_a", q_lora, hidden), self.linear("kv_a", kv_a, hidden)]
        return [
            *down,
            self.rows("norms, store", q_lora + kv_lora + rope, 2),
            *(self.indexer() if is_owner and "index_topk" in c else []),
            self.linear("q_b", heads * (nope + rope), q_lora),
            self.moves("rope", 2 * tokens * heads * rope * ELEMENT, tokens, ROW / 2),
            *(self.prompt_attention() if self.prefill else self.generated_attention()),
            self.linear("o", hidden, heads * value),
        ]

    def prompt_attention(self) -> list[Kernel]:
        """Of one prompt, whose last tokens are those of the step."""
        c, tokens, context = self.config, self.num_tokens, self.context
        heads, nope, rope, value = (c[f"{name}"] for name in _HEADS)
        kv_lora = c["kv_lora_rank"]
        made = heads * (nope + value)  # keys and values of a position
        keys = context * (kv_lora + made) * ELEMENT
        # A tile of 64 positions is multiplied for all 32 rows of a warp, where one of them sees it: half of both more.
        pairs = tokens * (context - tokens / 2 + 48)
        reads = -(-tokens // 256) / 2 * context * made * ELEMENT / 4  # four blocks of a head meet in the L2 cache
        return [
            Kernel(
                "keys and values",
                keys + made * kv_lora * ELEMENT,
                self.device.multiprocessors,
                tensor_seconds=2 * context * made * kv_lora / ATTENTION,
            ),
            Kernel(
                "prefill attention",
                reads + tokens * heads * (nope + rope + value) * ELEMENT,
                self.device.multiprocessors,
                context / 64 * QUERY_TILE,  # the last rows' block
                tensor_seconds=2 * heads * pairs * (nope + rope + value) / ATTENTION,
            ),
        ]

    def generated_attention(self) -> list[Kernel]:
        c, tokens = self.config, self.num_tokens
        heads, nope, rope, value = (c[f"{name}"] for name in _HEADS)
        kv_lora = c["kv_lora_rank"]
        per_head = heads * kv_lora * ELEMENT
        return [
            Kernel(
                "k_up",
                per_head * nope + tokens * heads * (nope + kv_lora) * ELEMENT,
                heads * 4,
                dependent=self.device.is_hopper,
            ),
            Kernel(
                "MLA decode",
                tokens * (self.attended * (kv_lora + rope) + 2 * heads * kv_lora) * ELEMENT,
                tokens * self.attended / 128 * heads / self.device.heads,
                self.decode_chain(),
                inputs=tokens * self.attended * (kv_lora + rope) * ELEMENT * heads / self.device.heads,
            ),
            Kernel(
                "v_up",
                per_head * value + tokens * heads * (value + kv_lora) * ELEMENT,
                heads,
                dependent=self.device.is_hopper,
            ),
        ]

    def decode_chain(self) -> float:
        """Of MLA decode: the longest piece, and the sums of the pieces [s]."""
        pieces, begin = 0, 0
        while begin < self.attended:  # kv_piece_size() of cpp/ops/ops.h
            size = next((size for end, size in _PIECES if begin < end), 2048)
            pieces, begin = pieces + 1, begin + size
        groups = -(-pieces // 16)
        sums = min(pieces, 16) + (groups if groups > 1 else 0)
        return PIECE + (size / 64 - 2) * TILE + ARRIVAL + sums * PARTIAL * self.device.heads / 32

    def ffn(self) -> list[Kernel]:
        hidden, width = self.config["hidden_size"], self.config["ffn_hidden_size"]
        down = self.linear("down", hidden, width)
        if self.joins:
            return [self.linear("gate, up, SiLU", 2 * width, hidden), down]
        if self.core == "bf16" and self.device.is_hopper:
            tokens = self.num_tokens
            traffic = (2 * width * hidden + tokens * (hidden + width)) * ELEMENT
            blocks = -(-width // 128) * -(-tokens // 128)
            products = self.products(2 * tokens * width * hidden)
            return [
                Kernel("description of gate, up", 0, 1, 2e-6, dependent=False),
                Kernel("gate, up, SiLU", traffic, blocks, dependent=False, tensor_seconds=products),
                down,
            ]
        each = [self.linear(name, width, hidden) for name in ("gate", "up")]
        return [*each, self.rows("SiLU", width, 3), down]

    def experts(self) -> list[Kernel]:
        c, tokens = self.config, self.num_tokens
        hidden, width, routed, topk = (c[name] for name in _EXPERTS)
        outputs = routed + c["zero_expert_num"]
        picks = tokens * topk * routed / outputs  # of routed experts, where all outputs are alike
        again = picks * hidden * ELEMENT  # inputs that one row of blocks reads
        met = routed * (1 - (1 - topk / outputs) ** tokens)
        slices = -(-tokens // FEW_TOKENS)
        router_chain = CHAIN_START + 2 * hidden * CHAIN
        products = self.products(2 * tokens * outputs * hidden, ATTENTION)
        scores = Kernel(
            "router",
            outputs * hidden * 2 * ELEMENT,
            outputs / 16 * slices,
            router_chain,
            dependent=False,
            tensor_seconds=products,
        )
        # [s] A multiprocessor has 8 blocks, each of one token, at a time.
        picked = 5e-6 * max(1, tokens / self.device.multiprocessors / 8)
        up, down = (met * part * hidden * width * ELEMENT for part in (2, 1))
        rows = 2 * picks * (hidden + width) * ELEMENT
        end = self.moves("sum of experts", (picks + tokens) * hidden * ELEMENT, tokens)
        if self.expert != "bf16":
            # An expert has the rows of a slice or less, where the picks are few.
            read = max(met, picks / PACKED_TOKENS)
            inputs, listed = picks / read, tokens <= PACKED_TOKENS
            return [
                scores,
                Kernel("picks", tokens * outputs * F32, tokens, picked),
                *([] if self.few else [Kernel("order", 0, routed, 3e-6)]),
                *([] if listed else [Kernel("slices", 0, 1, 3e-6)]),
                self.packed("experts' gate, up, SiLU", 2 * read * width, hidden, picks, self.expert, inputs, width),
                self.packed("experts' down", read * hidden, width, picks, self.expert, inputs, hidden),
                end,
            ]
        if self.few:
            return [
                scores,
                Kernel("picks", tokens * outputs * F32, tokens, picked),
                Kernel(
                    "experts' gate, up, SiLU",
                    up + rows,
                    met * width / 8,
                    CHAIN_START + hidden * CHAIN,
                    inputs=again * width / 8,
                ),
                Kernel(
                    "experts' down",
                    down + rows,
                    met * hidden / 16,
                    CHAIN_START + width * CHAIN,
                    inputs=again * width / 16,
                ),
                end,
            ]
        joined = [("gate, up, SiLU", 2)] if self.device.is_hopper else [("gate", 1), ("up", 1)]
        grouped = [
            kernel
            for name, matrices in (*joined, ("down", 1))
            for kernel in (
                Kernel(f"description of {name}", 0, 1, 2e-6, dependent=False),
                Kernel(
                    f"experts' {name}",
                    matrices * down + rows / 2,
                    met * (hidden if name == "down" else width) / 128,
                    dependent=False,
                    tensor_seconds=matrices * self.products(picks * hidden * width) if self.prefill else 0.0,
                ),
            )
        ]
        picks_and_order = [
            Kernel("picks", tokens * outputs * F32, tokens, picked),
            Kernel("order", 0, routed, 3e-6),
        ]
        silu = self.moves("experts' SiLU", 3 * picks * width * ELEMENT, picks)
        gather = self.moves("gather", 2 * picks * hidden * ELEMENT, picks)
        middle = [] if self.device.is_hopper else [silu]
        return [scores, *picks_and_order, gather, *grouped[:-2], *middle, *grouped[-2:], end]

    def main_stream(self) -> list[Kernel]:
        """A layer without its branch."""
        hidden = self.config["hidden_size"]
        norm = self.rows("add, norm", hidden, 4)
        join = replace(self.rows("join, add, norm", hidden, 6), dependent=False)
        return [*self.attention(True), norm, *self.ffn(), norm, *self.attention(False), norm, *self.ffn(), join]

    def ends(self) -> list[Kernel]:
        """The kernels of a step outside its layers."""
        c, tokens = self.config, self.num_tokens
        tables = (_either(c, "emb_neighbor_num", "oe_neighbor_num") - 1) * _either(c, "emb_split_num", "oe_split_num")
        hidden = c["hidden_size"]
        drawn = 1 if self.prefill else tokens
        return [
            Kernel(
                "ids, lookup",
                tokens * hidden * ELEMENT,
                tokens,
                3e-6 + tokens * hidden * ELEMENT / 55e9,
                dependent=False,
            ),
            Kernel("words", 2 * tokens * hidden * ELEMENT, tokens, ROW),
            self.linear(f"projections of {tables} tables", hidden, hidden, cutlass=True),
            Kernel("angles", 0, tokens, ROW),
            Kernel("list of pieces", 0, 1, ROW),
            self.rows("norm", hidden, 2),
            Kernel("rows of the head", 2 * drawn * hidden * ELEMENT, drawn, ROW),
            self.linear("head", c["vocab_size"], hidden, tokens=drawn),
        ]

    def layer_seconds(self) -> float:
        """Of a layer, whose branch shares the memory with the main stream between its fork and its join."""
        main, branch = self.main_stream(), self.experts()
        before = len(self.attention(True)) + 1
        beside = main[before:-1]
        alone = sum(kernel.whole(self.device) for kernel in [*main[:before], main[-1]])
        streams = [sum(kernel.whole(self.device) for kernel in part) for part in (beside, branch)]
        shared = sum(max(kernel.bytes / self.device.memory, kernel.tensor_seconds) for kernel in [*beside, *branch])
        gaps = sum(kernel.gap(self.device) for kernel in beside)
        return alone + max(*streams, shared + gaps)

    def num_kernels(self) -> tuple[int, int]:
        """Of a layer, and outside the layers."""
        return len(self.main_stream()) + len(self.experts()), len(self.ends())

    def seconds(self) -> float:
        """Of a step with its sampling, upload, launch and read-back."""
        ends = sum(kernel.whole(self.device) for kernel in self.ends())
        return self.config["num_layers"] * self.layer_seconds() + ends + SAMPLING + HOST

    def num_bytes(self) -> float:
        layer = [*self.main_stream(), *self.experts()]
        return self.config["num_layers"] * sum(k.bytes for k in layer) + sum(k.bytes for k in self.ends())


_PIECES = ((2048, 128), (16384, 256), (65536, 512), (131072, 1024))
_HEADS = ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_EXPERTS = ("hidden_size", "expert_ffn_hidden_size", "n_routed_experts", "moe_topk")
SAMPLING, HOST = 25e-6, 30e-6  # [s]


def _either(config: dict[str, int], *names: str) -> int:
    return next(config[name] for name in names if name in config)


def config_of(model: str) -> dict[str, int]:
    text = (resources.files("longcat") / f"checkpoint/configs/{model}.json").read_text()
    config: dict[str, int] = json.loads(text)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["lite", "lite_sparse"], default="lite", help="(default lite)")
    parser.add_argument("--context", type=int, default=1024, help="tokens of each sequence (default 1024)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 64, 256], help="sequences of a step")
    parser.add_argument("--prefill", action="store_true", help="whole prompts of --tokens tokens in place of sequences")
    parser.add_argument("--device", choices=DEVICES, default="h200", help="(default h200)")
    for part in ("core", "experts"):
        parser.add_argument(f"--{part}", choices=PACKED, default="bf16", help="their weights (default bf16)")
    parser.add_argument("--kernels", action="store_true", help="also tell each kernel of a layer")
    args = parser.parse_args()
    if args.prefill and (args.model, args.device, args.core, args.experts) != ("lite", "h200", "bf16", "bf16"):
        parser.error("--prefill counts dense attention in bf16 on an H200; expected no other choice")
    first = "tokens" if args.prefill else "sequences"
    print(f"| {first} | kernels | GB | ms of the bytes | ms | tokens/s | times the bytes |")
    print("| --: | --: | --: | --: | --: | --: | --: |")
    for num_tokens in args.tokens:
        context = num_tokens if args.prefill else args.context
        formats = (args.core, args.experts)
        shape = Shape(config_of(args.model), num_tokens, context, DEVICES[args.device], *formats, args.prefill)
        layer, ends = shape.num_kernels()
        bound, seconds = shape.num_bytes() / shape.device.memory, shape.seconds()
        print(
            f"| {num_tokens} | {shape.config['num_layers'] * layer + ends} | {shape.num_bytes() / 1e9:.1f} "
            f"| {1e3 * bound:.2f} | {1e3 * seconds:.2f} | {num_tokens / seconds:,.0f} | {seconds / bound:.2f} |"
        )
        if args.kernels:
            for stream, kernels in (("main", shape.main_stream()), ("branch", shape.experts())):
                for k in kernels:
                    print(f"    {stream:7} {k.name:24} {1e-6 * k.bytes:8.2f} MB {1e6 * k.whole(shape.device):6.2f} us")


if __name__ == "__main__":
    main()
