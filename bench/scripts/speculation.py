"""Measures costs and gains of draft tokens: the steps of one request with each method, beside steps without.

python bench/scripts/speculation.py CHECKPOINT [--tokens 200] [--temperature 0] [--num-threads N] [--rounds 5]

Prompts are the beginnings of tests/data/stories.txt. "fixed mtp" drafts as many tokens in every step, whatever they
gain. With random weights no draft token is accepted, so its time is the cost of draft tokens. "faster" is the ratio of
tokens a second between the best rounds. Rounds of all methods take turns.
"""

import argparse
import time
from pathlib import Path

import longcat

STORIES = (Path(__file__).parents[2] / "tests" / "data" / "stories.txt").read_text(encoding="utf-8")
PROMPTS = [story[:100] for story in STORIES.split("\n\n") if len(story) > 200]
METHODS = [None, ("ngram", 3), ("mtp", 3), ("fixed mtp", 1), ("fixed mtp", 2), ("fixed mtp", 3), ("fixed mtp", 4)]


def run(engine: longcat.Engine, prompts: list, args: argparse.Namespace) -> tuple[float, int, int, int, int]:
    """Runs requests one after another. Returns seconds, tokens, steps, draft tokens and accepted draft tokens."""
    before, start = engine.metrics(), time.perf_counter()
    num_tokens = 0
    for prompt in prompts:
        options = {"max_tokens": args.tokens, "temperature": args.temperature, "seed": 1, "ignore_eos": True}
        num_tokens += len(engine.generate(prompt_token_ids=prompt, **options).outputs[0].token_ids)
    seconds, after = time.perf_counter() - start, engine.metrics()
    names = ("num_steps", "num_draft_tokens", "num_accepted_tokens")
    return seconds, num_tokens, *(after[name] - before[name] for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    engines = []
    for method in METHODS:
        speculative = None
        if method is not None:
            speculative = {"method": method[0].split()[-1], "num_speculative_tokens": method[1]}
            if method[0] == "fixed mtp":
                speculative["adaptive"] = False
        engines.append(longcat.Engine(args.checkpoint, num_threads=args.num_threads, speculative=speculative,
                                      kv_cache_memory="256MiB"))  # fmt: skip
    if (Path(args.checkpoint) / "tokenizer.json").exists():
        prompts = [engines[0].encode(prompt) for prompt in PROMPTS[: args.prompts]]
    else:
        prompts = [[3 + (7 * i + j) % 90 for i in range(20)] for j in range(args.prompts)]
    runs = [[run(engine, prompts, args) for engine in engines] for _ in range(args.rounds)]
    best = [min(of_method) for of_method in zip(*runs, strict=True)]
    print("| method | draft tokens | accepted | tokens a step | ms a step | tokens/s | faster |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for method, (seconds, num_tokens, steps, drafted, accepted) in zip(METHODS, best, strict=True):
        name = "none" if method is None else f"{method[0]}, {method[1]}"
        share = f"{accepted / drafted:.0%}" if drafted else "-"
        rate = num_tokens / seconds
        speed = f"{1e3 * seconds / steps:.2f} | {rate:,.1f} | {rate / (best[0][1] / best[0][0]):.2f}"
        print(f"| {name} | {drafted:,} | {share} | {num_tokens / steps:.2f} | {speed} |")


if __name__ == "__main__":
    main()
