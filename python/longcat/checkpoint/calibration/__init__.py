"""Rounds int4 matrices for the inputs that a text makes: its token ids, moments of the inputs, the rounding."""
