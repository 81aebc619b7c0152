"""Experiments of the R-AdaZO paper with radazo, and measurements of its speed.

`python -m benchmarks --help` lists the commands. Budgets are counted in function
values. Results of several seeds are shown as the median with the range, never as the
best one. The modules in `problems` are plain functions that do not import radazo, so
that other optimizers run on them too.
"""
