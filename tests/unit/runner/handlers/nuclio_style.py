"""Nuclio, with state that is made once."""


def init_context(context):
    context.user_data.calls = 0


async def handler(context, event):
    context.user_data.calls += 1
    context.logger.info_with("called", calls=context.user_data.calls)
    return context.Response(
        body={"twice": event.body["n"] * 2, "calls": context.user_data.calls, "path": event.path},
        headers={"X-Trigger": event.trigger.kind},
        content_type="application/json",
        status_code=200 if event.headers["Content-Type"] == "application/json" else 415,
    )
