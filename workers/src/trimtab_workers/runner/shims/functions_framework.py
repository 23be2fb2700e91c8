"""functions-framework: HTTP and CloudEvent functions, served by the framework's own Flask application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab_workers.runner.loading import RefusedError, Source, import_failed
from trimtab_workers.runner.shims import wsgi

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trimtab_workers.runner.exchange import Shim


def make(source: Source, *, target: str, environment: Mapping[str, str]) -> Shim:
    """Return the shim; the framework imports the module.

    Raises:
        RefusedError: The framework is not installed, or refuses the module or the function.
    """
    try:
        import functions_framework  # noqa: PLC0415 - only the runner's image has it
    except ImportError as error:
        raise RefusedError(
            "FrameworkMissing",
            f"Function {target} is for functions-framework, which is not installed. Use the runner's "
            "image, or pip install 'trimtab[runner]'.",
        ) from error
    kind = environment.get("FUNCTION_SIGNATURE_TYPE")
    try:
        application = functions_framework.create_app(target, str(source.file), kind)
    except (Exception, SystemExit) as error:
        raise import_failed(source, error) from error
    return lambda request: wsgi.call(application, request)
