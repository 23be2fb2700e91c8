"""OpenFaaS: the classic python3 template."""


def handle(req):
    return req.upper()
