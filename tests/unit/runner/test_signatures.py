"""Detection by names, explicit signatures, and refusals that name the candidates."""

from __future__ import annotations

import types

import pytest

from trimtab_workers.runner.loading import RefusedError
from trimtab_workers.runner.signatures import choose, framework_target


def module(source: str) -> types.ModuleType:
    made = types.ModuleType("main")
    exec(source, vars(made))
    return made


@pytest.mark.parametrize(
    ("source", "signature"),
    [
        ("def new(): ...", "ASGI"),
        ("class new: ...", "ASGI"),
        ("async def handle(scope, receive, send): ...", "ASGI"),
        ("def main(context): ...", "Parliament"),
        ("def main(args): ...", "OpenWhisk"),
        ("def main(params): ...", "OpenWhisk"),
        ("def handler(event, context): ...", "Lambda"),
        ("def lambda_handler(event, context): ...", "Lambda"),
        ("def handler(context, event): ...", "Nuclio"),
        ("def handler(event): ...", "SeBS"),
        ("def handle(event, context): ...", "OpenFaaS"),
        ("def handle(req): ...", "OpenFaaS"),
        ("def handler(event, context, retries=3): ...", "Lambda"),
        ("def main(): ...\ndef handler(event): ...", "SeBS"),
        ("def main(args=None): ...\ndef handler(event): ...", "SeBS"),
        ("def handler(event, context, **rest): ...", "Lambda"),
    ],
)
def test_the_names_of_entry_and_parameters_tell_the_signature(source, signature) -> None:
    """Each platform's own names are enough; optional parameters and a `main()` without any do not count."""
    assert choose(module(source), signature=None).signature == signature


def test_a_decorated_handler_is_read_through_its_wrapper() -> None:
    """functools.wraps keeps the names, so a decorated handler is detected as the bare one is."""
    source = (
        "import functools\n"
        "def traced(f):\n"
        "    @functools.wraps(f)\n"
        "    def wrapper(*args): return f(*args)\n"
        "    return wrapper\n"
        "@traced\ndef handler(context, event, **rest): ..."
    )
    assert choose(module(source), signature=None).signature == "Nuclio"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("def main(x): ...", ["Parliament", "OpenWhisk", "main(context)", "main(args)"]),
        ("def handler(a, b): ...", ["Lambda", "Nuclio"]),
        ("def handler(*a): ...", ["Lambda", "Nuclio", "SeBS"]),
        ("def handle(a, b): ...", ["OpenFaaS"]),
        ("def handler(event, context=None): ...", ["SeBS", "Lambda"]),
        ("def main(args={}): ...", ["OpenWhisk"]),
        (
            "def main(args): ...\ndef handler(event): ...",
            ["OpenWhisk by main(args)", "SeBS by handler(event)"],
        ),
    ],
)
def test_what_could_be_several_is_refused_with_the_candidates(source, named) -> None:
    """Nothing is guessed: the refusal names every signature that the module may mean, and the remedy."""
    with pytest.raises(RefusedError) as refused:
        choose(module(source), signature=None)
    assert refused.value.reason == "SignatureAmbiguous"
    for each in (*named, "Set spec.signature"):
        assert each in str(refused.value)


def test_a_module_without_an_entry_point_is_told_the_known_ones() -> None:
    """The refusal lists what may be defined."""
    with pytest.raises(RefusedError, match=r"Nuclio: handler\(context, event\)") as refused:
        choose(module("def run(x): ..."), signature=None)
    assert refused.value.reason == "SignatureUnknown"


def test_an_explicit_signature_wins_over_the_names() -> None:
    """`handler(event, context)` is Nuclio's if that is what is said, and ASGI's `app` is found only so."""
    swapped = module("def handler(event, context): ...")
    assert choose(swapped, signature="Nuclio").signature == "Nuclio"
    app = module("async def app(scope, receive, send): ...")
    assert choose(app, signature="ASGI").function == "app"
    with pytest.raises(RefusedError):
        choose(app, signature=None)


@pytest.mark.parametrize(
    ("source", "signature", "parameters"),
    [
        ("def handler(event, context=None): ...", "Lambda", 2),
        ("def handler(event, context=None): ...", "SeBS", 1),
        ("def main(args={}): ...", "OpenWhisk", 1),
        ("def handle(event, context=None): ...", "OpenFaaS", 2),
    ],
)
def test_an_explicit_signature_may_fill_optional_parameters(source, signature, parameters) -> None:
    """A function fits that can be called with as many values as its platform gives."""
    chosen = choose(module(source), signature=signature)
    assert (chosen.signature, chosen.parameters) == (signature, parameters)


def test_an_explicit_signature_that_does_not_fit_is_refused() -> None:
    """The refusal says what the signature needs and what the module has."""
    with pytest.raises(RefusedError, match=r"no main\(args\).*it has handler\(event\)"):
        choose(module("def handler(event): ..."), signature="OpenWhisk")
    with pytest.raises(RefusedError, match="'Flask'; use one of FunctionsFramework"):
        choose(module("def handler(event): ..."), signature="Flask")


def target(text: str, *, signature: str | None = None, **environment: str) -> str | None:
    return framework_target(text, module="main", signature=signature, environment=environment)


@pytest.mark.parametrize(
    "text",
    [
        "import functions_framework\n@functions_framework.http\ndef f(request): ...",
        "from functions_framework import cloud_event as ce\n@ce\ndef f(event): ...",
        "import functions_framework as ff\n@ff.typed(int)\ndef f(n): ...\ndef g(): ...",
    ],
)
def test_one_decorated_function_is_the_frameworks(text) -> None:
    """The decorator is found under any name it was imported by, and the module is not run for it."""
    assert target(text) == "f"
    assert target(text, signature="Lambda") is None


def test_the_framework_serves_what_the_environment_names() -> None:
    """FUNCTION_TARGET is enough, whatever the names say."""
    assert target("def handler(event): ...", FUNCTION_TARGET="handler") == "handler"
    assert target("def handler(event): ...") is None


def test_several_functions_for_the_framework_are_refused() -> None:
    """Two decorated functions, or two plain ones where the framework is asked for, are named."""
    two = "import functions_framework\n" + "".join(
        f"@functions_framework.http\ndef {name}(request): ...\n" for name in ("a", "b")
    )
    with pytest.raises(RefusedError, match=r"2 functions: a, b.*FUNCTION_TARGET"):
        target(two)
    with pytest.raises(RefusedError, match="2 functions: c, d"):
        target("def c(r): ...\ndef d(r): ...", signature="FunctionsFramework")
    assert target("def c(r): ...\ndef _d(r): ...", signature="FunctionsFramework") == "c"
