"""Readers of the formats in which others publish the model, and the writer that makes a checkpoint of each."""
