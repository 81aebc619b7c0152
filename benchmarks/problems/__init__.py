"""Functions to minimize; no module in here imports radazo."""
