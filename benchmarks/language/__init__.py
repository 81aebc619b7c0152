"""Language models as JAX users write them, their tasks, and how they are fine-tuned.

All of it knows nothing of radazo.
"""
