"""A tool round trip: declare func_add, run the call the model makes, give it the result."""

import json

import checkpoint
import longcat

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "func_add",
            "description": "Calculate the sum of two numbers",
            "parameters": {
                "type": "object",
                "properties": {
                    "x1": {"type": "number", "description": "The first addend"},
                    "x2": {"type": "number", "description": "The second addend"},
                },
                "required": ["x1", "x2"],
            },
        },
    }
]


def run(function: dict) -> dict:
    """Models make mistakes: a call to another tool or with other arguments gets an error as its result."""
    match function:
        case {"name": "func_add", "arguments": {"x1": int() | float() as x1, "x2": int() | float() as x2}}:
            return {"ans": x1 + x2}
    return {"error": f"not possible: {function['name']}({function['arguments']})"}


def main() -> None:
    # The conversation of the model card. It writes the sum as $$125679 + 234519$$, which the small checkpoint does not
    # know.
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Please tell me what is 125679 + 234519?"},
    ]
    with longcat.Engine(checkpoint.path()) as engine:
        reply = engine.chat(messages, tools=TOOLS, temperature=0, max_tokens=256)
        print("model:", reply.message)
        messages.append(reply.message)
        for call in reply.message.get("tool_calls", []):
            result = json.dumps(run(call["function"]))
            print("tool:", result)
            messages.append({"role": "tool", "name": call["function"]["name"], "content": result})
        if "tool_calls" in reply.message:
            print("model:", engine.chat(messages, tools=TOOLS, temperature=0, max_tokens=256).message)


if __name__ == "__main__":
    main()
