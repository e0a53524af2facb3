"""Checkpoints on disk: read their headers, verify, convert, and write random ones."""
