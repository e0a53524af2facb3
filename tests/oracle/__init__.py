"""Comparisons with transformers; they need torch and are marked `oracle`."""
