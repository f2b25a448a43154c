"""Client of nspool: network namespaces that are ready before a function starts, or the plain network.

    with nspool.Client(owner="my-agent") as client:
        with client.run_with(start_function) as run:
            wait_for(run.result)

`client.py` is where to begin; `v1` holds the generated code of the whole contract.
"""

from .client import DEFAULT_ENDPOINT, Client
from .errors import CallerMistake, NspoolError, Refused, Unreachable
from .lease import Lease, LeaseState, Placement, PlainNetwork, Released, ReleaseOutcome
from .start import Started
from .watch import LostLease

__all__ = [
    "CallerMistake",
    "Client",
    "DEFAULT_ENDPOINT",
    "Lease",
    "LeaseState",
    "LostLease",
    "NspoolError",
    "Placement",
    "PlainNetwork",
    "Refused",
    "Released",
    "ReleaseOutcome",
    "Started",
    "Unreachable",
]
