"""Language models in plain JAX, their tasks, and the problems of fine-tuning them.

No module in here imports radazo.
"""
