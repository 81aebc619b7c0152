"""Language models as JAX users write them, their tasks, and how they are fine-tuned.

`opt` and `checkpoints` know nothing of radazo.
"""
