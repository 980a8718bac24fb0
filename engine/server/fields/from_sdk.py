"""Prints, as JSON, the fields of every request type that the pinned SDKs know.

    pip install -r tests/requirements.txt
    python engine/server/fields/from_sdk.py > engine/server/fields/sdk.json

A test checks that each of them is in the tables beside this file.
"""

import json
import sys
import typing
from importlib.metadata import version

import typing_extensions
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

# What is no field of the body: paths and headers.
NOT_IN_THE_BODY = {"betas"}


def fields(*modules):
    """The fields of the request types that these modules define (and not those they import)."""
    names = set()
    for module in modules:
        for name, kind in vars(module).items():
            if typing_extensions.is_typeddict(kind) and is_request(name):
                names |= set(typing.get_type_hints(kind, include_extras=True))
    return sorted(names - NOT_IN_THE_BODY)


def is_request(name):
    """A request itself, and not something inside one."""
    endings = ("CreateParamsBase", "CreateParamsNonStreaming", "CreateParamsStreaming", "CreateParams", "TokensParams")
    return name.endswith(endings)


if __name__ == "__main__":
    json.dump(
        {
            "openai": version("openai"),
            "anthropic": version("anthropic"),
            "requests": {
                "chat": fields(chat_create_params),
                "completions": fields(completion_create_params),
                "embeddings": fields(embedding_create_params),
                "responses": fields(response_create_params),
                "messages": fields(message_create_params, beta_create_params),
                "count_tokens": fields(message_count_tokens_params, beta_count_tokens_params),
            },
        },
        sys.stdout,
        indent=2,
    )
    print()
