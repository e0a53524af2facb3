"""Before a run: what a checkpoint needs, what a step costs, whether the machine is fit."""
