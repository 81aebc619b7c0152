"""Federated optimization: clients that step, a server that averages."""

from radazo.federated.corrections import Correction, fed_avg, fed_prox, fzoos, scaffold
from radazo.federated.federated import (
    Federated,
    FederatedInfo,
    FederatedState,
    federated,
)

__all__ = ["Correction", "Federated", "FederatedInfo", "FederatedState"]
__all__ += ["fed_avg", "fed_prox", "federated", "fzoos", "scaffold"]
