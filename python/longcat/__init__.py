"""longcat: run LongCat-Flash-Lite. `longcat.Engine(path).generate("Once upon a time")`."""

from longcat._core import Error, OutOfMemoryError, QueueFullError, __version__
from longcat.chat.reader import ChatChunk, ChatOutput
from longcat.chat.tool_parser import parse_model_response
from longcat.chat.tool_stream import StreamingResponseParser
from longcat.engine.config import EngineConfig
from longcat.engine.engine import Engine
from longcat.engine.llm import LLM
from longcat.request.outputs import (
    CompletionOutput,
    Logprob,
    PromptScore,
    RequestMetrics,
    RequestOutput,
    StreamChunk,
)
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import StructuredOutputs

__all__ = [
    "LLM",
    "ChatChunk",
    "ChatOutput",
    "CompletionOutput",
    "Engine",
    "EngineConfig",
    "Error",
    "Logprob",
    "OutOfMemoryError",
    "PromptScore",
    "QueueFullError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "StreamingResponseParser",
    "StructuredOutputs",
    "__version__",
    "parse_model_response",
]
