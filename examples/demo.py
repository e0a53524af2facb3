"""Streams a story, a chat turn and a tool call from the small checkpoint beside this file."""

import json
from pathlib import Path

import longcat

STORY = "Once upon a time, there was a little girl named Lily."
HELLO = [{"role": "user", "content": "Hello! My name is Freya."}]
WEATHER = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the weather in Lisbon?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city"}},
                "required": ["city"],
            },
        },
    }
]


def show(chunks):
    """Prints a completion as it arrives, then its speed; returns the whole output."""
    for chunk in chunks:
        print(chunk.delta, end="", flush=True)
    completion, metrics = chunk.output.outputs[0], chunk.output.metrics
    rate = metrics.tokens_per_second(len(completion.token_ids))
    print(f"\n[{len(completion.token_ids)} tokens, {rate:.0f} tok/s]\n")
    return chunk.output


def main() -> None:
    with longcat.Engine(Path(__file__).parent / "longcat-tiny") as engine:
        print(f"{engine}\n\n{STORY}", end="")
        show(engine.generate(STORY, stream=True, max_tokens=150, seed=4))

        print(f"> {HELLO[-1]['content']}")
        show(engine.chat(HELLO, stream=True, temperature=0))

        print(f"> {WEATHER[-1]['content']}   (with the tool get_weather)")
        reply = show(engine.chat(WEATHER, tools=TOOLS, stream=True, temperature=0, repetition_penalty=1)).message
        for call in reply.get("tool_calls", []):
            result = json.dumps({"weather": "sunny", "temperature": 21})
            print(f"calls {call['function']['name']}({call['function']['arguments']}) -> {result}")
            conversation = [*WEATHER, reply, {"role": "tool", "content": result}]
            show(engine.chat(conversation, tools=TOOLS, stream=True, temperature=0, repetition_penalty=1))
        print("(The model is a toy of 8 M parameters: it tells simple stories and knows a dozen kinds of requests.)")


if __name__ == "__main__":
    main()
