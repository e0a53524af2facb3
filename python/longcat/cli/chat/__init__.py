"""The parts of `longcat chat`: the conversation, reading turns, showing completions."""
