"""The engine: a loaded checkpoint that turns requests into text."""
