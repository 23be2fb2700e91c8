"""One module per signature: how its platform calls a function, and what it does with what comes back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from trimtab_workers.runner import signatures

if TYPE_CHECKING:
    from trimtab_workers.runner.exchange import Shim
    from trimtab_workers.runner.signatures import Chosen

_MODULES: Final = {
    signatures.LAMBDA: "aws_lambda",
    signatures.NUCLIO: "nuclio",
    signatures.OPEN_FAAS: "openfaas",
    signatures.OPEN_WHISK: "openwhisk",
    signatures.PARLIAMENT: "parliament",
    signatures.SEBS: "sebs",
}


def shim(chosen: Chosen, function: Any) -> Shim:
    """Return what answers a request by calling the function as its platform would."""
    # Each is imported alone: a start should not pay for seven others.
    module = import_module(f"{__name__}.{_MODULES[chosen.signature]}")
    made: Shim = module.make(function, parameters=chosen.parameters)
    return made
