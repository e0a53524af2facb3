"""The engine: a loaded checkpoint, from requests to text."""
