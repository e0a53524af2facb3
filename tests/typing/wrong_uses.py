"""Uses that type checkers refuse, each with mypy's word for it; test_typing.py reads this file, and no test runs it."""

import longcat

longcat.Engine("x", max_len=3)  # error: call-arg
longcat.Engine("x", max_num_seqs="many")  # error: arg-type
longcat.EngineConfig("x", max_len=3)  # error: call-arg
longcat.EngineConfig("x", "cpu")  # error: call-arg

engine = longcat.Engine("x")
engine.generate("x", max_token=3)  # error: call-overload
engine.generate("x", temperature="cold")  # error: call-overload
engine.generate(["x"], max_token=3)  # error: call-overload
engine.generate("x", stream=True, max_token=3)  # error: call-overload
engine.generate(prompt_token_ids=[1], max_token=3)  # error: call-overload
print(engine.generate(["x"]).text)  # error: attr-defined
engine.generate("x")[0]  # error: index
print(engine.generate("x", stream=True).outputs)  # error: attr-defined
engine.agenerate("x", max_token=3)  # error: call-arg
engine.agenerate("x", sampling_params=3)  # error: arg-type
engine.score("x", max_tokens=3)  # error: call-overload
print(engine.score(["x"]).total)  # error: attr-defined
engine.chat([{"role": "user", "content": "x"}], max_token=3)  # error: call-overload
engine.chat([{"role": "user", "content": "x"}], tool_choise="none")  # error: call-overload
engine.chat("x")  # error: arg-type
engine.chat([{"role": "user", "content": "x"}])[0]  # error: index
engine.achat([{"role": "user", "content": "x"}], max_token=3)  # error: call-arg

llm = longcat.LLM("x")
print(llm.generate("x").text)  # error: attr-defined
llm.generate("x", max_token=3)  # error: call-overload
llm.chat([{"role": "user", "content": "x"}], max_token=3)  # error: call-overload

longcat.SamplingParams(max_token=3)  # error: call-arg
