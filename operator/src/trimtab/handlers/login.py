"""How kopf reaches the API server: the same way as `kube`, read again at every login."""

from __future__ import annotations

from typing import Any

import kopf

from trimtab.kube.client import configuration


async def login(**_: Any) -> kopf.ConnectionInfo:
    """Return fresh credentials: kopf asks again after a 401, and a token may have been rotated."""
    config = await configuration()
    scheme, token = None, None
    bearer = config.api_key.get("BearerToken") or config.api_key.get("authorization")
    if bearer:
        scheme, _space, token = bearer.rpartition(" ")
    return kopf.ConnectionInfo(
        server=config.host,
        ca_path=config.ssl_ca_cert,
        ca_data=None if config.ssl_ca_cert else config.ca_cert_data,
        insecure=not config.verify_ssl,
        scheme=(scheme or "Bearer").capitalize() if token else None,
        token=token,
        certificate_path=config.cert_file,
        private_key_path=config.key_file,
    )
