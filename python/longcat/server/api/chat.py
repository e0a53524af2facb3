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

from longcat.chat.reader import ChatChunk, ChatReader, ends_in_think, force_calls
from longcat.chat.tool_stream import ToolCallDelta
from longcat.chat.tool_text import CALL, json_text
from longcat.request.outputs import Logprob, RequestOutput
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import StructuredOutputs
from longcat.request.totals import timings, usage
from longcat.server.api.chat_chunks import ChatChunks, log_facts, prompt_entries, prompt_logprobs
from longcat.server.api.protocol import ChatRequest
from longcat.server.api.shapes import ChatCompletion, answers
from longcat.server.generation import FEW_TOKENS, Service, respond
from longcat.server.http.body import Done
from longcat.server.http.errors import ApiError
from longcat.server.http.intake import JsonRoute
from longcat.server.texts import Texts, answer_form, grammar_of, template_variables
from longcat.support.json_types import JsonObject

router = APIRouter(route_class=JsonRoute)

_NEVER = -100.0  # a bias of a token that no text may hold


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=answers(ChatCompletion, stream=True))
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Completes a conversation: as one response, or with `stream` as server-sent events."""
    return await respond(request, body, start_chat)


@dataclass
class ChatPlan:
    """A chat request, checked and tokenized; `params` still lack the grammar and max_tokens."""

    body: ChatRequest
    model: str
    params: SamplingParams
    reader: ChatReader
    done: Done


def plan_chat(texts: Texts, body: ChatRequest, field: str = "messages") -> ChatPlan:
    """Checks, renders and tokenizes.

    Args:
        field: of the client's request, that the messages came in.
    Raises:
        ApiError, ValueError, TypeError, longcat.Error: the request is wrong.
    """
    model = texts.model_name(body.model)
    if body.chat_template is not None:
        raise ApiError(400, "chat_template: templates of requests are off; use the server's", param="chat_template")
    logprobs = texts.logprobs(body.top_logprobs or 0) if body.logprobs else None
    params = texts.sampling_params(body, logprobs=logprobs, prompt_logprobs=prompt_logprobs(texts, body))
    form = answer_form(body)
    tools, tool_choice = _allowed_tools(body.tools, body.tool_choice)
    params.structured_outputs = None if form is None else StructuredOutputs.of(form)
    is_forced = tool_choice not in (None, "auto", "none")
    params, tool_choice = force_calls(params, tools, tool_choice, body.parallel_tool_calls)
    if tools and tool_choice == "none":
        params.logit_bias = {**(params.logit_bias or {}), **_no_calls(texts)}
    if (done := body._done) is None:
        grammar = grammar_of(params)
        token_ids = _prompt(texts, body, tools, tool_choice)
        texts.check_room(token_ids, field)
        done = Done([token_ids], grammar)
    thinks = params.structured_outputs is None and _starts_thinking(texts, done)
    reader = ChatReader(tools, tool_choice, is_forced, [thinks])
    return ChatPlan(body, model, params, reader, done)


def _starts_thinking(texts: Texts, done: Done) -> bool:
    """Returns whether the prompt ends inside a think block. Its tag and white space are a few tokens."""
    return ends_in_think(texts.engine.decode(done.token_ids[0][-32:], skip_special_tokens=False))


def chat_prompt(texts: Texts, body: ChatRequest) -> list[int]:
    """Returns the token ids of a request's prompt.

    Raises:
        ApiError, ValueError, TypeError, longcat.Error: the request is wrong.
    """
    tools, tool_choice = _allowed_tools(body.tools, body.tool_choice)
    return _prompt(texts, body, tools, tool_choice if tool_choice in (None, "none") else "auto")


def _prompt(texts: Texts, body: ChatRequest, tools: list[dict[str, Any]] | None, tool_choice: str | None) -> list[int]:
    _, token_ids = texts.render_chat(
        body.messages,
        tools=tools,
        tool_choice=tool_choice,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        **template_variables(body),
    )
    return token_ids


def _no_calls(texts: Texts) -> dict[int, float]:
    """Returns a bias that keeps the tag of calls out of a text; empty where the tag is no single token."""
    token_ids = texts.engine.encode(CALL)
    return {token_ids[0]: _NEVER} if len(token_ids) == 1 else {}


async def start_chat(service: Service, body: ChatRequest) -> ChatAnswer:
    """Queues a chat for an answer in OpenAI's shapes.

    Raises:
        ApiError: the request is wrong, or the server is full.
    """
    id = f"chatcmpl-{uuid.uuid4().hex}"
    return ChatAnswer(await queue_chat(service, await service.planned(body, plan_chat), id), id)


async def queue_chat(service: Service, plan: ChatPlan, id: str) -> ChatChunks:
    """Compiles the grammar, and queues the request.

    Args:
        id: a name of the request, for the engine.
    Raises:
        ApiError: the request is wrong, or the server is full.
    """
    body, params, [token_ids] = plan.body, plan.params, plan.done.token_ids
    params.structured_outputs = await service.compiled(plan.done.grammar)
    params.max_tokens = body.max_completion_tokens or body.max_tokens or max(service.max_model_len - len(token_ids), 1)
    generation = await service.submit(id, token_ids, params)
    return ChatChunks(service, body, plan.model, len(token_ids), generation, plan.reader)


def _allowed_tools(tools: list[dict[str, Any]] | None, choice: Any) -> tuple[list[dict[str, Any]] | None, Any]:
    """Returns the tools to show to the model and the choice among them, after `choice` with its list of allowed tools.

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
    """A response that is being made, in OpenAI's shapes."""

    chunks: ChatChunks
    id: str
    created: int = field(default_factory=lambda: int(time.time()))
    log: JsonObject = field(default_factory=dict)
    named_events = False

    @property
    def body(self) -> ChatRequest:
        return self.chunks.body

    async def aclose(self) -> None:
        await self.chunks.aclose()

    async def whole(self) -> JsonObject:
        output: Any = None
        async for chunk in self.chunks:
            output = chunk.output
        self.log.update(log_facts([output]))
        num_entries = sum(len(answer.token_ids) for answer in output.outputs) if self.body.logprobs else 0
        num_entries += len(output.prompt_logprobs or ())
        if num_entries > FEW_TOKENS:
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
        frame = self._frame("chat.completion", choices) | {"usage": usage([output]), "timings": timings(output)}
        return frame | ({} if self.body.prompt_logprobs is None else {"prompt_logprobs": prompt_entries(output)})

    async def events(self) -> AsyncGenerator[JsonObject, None]:
        """The chunks of the stream."""
        options = self.body.stream_options
        output: RequestOutput | None = None
        num_tokens = 0
        # As OpenAI does: null where a call may follow, because some clients turn an empty text into a message part.
        content = None if self.chunks.reader.may_call else ""
        for index in range(self.body.n):
            yield self._event(index, {"role": "assistant", "content": content, "refusal": None}) | self._usage_so_far(0)
        async for chunk in self.chunks:
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
                    if output is not None:
                        event["timings"] = timings(output)
                yield event | self._usage_so_far(num_tokens)
        if output is not None:
            self.log.update(log_facts([output]))
            if options is not None and options.include_usage:
                yield self._frame("chat.completion.chunk", []) | {"usage": usage([output])}

    def _usage_so_far(self, num_tokens: int) -> JsonObject:
        """Returns the `usage` of a chunk, if the client wants it in each chunk."""
        if self.body.stream_options is None or not self.body.stream_options.continuous_usage_stats:
            return {}
        counts = {"prompt_tokens": self.chunks.num_prompt_tokens, "completion_tokens": num_tokens}
        return {"usage": {**counts, "total_tokens": sum(counts.values())}}

    def _event(self, index: int, delta: dict[str, object], logprobs: object = None) -> JsonObject:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        return self._frame("chat.completion.chunk", [choice])

    def _frame(self, kind: str, choices: list[dict[str, object]]) -> JsonObject:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.chunks.model, "choices": choices}

    def _logprobs(self, entries: list[dict[int, Logprob]] | None) -> JsonObject | None:
        return None if entries is None else {"content": self.chunks.logprobs(entries), "refusal": None}


def _call_delta(call: ToolCallDelta) -> JsonObject:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": _call_id(), "type": "function", "function": function}


def _deltas(chunk: ChatChunk) -> list[JsonObject]:
    """Returns the parts that a chunk adds to the message, with at most one call each: clients read no more."""
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
    """Returns a message with its calls in OpenAI's shape: with ids, and with arguments as text."""
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
    """Returns arguments as JSON. Those of an unfinished call are the beginning of JSON already."""
    return arguments if isinstance(arguments, str) else json_text(arguments)


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
