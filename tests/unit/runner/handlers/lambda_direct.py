"""AWS Lambda invoked directly: the event is the payload."""


def lambda_handler(event, context):
    return {"sum": event["a"] + event["b"], "hurry": context.get_remaining_time_in_millis() < 5001}
