"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat.chat.reader import ChatChunk, ChatReader, force_calls
from longcat.chat.tool_stream import ToolCallDelta
from longcat.chat.tool_text import json_text
from longcat.request.outputs import Logprob, RequestOutput
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import StructuredOutputs
from longcat.server.api.protocol import ChatRequest
from longcat.server.generation import FEW_TOKENS, Generation, Service, respond, usage
from longcat.server.http.body import Done
from longcat.server.http.errors import ApiError
from longcat.server.http.intake import JsonRoute
from longcat.server.texts import Texts, answer_form, grammar_of, template_variables
from longcat.support.json_types import JsonObject

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", summary="Answer a conversation")
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Whole, or with `stream` as server-sent events."""
    return await respond(request, body, start_chat)


@dataclass
class ChatPlan:
    """A chat request, checked and tokenized; `params` still lack the grammar and max_tokens."""

    model: str
    params: SamplingParams
    reader: ChatReader
    done: Done


def plan_chat(texts: Texts, body: ChatRequest) -> ChatPlan:
    """Checks, renders and tokenizes.

    Raises:
        ApiError, ValueError, TypeError, longcat.Error: the request is wrong.
    """
    model = texts.model_name(body.model)
    if body.chat_template is not None:
        raise ApiError(400, "chat_template: templates of requests are off; use the server's", param="chat_template")
    params = texts.sampling_params(body, logprobs=texts.logprobs(body.top_logprobs or 0) if body.logprobs else None)
    form = answer_form(body)
    tools, tool_choice = _allowed_tools(body.tools, body.tool_choice)
    params.structured_outputs = None if form is None else StructuredOutputs.of(form)
    is_forced = tool_choice not in (None, "auto", "none")
    params, tool_choice = force_calls(params, tools, tool_choice, body.parallel_tool_calls)
    done = body._done
    if done is None:
        grammar = grammar_of(params)
        _, token_ids = texts.render_chat(
            body.messages,
            tools=tools,
            tool_choice=tool_choice,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            **template_variables(body),
        )
        texts.check_room(token_ids, "messages")
        done = Done([token_ids], grammar)
    return ChatPlan(model, params, ChatReader(tools, tool_choice, is_forced), done)


async def start_chat(service: Service, body: ChatRequest) -> ChatAnswer:
    """Plans, compiles and queues.

    Raises:
        ApiError: the request is wrong, or the server is full.
    """
    plan = await service.planned(body, plan_chat)
    params, [token_ids] = plan.params, plan.done.token_ids
    params.structured_outputs = await service.compiled(plan.done.grammar)
    params.max_tokens = body.max_completion_tokens or body.max_tokens or max(service.max_model_len - len(token_ids), 1)
    id = f"chatcmpl-{uuid.uuid4().hex}"
    chunks = await service.submit(id, token_ids, params)
    return ChatAnswer(service, body, id, plan.model, len(token_ids), chunks, plan.reader)


def _allowed_tools(tools: list[dict[str, Any]] | None, choice: Any) -> tuple[list[dict[str, Any]] | None, Any]:
    """The tools that the model gets to see, and the choice among them, where `choice` lists the allowed ones.

    Raises:
        ValueError: an allowed tool is not declared, or the list is none.
    """
    if not isinstance(choice, Mapping) or choice.get("type") != "allowed_tools":
        return tools, choice
    allowed = choice.get("allowed_tools")
    listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
    mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
    if mode not in ("auto", "required") or not isinstance(listed, list) or not listed:
        raise ValueError(
            f"[request] tool_choice is {str(choice)[:100]}; expected "
            '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [...]}}.'
        )
    declared = {_tool_name(tool): tool for tool in tools or ()}
    names = [_tool_name(tool) for tool in listed]
    for name in names:
        if name not in declared:
            raise ValueError(
                f'[request] tool_choice allows the tool "{str(name)[:64]}", which is not declared; '
                f"expected some of {', '.join(map(str, declared)) or 'none'}."
            )
    return [declared[name] for name in dict.fromkeys(names)], mode


def _tool_name(tool: Any) -> str | None:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


@dataclass
class ChatAnswer:
    """An answer on its way, in OpenAI's shapes."""

    service: Service
    body: ChatRequest
    id: str
    model: str
    num_prompt_tokens: int
    chunks: Generation
    reader: ChatReader
    created: int = field(default_factory=lambda: int(time.time()))
    log: JsonObject = field(default_factory=dict)

    async def aclose(self) -> None:
        await self.chunks.aclose()

    async def whole(self) -> JsonObject:
        output: Any = None
        async for chunk in self.chunks:
            output = self.reader.read(chunk).output
        self._log_end(output)
        num_tokens = sum(len(answer.token_ids) for answer in output.outputs)
        if self.body.logprobs and num_tokens > FEW_TOKENS:
            return await asyncio.to_thread(self._whole, output)
        return self._whole(output)

    def _whole(self, output: Any) -> dict[str, Any]:
        choices = [
            {
                "index": answer.index,
                "message": _message(message),
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
                "logprobs": self._logprobs(answer.logprobs),
                **({"error": answer.error} if answer.error else {}),
            }
            for answer, message in zip(output.outputs, output.messages, strict=True)
        ]
        return self._frame("chat.completion", choices) | {"usage": usage([output])}

    async def events(self) -> AsyncGenerator[JsonObject, None]:
        """The chunks of the stream."""
        options = self.body.stream_options
        output: RequestOutput | None = None
        num_tokens = 0
        # As OpenAI: null before what may be a call. Of an empty text some clients make a part of the message.
        content = None if self.reader.may_call else ""
        for index in range(self.body.n):
            yield self._event(index, {"role": "assistant", "content": content, "refusal": None}) | self._usage_so_far(0)
        async for raw in self.chunks:
            chunk = self.reader.read(raw)
            num_tokens += len(chunk.token_ids)
            output = chunk.output
            deltas = _deltas(chunk)
            if chunk.logprobs is not None and not deltas:
                deltas = [{}]
            if chunk.finish_reason is not None:
                deltas = deltas or [{}]
            for position, delta in enumerate(deltas):
                last = position == len(deltas) - 1
                event = self._event(chunk.index, delta, self._logprobs(chunk.logprobs) if position == 0 else None)
                if last and chunk.finish_reason is not None:
                    end = {"finish_reason": chunk.finish_reason, "stop_reason": chunk.stop_reason}
                    event["choices"][0].update(end | ({"error": chunk.error} if chunk.error else {}))
                yield event | self._usage_so_far(num_tokens)
        if output is not None:
            self._log_end(output)
            if options is not None and options.include_usage:
                yield self._frame("chat.completion.chunk", []) | {"usage": usage([output])}

    def _usage_so_far(self, num_tokens: int) -> JsonObject:
        """To be added to a chunk, if the client wants it in each."""
        if self.body.stream_options is None or not self.body.stream_options.continuous_usage_stats:
            return {}
        counts = {"prompt_tokens": self.num_prompt_tokens, "completion_tokens": num_tokens}
        return {"usage": {**counts, "total_tokens": sum(counts.values())}}

    def _event(self, index: int, delta: dict[str, object], logprobs: object = None) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: list[dict[str, object]]) -> JsonObject:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _logprobs(self, entries: list[dict[int, Logprob]] | None) -> JsonObject | None:
        if entries is None:
            return None
        count = self.body.top_logprobs or 0
        content = []
        for entry in entries:
            [chosen, *_] = entry
            top = sorted(entry.items(), key=lambda item: item[1].rank)
            top = [(id, one) for id, one in top if one.rank <= count][:count]
            listed = [self._logprob(id, one) for id, one in top]
            content.append({**self._logprob(chosen, entry[chosen]), "top_logprobs": listed})
        return {"content": content, "refusal": None}

    def _logprob(self, token_id: int, one: Logprob) -> JsonObject:
        raw = self.service.engine.tokenizer.token_bytes(token_id)
        return {"token": one.decoded_token or "", "logprob": max(one.logprob, -9999.0), "bytes": list(raw)}

    def _log_end(self, output: RequestOutput) -> None:
        self.log["prompt_tokens"] = len(output.prompt_token_ids)
        self.log["completion_tokens"] = sum(len(answer.token_ids) for answer in output.outputs)
        self.log["finish_reason"] = [answer.finish_reason for answer in output.outputs]


def _call_delta(call: ToolCallDelta) -> JsonObject:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": _call_id(), "type": "function", "function": function}


def _deltas(chunk: ChatChunk) -> list[JsonObject]:
    """What a chunk adds to the message, nothing empty. As OpenAI, one call in each: clients read no more."""
    deltas: list[JsonObject] = []
    if chunk.reasoning_delta:
        deltas.append({"reasoning_content": chunk.reasoning_delta})
    if chunk.delta:
        deltas.append({"content": chunk.delta})
    calls: list[ToolCallDelta] = []
    for call in chunk.tool_calls:
        if calls and call.name is None and call.index == calls[-1].index:
            calls[-1] = dataclasses.replace(calls[-1], arguments=calls[-1].arguments + call.arguments)
        else:
            calls.append(call)
    return [*deltas, *({"tool_calls": [_call_delta(call)]} for call in calls)]


def _message(message: Mapping[str, Any]) -> JsonObject:
    """A message with its calls in OpenAI's shape: ids, and arguments as text."""
    calls = [
        {
            "id": _call_id(),
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": _arguments(call["function"]["arguments"])},
        }
        for call in message.get("tool_calls", ())
    ]
    if not calls:
        return {**message, "refusal": None}
    return {**message, "content": message["content"] or None, "refusal": None, "tool_calls": calls}


def _arguments(arguments: dict[str, object] | str) -> str:
    """As JSON; those of an unfinished call are its beginning already."""
    return arguments if isinstance(arguments, str) else json_text(arguments)


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
