"""OpenWhisk: a web action."""


def main(args):
    if "name" not in args:
        return {"error": {"statusCode": 422, "body": {"reason": "no name"}}}
    if args["__ow_method"] == "get":
        return {"body": f"<h1>{args['name']}</h1>"}
    return {"greeting": f"Hello, {args['name']}!", "agent": args["__ow_headers"]["x-agent"]}
