"""Text and token ids of a checkpoint: its tokenizer, its chat template, and grammars for its vocabulary."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longcat._core import Error
from longcat.request.prompts import Conversation, as_token_ids
from longcat.request.tokenizer import StreamDecoder, Tokenizer
from longcat.support.files import read_text
from longcat.support.json_types import JsonObject

if TYPE_CHECKING:
    from longcat.chat.template import ChatTemplate
    from longcat.request.structured import Grammar, GrammarCompiler, StructuredOutputs


class CheckpointText:
    """The tokenizer, the chat template and the grammars of one checkpoint, each loaded when first needed.

    Args:
        folder: the checkpoint.
        tokenizer: a tokenizer.json or its folder, in place of the checkpoint's.
        chat_template: a jinja file or the template itself, in place of the checkpoint's.
        vocab_size: number of ids that the model knows; a tokenizer may have fewer.
        eos_token_ids: ids that end a completion, and with it its grammar.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: str | os.PathLike[str] | None,
        chat_template: str | os.PathLike[str] | None,
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ):
        self._folder = folder
        self._tokenizer_path = folder if tokenizer is None else tokenizer
        self._tokenizer: Tokenizer | None = None
        self._chat_template_source = chat_template
        self._chat_template: ChatTemplate | None = None
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._grammars: GrammarCompiler | None = None
        self._lock = threading.Lock()  # of _grammars

    def setup(self) -> JsonObject:
        """The arguments of this object, for another process."""
        source = self._chat_template_source
        return {
            "folder": self._folder,
            "tokenizer": os.fspath(self._tokenizer_path),
            "chat_template": None if source is None else os.fspath(source),
            "vocab_size": self._vocab_size,
            "eos_token_ids": self._eos_token_ids,
        }

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._tokenizer_path)
        return self._tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        if self._chat_template is None:
            from longcat.chat.template import ChatTemplate

            source = self._chat_template_source
            if source is None:
                self._chat_template = ChatTemplate.from_checkpoint(self._folder)
            elif os.path.isfile(source):
                self._chat_template = ChatTemplate(read_text(source, "[chat template]"))
            elif "{" not in os.fspath(source):
                raise Error(f"[chat template] {os.fspath(source)} does not exist, and is no template itself")
            else:
                self._chat_template = ChatTemplate(os.fspath(source))
        return self._chat_template

    def render_chat(
        self, messages: Conversation, max_text_bytes: int | None, options: Mapping[str, Any]
    ) -> tuple[str, list[int]]:
        """As Engine.render_chat."""
        from longcat.chat.template import encode_segments, tag_texts

        library = self.tokenizer.library
        segments = self.chat_template.render_segments(messages, tags=tag_texts(library), **options)
        text = "".join(text for text, _ in segments)
        if max_text_bytes is not None and (num_bytes := len(text.encode(errors="surrogatepass"))) > max_text_bytes:
            raise ValueError(
                f"[chat] the prompt has {num_bytes} bytes, which cannot fit the context; expected at most "
                f"{max_text_bytes} bytes. Shorten the messages."
            )
        return text, encode_segments(library, segments)

    def compile_grammar(self, form: StructuredOutputs | Grammar | Mapping[str, object]) -> Grammar:
        """As Engine.compile_grammar."""
        from longcat.request.structured import Grammar, GrammarCompiler, StructuredOutputs

        if isinstance(form, Grammar):
            return form
        with self._lock:
            if self._grammars is None:
                self._grammars = GrammarCompiler(lambda: self.tokenizer, self._vocab_size, self._eos_token_ids)
        return self._grammars.compile(StructuredOutputs.of(form))

    def token_text(self, token_id: int) -> str | None:
        """Returns the text of one token on its own; None without a tokenizer."""
        try:
            return self.tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")
        except Error:
            return None

    def decoder(self, optional: bool, skip_special_tokens: bool) -> StreamDecoder | None:
        """Returns a decoder for one completion.

        Args:
            optional: return None where there is no tokenizer: the completion then has token ids and no text.
        Raises:
            longcat.Error: there is no tokenizer, and the completion needs text.
        """
        try:
            return StreamDecoder(self.tokenizer, skip_special_tokens)
        except Error:
            if optional:
                return None
            raise


class TextMethods:
    """The methods of an engine that need its text and no model."""

    _text: CheckpointText

    def text_setup(self) -> JsonObject:
        """The arguments of CheckpointText, with which another process makes this engine's text."""
        return self._text.setup()

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, loaded when first needed."""
        return self._text.tokenizer

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer, under vLLM's name."""
        return self.tokenizer

    @property
    def chat_template(self) -> ChatTemplate:
        """The chat template, compiled when first needed."""
        return self._text.chat_template

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of `text`, without added tokens."""
        return self.tokenizer.encode(text)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Returns the text of `token_ids`."""
        ids = as_token_ids(token_ids)
        for token_id in ids:
            if token_id < 0:
                raise ValueError(f"token id {token_id} is not in the vocabulary")
        return self.tokenizer.decode(ids, skip_special_tokens)

    def render_chat(
        self, messages: Conversation, *, max_text_bytes: int | None = None, **options: object
    ) -> tuple[str, list[int]]:
        """Returns the prompt of a conversation: its text and its token ids. Tags that users typed stay text.

        Args:
            messages, options: as for chat (tools, tool_choice, add_generation_prompt, continue_final_message, and
                variables of the template).
            max_text_bytes: refuse a longer text before it is tokenized; default: any length.
        Raises:
            ValueError: the text is longer than max_text_bytes.
        """
        return self._text.render_chat(messages, max_text_bytes, options)

    def token_text(self, token_id: int) -> str | None:
        """Returns the text of one token on its own; None without a tokenizer."""
        return self._text.token_text(token_id)

    def compile_grammar(self, form: StructuredOutputs | Grammar | Mapping[str, object]) -> Grammar:
        """Compiles the grammar of a form, for `SamplingParams.structured_outputs`. The last grammars are kept.

        Raises:
            ValueError, TypeError: the form is malformed or too large.
            longcat.Error: llguidance is not installed, or there is no tokenizer.
        """
        return self._text.compile_grammar(form)
