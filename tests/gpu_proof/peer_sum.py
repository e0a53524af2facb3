"""The registration of cuda/kernels/peer_sum.h for the mutation proof (prove.py)."""

KERNELS = []
RANK_KERNELS = [f"longcat::gpu::PeerSum<longcat::DType::{name}>" for name in ("f32", "bf16", "i32")]
SOURCES = ["cuda/kernels/peer_sum.h"]

# name -> (what is there, exactly once; what replaces it)
MUTATIONS = {
    "flags of the own GPU alone": (
        "signal_peer(peers.mailboxes[peer].flags + rank * kPeerBlocks + block, epoch)",
        "arrive(peers.mailboxes[peer].flags + rank * kPeerBlocks + block, 1u)",
    ),
    "wait within the own GPU": (
        "wait_for_peer(peers.mailboxes[rank].flags + peer * kPeerBlocks + block, epoch, peers.stop)",
        "wait_at_least(peers.mailboxes[rank].flags + peer * kPeerBlocks + block, epoch)",
    ),
    "flag of the sum before": (
        "* kPeerBlocks + block, epoch, peers.stop)",
        "* kPeerBlocks + block, epoch - 1, peers.stop)",
    ),
    "one flag for all blocks": (
        "flags + peer * kPeerBlocks + block, epoch, peers.stop)",
        "flags + peer * kPeerBlocks, epoch, peers.stop)",
    ),
    "flags by peer, not by rank": (
        "flags + rank * kPeerBlocks + block, epoch)",
        "flags + peer * kPeerBlocks + block, epoch)",
    ),
    "no wait for the last rank": ("peer < ranks && peer != rank", "peer < ranks - 1 && peer != rank"),
    "one slot for all sums": ("const int64_t parity = epoch % 2;", "const int64_t parity = 0;"),
    "three slots": ("const int64_t parity = epoch % 2;", "const int64_t parity = epoch % 3;"),
    "another rank's slot": (
        "store_global(slot(peer, parity, rank, at), own)",
        "store_global(slot(peer, parity, peer, at), own)",
    ),
    "slots of one size less": ("parity * peers.ranks + from", "parity * (peers.ranks - 1) + from"),
    "epochs stay": ("store_global(peers.epochs + block, epoch)", "store_global(peers.epochs + block, epoch - 1)"),
    "epochs of the first block": ("load_global(peers.epochs + block)", "load_global(peers.epochs)"),
    "epochs from any thread": ("if (peer == 0) store_global(peers.epochs", "store_global(peers.epochs"),
    "the rank after it twice": ("rank + i < ranks ? rank + i : rank + i - ranks", "rank + 1 < ranks ? rank + 1 : 0"),
    "not to the last rank": ("if (i < ranks && left > 0) store", "if (i < ranks - 1 && left > 0) store"),
    "the own part first": (
        "if (r < ranks) parts[r] = r == rank ? own : load_global(slot(rank, parity, r, at));",
        "const int from = (rank + r) % ranks;\n"
        "      if (r < ranks) parts[r] = from == rank ? own : load_global(slot(rank, parity, from, at));",
    ),
    "the own part from the mailbox": ("r == rank ? own : load_global", "load_global"),
    "parts of the other parity": (
        "load_global(slot(rank, parity, r, at))",
        "load_global(slot(rank, 1 - parity, r, at))",
    ),
    "bf16: rounded at each rank": (
        "low = add_rn(low, low_bf16(parts[r].v[w]));",
        "low = low_bf16(pack_bf16(add_rn(low, low_bf16(parts[r].v[w])), 0));",
    ),
    "bf16: halves swapped": ("return pack_bf16(low, high);", "return pack_bf16(high, low);"),
    "f32: without rank 0": ("float sum = std::bit_cast<float>(parts[0].v[w]);", "float sum = 0;"),
    "i32: without rank 0": ("uint32_t sum = parts[0].v[w];", "uint32_t sum = 0;"),
    "the end: whole vectors stored": (
        "if (left >= kEach && is_aligned) return store_global",
        "if (is_aligned) return store_global",
    ),
    "the end: whole vectors loaded": (
        "if (left >= kEach && is_aligned) return load_global",
        "if (is_aligned) return load_global",
    ),
    "whole vectors stored wherever": (
        "if (left >= kEach && is_aligned) return store_global",
        "if (left >= kEach) return store_global",
    ),
    "whole vectors loaded wherever": (
        "if (left >= kEach && is_aligned) return load_global",
        "if (left >= kEach) return load_global",
    ),
    "the end: halves of a word": ("<< i % 2 * 16;\n", ";\n"),
    "the end: halves stored": ("sum.v[i / 2] >> i % 2 * 16", "sum.v[i / 2]"),
    "the end: one element too few": ("if (left <= 0) return;", "if (left <= 1) return;"),
}
