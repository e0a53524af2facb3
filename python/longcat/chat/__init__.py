"""Chat: messages to a prompt by the checkpoint's template, and text back to messages and tool calls."""
