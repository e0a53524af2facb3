"""HTTP itself: limits, keys, errors, and streams of events."""
