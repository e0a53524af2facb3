"""HTTP: limits, keys, errors, and streams of events."""
