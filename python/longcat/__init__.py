"""longcat: run LongCat-Flash-Lite. `longcat.Engine(path).generate("Once upon a time")`."""

from longcat._core import Error, OutOfMemoryError, __version__
from longcat.engine import Engine
from longcat.outputs import CompletionOutput, Logprob, PromptScore, RequestMetrics, RequestOutput, StreamChunk
from longcat.sampling_params import SamplingParams

__all__ = [
    "CompletionOutput",
    "Engine",
    "Error",
    "Logprob",
    "OutOfMemoryError",
    "PromptScore",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StreamChunk",
    "__version__",
]
