"""A chat turn: messages in, a message out."""

import checkpoint
import longcat


def main() -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hello! My name is Freya."},
    ]
    with longcat.Engine(checkpoint.path()) as engine:
        reply = engine.chat(messages, temperature=0, max_tokens=256)
        print(reply.message["content"])


if __name__ == "__main__":
    main()
