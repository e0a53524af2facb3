"""Streams a story and a chat turn from the small checkpoint beside this file."""

from pathlib import Path

import longcat

STORY = "Once upon a time, there was a little girl named Lily."
CHAT = "<longcat_user>Hello! My name is Freya.<longcat_assistant>"


def stream(engine: longcat.Engine, prompt: str, **sampling) -> None:
    """Prints the answer to `prompt` as it arrives, then its speed."""
    for chunk in engine.generate(prompt, stream=True, **sampling):
        print(chunk.delta, end="", flush=True)
    answer, metrics = chunk.output.outputs[0], chunk.output.metrics
    rate = metrics.tokens_per_second(len(answer.token_ids))
    print(f"\n[{len(answer.token_ids)} tokens, {rate:.0f} tok/s]\n")


def main() -> None:
    with longcat.Engine(Path(__file__).parent / "longcat-tiny") as engine:
        print(f"{engine}\n\n{STORY}", end="")
        stream(engine, STORY, max_tokens=150, seed=4)
        print("> Hello! My name is Freya.")
        stream(engine, CHAT, temperature=0)


if __name__ == "__main__":
    main()
