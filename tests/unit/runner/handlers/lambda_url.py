"""AWS Lambda behind a function URL."""

import base64
import json


def handler(event, context):
    http = event["requestContext"]["http"]
    body = event["body"] or ""
    if event["isBase64Encoded"]:
        return {
            "statusCode": 200,
            "headers": {"Content-Type": "image/png"},
            "body": base64.b64encode(base64.b64decode(body)[::-1]).decode(),
            "isBase64Encoded": True,
        }
    said = json.loads(body)
    return {
        "statusCode": 202,
        "headers": {"Content-Type": "application/json", "X-Method": http["method"]},
        "cookies": ["a=1", "b=2"],
        "body": json.dumps(
            {
                "path": event["rawPath"],
                "q": event["queryStringParameters"]["q"],
                "sum": said["a"] + said["b"],
                "name": context.function_name,
            }
        ),
    }
