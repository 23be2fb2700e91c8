"""Parliament: Knative func's older Python middleware."""

from parliament import Context


def main(context: Context):
    if context.cloud_event is not None:
        return f"{context.cloud_event['type']} {context.cloud_event.data['n']}", 200
    return {"method": context.request.method, "q": context.request.args.get("q")}, 200
