"""OpenFaaS: the python3-http template."""


def handle(event, context):
    return {
        "statusCode": 200 if event.headers.get("X-Token") == "t" else 401,
        "headers": {"X-Host": context.hostname},
        "body": {"method": event.method, "bytes": len(event.body), "q": event.query.get("q")},
    }
