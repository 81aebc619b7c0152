"""Federated zeroth-order optimization: clients that step, a server that averages."""
