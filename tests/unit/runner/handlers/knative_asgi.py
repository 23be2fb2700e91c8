"""Knative func: an ASGI object that answers piece by piece, CloudEvents in and out."""


def new():
    return Function()


class Function:
    def __init__(self):
        self.started = False

    async def start(self, cfg):
        self.started = "PATH" in cfg

    def ready(self):
        return self.started, "started"

    async def handle(self, scope, receive, send):
        given = {name: value for name, value in scope["headers"] if name.startswith(b"ce-")}
        given[b"ce-type"] = b"echo." + given.get(b"ce-type", b"none")
        headers = [(b"content-type", b"text/plain"), *given.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            if message.get("body"):
                body = message["body"].upper()
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"."})
