"""Forms of completions that are meant to take for ever, or all memory."""

HOSTILE = {
    "nested groups": {"regex": "(" * 50_000 + "a" + ")" * 50_000},
    "counted counts": {"regex": "((((a{0,100}){0,100}){0,100}){0,100})"},
    "many alternatives": {"regex": "|".join(f"(a{{1,{i}}}b.*){{1,30}}" for i in range(2, 400))},
    "complement": {"grammar": "start: T\nT: ~(/(.*a.{12}b.*)/ & /(.*b.{14}a.*)/ & /.*c.{17}d.*/)"},
    "left recursion": {"grammar": 'start: start start | "a" | ""'},
    "nested parentheses": {"grammar": "start: " + "(" * 50_000 + '"a"' + ")" * 50_000},
    "doubling": {"grammar": 'start: a0\n' + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(40)) + 'a40: "x"'},
    "big enum": {"json": {"enum": [str(i) for i in range(20_000)]}},
    "many patterns": {"json": {"properties": {f"p{i}": {"type": "string", "pattern": "^(a|b|c{1,50}){1,50}$"}
                                              for i in range(2_000)}}},
    "deep": {"json": '{"items":' * 20_000 + "{}" + "}" * 20_000},
    "endless reference": {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    "product of unions": {"json": {"allOf": [
        {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}} for j in range(6)]} for i in range(12)]}},
    "long array": {"json": {"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}}},
}  # fmt: skip

# These do it, for a while: no limit of llguidance's stops them. The server does.
UNBOUNDED = {
    "intersection of patterns": {"json": {"allOf": [
        {"type": "string", "pattern": f".*a.{{{i}}}b.*"} for i in range(1, 20)]}},
    "optional properties": {"json": {
        "properties": {f"p{i}": {"type": "integer"} for i in range(8_000)}, "additionalProperties": False}},
}  # fmt: skip
