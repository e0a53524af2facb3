"""Requests and their results: sampling parameters, prompts, structured outputs, the tokenizer, outputs."""
