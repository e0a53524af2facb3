"""Uses that type checkers take, with the types that they find; test_typing.py reads this file, and no test runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import longcat
from longcat.engine.streams import ChatStream, TokenStream
from longcat.server.served_engine import ServedEngine

engine = longcat.Engine("x", tp=2, threads=4, kv_cache_memory="4GiB", speculative={"method": "ngram"}, max_num_seqs=3)
longcat.Engine(longcat.EngineConfig("x", num_threads=2), max_num_seqs=4)

served: ServedEngine = engine

one: longcat.RequestOutput = engine.generate("x", max_tokens=3, temperature=0, stop=["a"], use_tqdm=False)
of_ids: longcat.RequestOutput = engine.generate([1, 2, 3], {"max_tokens": 3})
of_dict: longcat.RequestOutput = engine.generate({"prompt": "x"}, longcat.SamplingParams(max_tokens=3))
by_ids: longcat.RequestOutput = engine.generate(prompt_token_ids=[1, 2], seed=7)
several: list[longcat.RequestOutput] = engine.generate(["x", "y"], [{"n": 2}, {"n": 3}])
several_by_ids: list[longcat.RequestOutput] = engine.generate(prompt_token_ids=[[1], [2]], logit_bias={1: -3.0})
stream: TokenStream = engine.generate("x", stream=True, max_tokens=3)
ids_stream: TokenStream = engine.generate(prompt_token_ids=[1], stream=True)
delta: str = next(stream).delta
with engine.generate(["x"], stream=True) as chunks:
    for chunk in chunks:
        reason: str | None = chunk.finish_reason

message: Mapping[str, Any] = {"role": "user", "content": "x"}
answer: longcat.ChatOutput = engine.chat([message], tools=[{"type": "function"}], tool_choice="auto", max_tokens=3)
answers: list[longcat.ChatOutput] = engine.chat([[message], [message]], structured_outputs={"regex": "a"})
chat_stream: ChatStream = engine.chat([message], stream=True, chat_template_kwargs={"enable_thinking": True})
reasoning: str = next(chat_stream).reasoning_delta

total: float = engine.score("x").total
totals: list[longcat.PromptScore] = engine.score(["x", "y"])


async def with_asyncio() -> None:
    text = ""
    async for chunk in engine.agenerate("x", max_tokens=3, request_id="a"):
        text += chunk.delta
    whole: longcat.RequestOutput = await engine.agenerate(prompt_token_ids=[1], temperature=0.5)
    reply: longcat.ChatOutput = await engine.achat([message], tools=[], max_tokens=3)
    print(text, whole, reply)


with longcat.LLM("x", trust_remote_code=True) as llm:
    listed: list[longcat.RequestOutput] = llm.generate("x", longcat.SamplingParams(), use_tqdm=False)
    replies: list[longcat.ChatOutput] = llm.chat([message], use_tqdm=False, lora_request=None)
