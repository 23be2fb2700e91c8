"""functions-framework: an HTTP function."""

import flask
import functions_framework


@functions_framework.http
def greet(request: flask.Request):
    name = request.args.get("name") or request.get_json()["name"]
    return flask.jsonify(greeting=f"Hello, {name}!"), 201, {"X-Style": "functions-framework"}
