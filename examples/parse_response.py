"""The text of a completion -> a message, for completions that come from elsewhere; whole, and as it arrives."""

import longcat

TOOLS = [{"name": "func_add", "parameters": {"properties": {"x1": {"type": "number"}, "x2": {"type": "number"}}}}]
RESPONSE = """I'll add.<longcat_tool_call>func_add
<longcat_arg_key>x1</longcat_arg_key>
<longcat_arg_value>125679</longcat_arg_value>
<longcat_arg_key>x2</longcat_arg_key>
<longcat_arg_value>234519</longcat_arg_value>
</longcat_tool_call>
"""


def main() -> None:
    print(longcat.parse_model_response(RESPONSE, TOOLS))
    parser = longcat.StreamingResponseParser(TOOLS)
    pieces = [RESPONSE[i : i + 20] for i in range(0, len(RESPONSE), 20)]
    for delta in [d for piece in pieces for d in parser.push(piece)] + parser.finish():
        print(delta)


if __name__ == "__main__":
    main()
