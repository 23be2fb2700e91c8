"""functions-framework without a decorator: the target is named by FUNCTION_TARGET; the answer is streamed."""

import flask


def report(request):
    def lines():
        for n in range(3):
            yield f"line {n} of {request.path}\n"

    return flask.Response(lines(), mimetype="text/plain")


def another(request):
    return "not this one"
