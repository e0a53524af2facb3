"""LLM: the engine under vLLM's name, for programs written for it."""

from __future__ import annotations

from typing import Any

from longcat.engine.engine import Engine


class LLM(Engine):
    """An Engine whose answers always come as lists, as vLLM's do: `LLM(model).generate("a")[0].outputs[0].text`.

    Args, Raises: as for Engine.
    """

    def generate(self, *args: Any, **options: Any) -> Any:
        """As Engine.generate; a list also for one prompt. A stream stays one."""
        return _listed(super().generate(*args, **options))

    def chat(self, *args: Any, **options: Any) -> Any:
        """As Engine.chat; a list also for one conversation. A stream stays one."""
        return _listed(super().chat(*args, **options))


def _listed(outputs: Any) -> Any:
    return outputs if isinstance(outputs, list) or hasattr(outputs, "__next__") else [outputs]
