"""What radazo does on the experiments of the R-AdaZO paper, and how fast it is.

`python -m benchmarks --help` lists the commands. Budgets are counted in function
values; several seeds are shown as their median with the range, never as the best one.
The modules in `problems` are plain functions that know nothing of radazo, so that other
optimizers run on them too.
"""
