"""Functions to minimize, and nothing about how: no module in here imports radazo."""
