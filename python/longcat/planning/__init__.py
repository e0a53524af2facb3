"""Plans a run: the needs of a checkpoint, the cost of a step, and the fitness of the machine."""
