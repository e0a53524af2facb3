"""Readers of the formats in which others publish the model, and the writer that turns each into a checkpoint of ours."""
