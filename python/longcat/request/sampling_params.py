"""Sampling parameters: how the tokens of a completion are drawn, and what ends it.

Each field of SamplingParams says all there is to say about one parameter. Flags of the command line, the docstring and
docs/reference/sampling.md are derived from the fields.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import longcat._core as _core
from longcat.support.names import unknown_name

if TYPE_CHECKING:
    import numpy as np

    from longcat.request.structured import Grammar, StructuredOutputs
    from longcat.request.tokenizer import Tokenizer


MAX_N = 128  # completions of one prompt


@dataclass(frozen=True)
class Parameter:
    """The facts about a sampling parameter beside its name, type and default.

    Args:
        help: one line without its default, which the command line and the reference add.
        details: further sentences for the reference.
        default: the default in words, where the value says too little.
        unit: unit of the value; "": it has none.
    """

    help: str
    details: str = ""
    default: str = ""
    unit: str = ""


def _parameter(value: Any, help: str, **facts: str) -> Any:
    """Makes a field of its default and the facts that Parameter names."""
    return dataclasses.field(default=value, metadata={"parameter": Parameter(help, **facts)})


_MODELS = "the model's generation_config.json, else "


@dataclass
class SamplingParams:
    """Sampling parameters of a request; None means the model's own default (generation_config.json).

    They apply in the order of transformers' `generate`. First come logit bias, repetition penalty, presence and
    frequency penalties, and removals (bad words, allowed ids, mask). Then come temperature, top-k, top-p, min-p and one
    draw.
    """

    n: int = _parameter(1, "completions of each prompt", details=f"At most {MAX_N}.", unit="completions")
    max_tokens: int = _parameter(
        1024, "maximum number of new tokens", details="The model's context may end a completion earlier.", unit="tokens"
    )
    min_tokens: int = _parameter(
        0, "minimum number of new tokens; end tokens, stop ids and stop strings have no effect before", unit="tokens"
    )
    temperature: float | None = _parameter(
        None, "divide the logits by this; 0 is greedy", default=f"{_MODELS}1 (0 if its do_sample is false)"
    )
    top_k: int | None = _parameter(
        None,
        "keep the k most likely tokens; 0 or -1 is off",
        details="Tokens as likely as the k-th are kept, too.",
        default=f"{_MODELS}off",
        unit="tokens",
    )
    top_p: float | None = _parameter(
        None,
        "keep the most likely tokens whose probabilities add up to this; 1 is off",
        details="In (0, 1].",
        default=f"{_MODELS}off",
    )
    min_p: float | None = _parameter(
        None,
        "drop tokens less likely than this share of the most likely token's probability; 0 is off",
        default=f"{_MODELS}off",
    )
    repetition_penalty: float | None = _parameter(
        None,
        "divide the logit of each token of prompt and output by this; 1 is off",
        details="Logits below zero are multiplied instead.",
        default=f"{_MODELS}off",
    )
    presence_penalty: float = _parameter(0.0, "subtract this from the logit of each token that is in the output")
    frequency_penalty: float = _parameter(
        0.0, "subtract this from a token's logit for each time that the token is in the output"
    )
    seed: int | None = _parameter(
        None,
        "seed of the draws: the same seed gives the same text",
        details="The text does not depend on the rest of the batch.",
        default="a new one for each request",
    )
    stop: str | Sequence[str] = _parameter(
        (), "end a completion before this text", details="One text or several.", default="none"
    )
    include_stop_str_in_output: bool = _parameter(False, "keep the stop text at the end of the completion")
    stop_token_ids: Sequence[int] = _parameter(
        (), "token ids that end a completion, in addition to the end token", default="none"
    )
    ignore_eos: bool = _parameter(False, "continue after the end token")
    logit_bias: Mapping[int, float] | None = _parameter(
        None, "token ids, each with a number that is added to its logit before everything else", default="none"
    )
    bad_words: Sequence[str] = _parameter(
        (),
        "texts that the output must not contain",
        details="Each is tokenized twice: at the start of a text, and after a space.",
        default="none",
    )
    allowed_token_ids: Sequence[int] | None = _parameter(
        None, "token ids that may be drawn; all others are removed", default="all"
    )
    logprobs: int | None = _parameter(
        None,
        "for each new token, report the drawn token and this many of the most likely, with log-probabilities",
        default="not reported",
        unit="tokens",
    )
    prompt_logprobs: int | None = _parameter(
        None,
        "for each prompt token but the first, report its log-probability and this many of the most likely tokens",
        default="not reported",
        unit="tokens",
    )
    token_mask: Callable[[list[int]], np.ndarray | None] | None = _parameter(
        None,
        "function that says which token ids may follow: it is called with the output ids so far",
        details="It returns [vocab_size] bools, or [ceil(vocab_size / 32)] words of 32 bits, or None for all ids. "
        "Write one for a grammar of your own.",
        default="none",
    )
    structured_outputs: StructuredOutputs | Grammar | Mapping[str, object] | None = _parameter(
        None,
        'form of the completion, as {"json": schema}, {"regex": ...}, {"choice": [...]} or {"grammar": ...}',
        details="Also StructuredOutputs, or the result of Engine.compile_grammar.",
        default="none",
    )
    skip_special_tokens: bool = _parameter(True, "leave special tokens out of the text")

    @classmethod
    def of(
        cls, params: SamplingParams | Mapping[str, object] | None, overrides: Mapping[str, object]
    ) -> SamplingParams:
        """Makes parameters from an object, a dict or None; `overrides` replace single fields.

        Raises:
            TypeError: a name is unknown (the message has the nearest one), or `params` has another type.
            ValueError: `n` or a stop string is wrong.
        """
        if params is None:
            params = {}
        given: dict[str, Any]
        if isinstance(params, SamplingParams):
            given = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
        elif isinstance(params, Mapping):
            given = dict(params)
        else:
            raise TypeError(f"sampling_params is a {type(params).__name__}: expected SamplingParams or a dict")
        given.update(overrides)
        given = {name: value for name, value in given.items() if value is not None}  # as clients send unset fields
        known = [f.name for f in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise unknown_name("SamplingParams", name, known)
        result = cls(**given)
        if not 1 <= _index("n", result.n) <= MAX_N:
            raise ValueError(f"n={result.n}; expected 1 to {MAX_N}")
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(result, name) is not None and _index(name, getattr(result, name)) < 0:
                raise ValueError(f"{name}={getattr(result, name)}; expected 0 or more")
        if result.token_mask is not None and not callable(result.token_mask):
            raise TypeError(
                f"token_mask={result.token_mask!r} is a {type(result.token_mask).__name__}: expected a function"
            )
        if result.structured_outputs is not None:
            from longcat.request.structured import Grammar, StructuredOutputs

            if not isinstance(result.structured_outputs, Grammar):
                result.structured_outputs = StructuredOutputs.of(result.structured_outputs)
            if result.token_mask is not None:
                raise ValueError("token_mask and structured_outputs do not go together: give one of them")
        if not all(isinstance(stop, str) and stop for stop in result.stop_strings()):
            raise ValueError(f"stop={result.stop!r}; expected non-empty strings")
        return result

    def stop_strings(self) -> list[str]:
        """Returns `stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)


def parameters() -> dict[str, Parameter]:
    """Returns the facts about each sampling parameter, by name."""
    return {field.name: field.metadata["parameter"] for field in dataclasses.fields(SamplingParams)}


# help(SamplingParams) lists the arguments. Without docstrings (python -OO) there is nothing to add to.
if SamplingParams.__doc__ is not None:
    SamplingParams.__doc__ += "\n    Args:\n" + "".join(
        f"        {name}: {parameter.help}.\n" for name, parameter in parameters().items()
    )


def core_params(
    params: SamplingParams,
    defaults: Mapping[str, object],
    eos_token_ids: Sequence[int],
    seed: int,
    tokenizer: Callable[[], Tokenizer],
) -> _core.SamplingParams:
    """Returns `params` for the core, with the model's defaults filled in.

    Args:
        defaults: the fields of generation_config.json.
        eos_token_ids: the model's end tokens.
        seed: the seed of a request without one.
        tokenizer: returns the tokenizer; called when there are bad words.
    """
    greedy = defaults.get("do_sample") is False

    def given_or_default(name: str, off: float, of_sampling: bool = True) -> Any:
        given = getattr(params, name)
        if given is not None:
            return given
        return off if greedy and of_sampling else defaults.get(name, off)

    core = _core.SamplingParams()
    core.max_tokens = _integer("max_tokens", params.max_tokens)
    core.min_tokens = _integer("min_tokens", params.min_tokens)
    core.temperature = _number("temperature", given_or_default("temperature", 0.0 if greedy else 1.0))
    core.top_k = max(_integer("top_k", given_or_default("top_k", 0)), 0)
    core.top_p = _number("top_p", given_or_default("top_p", 1.0))
    core.min_p = _number("min_p", given_or_default("min_p", 0.0))
    repetition_penalty = given_or_default("repetition_penalty", 1.0, of_sampling=False)
    core.repetition_penalty = _number("repetition_penalty", repetition_penalty)
    core.presence_penalty = _number("presence_penalty", params.presence_penalty)
    core.frequency_penalty = _number("frequency_penalty", params.frequency_penalty)
    core.seed = seed if params.seed is None else _index("seed", params.seed) % 2**64
    stops = _token_ids("stop_token_ids", params.stop_token_ids or ())
    # A grammar ends with an end token, behind which no token may follow. So `ignore_eos` has no effect with a grammar.
    ends_ignored = params.ignore_eos and params.structured_outputs is None
    core.stop_token_ids = [*stops, *([] if ends_ignored else eos_token_ids)]
    if params.logit_bias:
        core.set_logit_bias(_logit_bias(params.logit_bias))
    if params.bad_words:
        words = [params.bad_words] if isinstance(params.bad_words, str) else params.bad_words
        core.bad_words = [ids for word in words for ids in _spellings(tokenizer(), word)]
    if params.allowed_token_ids is not None:
        if not len(params.allowed_token_ids):
            raise ValueError("allowed_token_ids is empty: no token could follow")
        core.allowed_token_ids = _token_ids("allowed_token_ids", params.allowed_token_ids)
    core.constrained = params.token_mask is not None or params.structured_outputs is not None
    core.logprobs = -1 if params.logprobs is None else _integer("logprobs", params.logprobs)
    core.prompt_logprobs = -1 if params.prompt_logprobs is None else _integer("prompt_logprobs", params.prompt_logprobs)
    return core


def _index(name: str, value: object) -> int:
    """Checks an integer, which may be NumPy's."""
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        return operator.index(value)
    raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected an integer")


def _integer(name: str, value: object) -> int:
    number = _index(name, value)
    if not -(2**31) <= number < 2**31:
        raise ValueError(f"{name}={number}; expected at most {2**31 - 1}")
    return number


def _number(name: str, value: object) -> float:
    """Checks a number, which may be NumPy's."""
    if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected a number")
    return float(value)


def _token_id(name: str, value: object) -> int:
    number = _index(name, value)
    if not 0 <= number < 2**31:
        raise ValueError(f"{name}={number}; expected ids of the vocabulary")
    return number


def _logit_bias(bias: object) -> dict[int, float]:
    """Checks a logit bias. Its ids may be texts, as in JSON."""
    if not hasattr(bias, "items"):
        raise TypeError(f"logit_bias={bias!r} is a {type(bias).__name__}: expected a mapping from token ids to numbers")
    try:
        return {_token_id("logit_bias", int(i)): _number("logit_bias", value) for i, value in bias.items()}
    except ValueError as error:
        raise ValueError(f"logit_bias={bias!r}: {error}") from None


def _token_ids(name: str, values: object) -> list[int]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name}={values!r} is a {type(values).__name__}: expected a list of token ids")
    return [_token_id(name, value) for value in values]


def _spellings(tokenizer: Tokenizer, word: str) -> list[list[int]]:
    """Returns the token ids of a word at the start of a text, and those after a space."""
    spellings = [tokenizer.encode(word), tokenizer.encode(" " + word.lstrip())]
    return [ids for i, ids in enumerate(spellings) if ids and ids not in spellings[:i]]
