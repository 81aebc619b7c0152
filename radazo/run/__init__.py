"""Run an optimizer: compiled loops, checkpoints, `ask` and `tell`."""
