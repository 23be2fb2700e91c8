"""Which signature a module has: said explicitly, else by the names of its entry points, else refused.

Names decide only where they are those of the platform's own documentation. Whatever fits by the
number of its parameters alone is named in the refusal, never taken (rightsizer.md §7.2).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trimtab_workers.runner.loading import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

FUNCTIONS_FRAMEWORK: Final = "FunctionsFramework"
ASGI: Final = "ASGI"
PARLIAMENT: Final = "Parliament"
OPEN_WHISK: Final = "OpenWhisk"
LAMBDA: Final = "Lambda"
NUCLIO: Final = "Nuclio"
SEBS: Final = "SeBS"
OPEN_FAAS: Final = "OpenFaaS"


class Entry(NamedTuple):
    """An entry point of a platform: function name and the names of its parameters.

    Attributes:
        detected: Whether it counts without being asked for.
    """

    signature: str
    name: str
    parameters: tuple[str, ...]
    detected: bool = True

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.parameters)})"


ENTRIES: Final = (
    Entry(ASGI, "new", ()),
    Entry(ASGI, "handle", ("scope", "receive", "send")),
    Entry(ASGI, "app", ("scope", "receive", "send"), detected=False),
    Entry(PARLIAMENT, "main", ("context",)),
    Entry(OPEN_WHISK, "main", ("args",)),
    Entry(OPEN_WHISK, "main", ("params",)),
    Entry(LAMBDA, "handler", ("event", "context")),
    Entry(LAMBDA, "lambda_handler", ("event", "context")),
    Entry(NUCLIO, "handler", ("context", "event")),
    Entry(SEBS, "handler", ("event",)),
    Entry(OPEN_FAAS, "handle", ("event", "context")),
    Entry(OPEN_FAAS, "handle", ("req",)),
)
SIGNATURES: Final = (FUNCTIONS_FRAMEWORK, *dict.fromkeys(entry.signature for entry in ENTRIES))


class Chosen(NamedTuple):
    """A signature and the function that has it.

    Attributes:
        function: The function's name; a class or object for ASGI.
        parameters: How many it takes.
    """

    signature: str
    function: str
    parameters: int


class Parameters(NamedTuple):
    """What a function takes by position.

    Attributes:
        names: All of them.
        required: How many of these a caller must give.
    """

    names: tuple[str, ...]
    required: int

    def takes(self, entry: Entry) -> bool:
        """Return whether the entry's platform can call it."""
        return self.required <= len(entry.parameters) <= len(self.names)

    def named_as(self, entry: Entry) -> bool:
        """Return whether what the platform gives would reach parameters of the entry's names."""
        return self.takes(entry) and self.names[: len(entry.parameters)] == entry.parameters


def parameters_of(function: Any) -> Parameters | None:
    """Return what a function takes by position, None if that cannot be known."""
    code = getattr(function, "__code__", None)
    if code is None or hasattr(function, "__wrapped__"):
        import inspect  # noqa: PLC0415 - plain functions need it not, and it takes milliseconds

        try:
            known = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return None
        if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in known):
            return None
        positional = [
            parameter
            for parameter in known
            if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
        ]
        required = sum(parameter.default is parameter.empty for parameter in positional)
        return Parameters(tuple(parameter.name for parameter in positional), required)
    if code.co_flags & 0x04:  # *args
        return None
    names = tuple(code.co_varnames[: code.co_argcount])
    return Parameters(names, len(names) - len(function.__defaults__ or ()))


def choose(module: ModuleType, *, signature: str | None) -> Chosen:
    """Return the module's signature and function; functions-framework is not among those looked for.

    Args:
        module: The imported module.
        signature: What spec.signature says, if it does.

    Raises:
        RefusedError: None or several fit; names the candidates.
    """
    if signature is not None:
        return _explicit(module, signature)
    exact, near = _fitting(module)
    if len({entry.signature for entry in exact}) == 1:
        return _chosen(exact[0])
    where = f"Function module {module.__name__.rpartition('.')[2]} gives no signature and "
    if exact:
        named = " and ".join(f"{entry.signature} by {entry}" for entry in exact)
        raise RefusedError(
            "SignatureAmbiguous",
            f"{where}{len(exact)} fit: {named}. Set spec.signature to one of them.",
        )
    if near:
        named = " or ".join(f"{entry.signature}, whose entry is {entry}" for entry in near)
        raise RefusedError(
            "SignatureAmbiguous",
            f"{where}none fits by name alone; by the number of parameters it may be {named}. "
            "Set spec.signature, or name the parameters so.",
        )
    known = ", ".join(f"{entry.signature}: {entry}" for entry in ENTRIES if entry.detected)
    raise RefusedError(
        "SignatureUnknown",
        f"{where}has none of the known entry points ({known}). Define one of them, or decorate one with "
        "functions_framework.http.",
    )


def _explicit(module: ModuleType, signature: str) -> Chosen:
    if signature not in SIGNATURES:
        raise RefusedError(
            "SignatureUnknown",
            f"spec.signature is {signature!r}; use one of {', '.join(SIGNATURES)}.",
        )
    wanted = [entry for entry in ENTRIES if entry.signature == signature]
    for entry in wanted:
        function = getattr(module, entry.name, None)
        if callable(function):
            known = parameters_of(function)
            if known is None or known.takes(entry):
                return _chosen(entry)
    there = [
        f"{entry.name}({', '.join(known.names if known else ('…',))})"
        for entry in {entry.name: entry for entry in ENTRIES}.values()
        if callable(getattr(module, entry.name, None))
        for known in [parameters_of(getattr(module, entry.name))]
    ]
    raise RefusedError(
        "SignatureMismatch",
        f"spec.signature is {signature}, but function module {module.__name__.rpartition('.')[2]} has no "
        f"{' or '.join(map(str, wanted))}; it has {' and '.join(there) or 'no known entry point'}. "
        "Define it, or correct spec.signature.",
    )


def _fitting(module: ModuleType) -> tuple[list[Entry], list[Entry]]:
    """Return the entries that fit by all their names, and those that fit by their numbers alone.

    Where optional parameters leave open how many are given, as in `handler(event, context=None)`, names
    do not decide.
    """
    exact: list[Entry] = []
    near: list[Entry] = []
    for entry in ENTRIES:
        function = getattr(module, entry.name, None)
        if not entry.detected or not callable(function):
            continue
        known = parameters_of(function)
        if known is None:
            near.append(entry)
        elif known.takes(entry):
            open_ended = known.required < len(entry.parameters) or any(
                known.named_as(other)
                for other in ENTRIES
                if other.name == entry.name and other.signature != entry.signature
            )
            certain = known.named_as(entry) and not open_ended
            (exact if certain else near).append(entry)
    return exact, near


def _chosen(entry: Entry) -> Chosen:
    return Chosen(entry.signature, entry.name, len(entry.parameters))


def framework_target(
    text: str, *, module: str, signature: str | None, environment: Mapping[str, str]
) -> str | None:
    """Return the function that functions-framework is to serve, None if it is not meant.

    It is meant by spec.signature, by FUNCTION_TARGET, or by its decorator on one function. This reads
    the source and runs nothing: functions-framework imports the module itself, and once is enough.

    Args:
        text: The module's source.
        module: Its name, for the refusal.
        signature: What spec.signature says, if it does.
        environment: Holds FUNCTION_TARGET, if it is given.

    Raises:
        RefusedError: It is meant, but for no or several functions; names them.
    """
    if signature not in {None, FUNCTIONS_FRAMEWORK}:
        return None
    target = environment.get("FUNCTION_TARGET")
    if target:
        return target
    decorated = _decorated(text) if "functions_framework" in text else []
    if signature is None and not decorated:
        return None
    candidates = decorated or _public_functions(text)
    if len(candidates) == 1:
        return candidates[0]
    raise RefusedError(
        "SignatureAmbiguous",
        f"Function module {module} is for functions-framework, but "
        + (f"has {len(candidates)} functions: {', '.join(candidates)}. " if candidates else "has no function. ")
        + "Decorate exactly one with functions_framework.http or cloud_event, or set FUNCTION_TARGET.",
    )  # fmt: skip


def _decorated(text: str) -> list[str]:
    """Return the functions that carry a decorator of functions-framework."""
    import ast  # noqa: PLC0415 - only for modules that name functions-framework

    tree = _parsed(text)
    imported = {"functions_framework"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "functions_framework":
            imported |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Import):
            imported |= {
                name.asname for name in node.names
                if name.asname and name.name == "functions_framework"
            }  # fmt: skip
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            roots = [re.split(r"[.(]", ast.unparse(each))[0] for each in node.decorator_list]
            if imported & set(roots):
                found.append(node.name)
    return found


def _public_functions(text: str) -> list[str]:
    import ast  # noqa: PLC0415 - only where functions-framework is asked for

    body = _parsed(text).body
    return [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def _parsed(text: str) -> Any:
    import ast  # noqa: PLC0415 - only where functions-framework is named

    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])  # importing it will say what is wrong
