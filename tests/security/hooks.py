"""For schemathesis: answers of a few tokens, by the model that is there. What it makes wrong on purpose stays wrong."""

import json
import os

import schemathesis


@schemathesis.hook
def before_call(context, case, **_):
    body = case.body
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = os.environ["POLDER_MODEL"]
    for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(limit), int) and not isinstance(body[limit], bool) and body[limit] > 3:
            body[limit] = 3
    if isinstance(body.get("n"), int) and body["n"] > 2 and body["n"] <= 128:
        body["n"] = 2
    path = case.operation.path
    # Nothing said of the length: an answer as long as the model likes.
    short = {"/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens", "/v1/responses": "max_output_tokens"}
    if path in short and body.get(short[path], None) is None and "max_completion_tokens" not in body:
        body[short[path]] = 3


@schemathesis.hook
def after_call(context, case, response):
    """What each operation answered, for `run` to count: one that only ever refused has not been tried."""
    with open(os.environ["POLDER_ANSWERS"], "a") as out:
        print(json.dumps([case.operation.label, response.status_code]), file=out)
