"""Chat: renders messages to a prompt by the checkpoint's template, and parses completions to messages and calls."""
