"""Reads GGUF files of the architectures `longcat-flash-ngram` and `longcat-flash-sparse`.

The format is described in docs/gguf.md of the ggml repository; the names and metadata are those that the llama.cpp fork
with these architectures writes. A file is untrusted: its header is checked against its size before anything is
allocated.
"""
