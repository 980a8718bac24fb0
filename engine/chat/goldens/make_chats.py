"""Remakes tools.json: what Python's Jinja, set up as transformers does, makes of templates/*.jinja.

Usage: python make_chats.py    (with jinja2 installed)

The templates were written for this purpose, each in the style of a family. Calls come in the form
that the template wants; Polder gets them as OpenAI's clients send them.
"""

import json
import pathlib
import time

from jinja2.exceptions import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather. Says \"rain\" & <snow>.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city_name": {"type": "string", "description": " Straße & Ort "},
                    "days": {"type": "integer", "enum": [1, 7]},
                    "at": {"type": "object", "properties": {"lat": {"type": "number"}}},
                },
                "required": ["city_name"],
            },
        },
    },
    {"type": "function", "function": {"name": "clock", "description": "x", "parameters": {"type": "object", "properties": {}}}},
]


def call(id, name, **arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " How is it in Köln? "}
ONE = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [call("abcdef123", "get_weather", city_name="Köln \"1\"", days=7, at={"lat": 50.9})]},
    {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather", "content": "{\"rain\": true}"},
]
TWO = [
    SYSTEM,
    USER,
    {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Two things.\n",
        "tool_calls": [call("abcdef123", "clock"), call("abcdef124", "get_weather", city_name="a\nb")],
    },
    {"role": "tool", "tool_call_id": "abcdef123", "content": "12"},
    {"role": "tool", "tool_call_id": "abcdef124", "content": "Rain"},
    {"role": "assistant", "content": "<think>\nold\n</think>\n\nIt rains."},
    {"role": "user", "content": "Thanks"},
]
CHATS = [
    {"messages": [USER]},
    {"messages": [SYSTEM, USER], "tools": TOOLS},
    {"messages": [USER], "enable_thinking": False},
    {"messages": ONE, "tools": TOOLS},
    {"messages": TWO, "tools": TOOLS},
    {"messages": [USER, SYSTEM]},
]


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise TemplateError(message)


def form(name, messages):
    """As deepseek.jinja wants calls; the others want them as they are."""
    if name != "deepseek":
        return messages
    messages = json.loads(json.dumps(messages))
    for message in messages:
        for one in message.get("tool_calls", []):
            one["function"]["arguments"] = json.dumps(one["function"]["arguments"], ensure_ascii=False)
        if "tool_calls" in message and message["content"] == "":
            message["content"] = None
    return messages


def main():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: time.strftime(format)
    goldens = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = environment.from_string(path.read_text())
        for chat in CHATS:
            golden = {"template": path.stem, **chat}
            given = {**chat, "messages": form(path.stem, chat["messages"])}
            try:
                golden["text"] = template.render(bos_token="<s>", eos_token="</s>", add_generation_prompt=True, **given)
            except TemplateError as error:
                golden["refused"] = str(error)
            goldens.append(golden)
    (HERE / "tools.json").write_text(json.dumps(goldens, ensure_ascii=False, indent=1) + "\n")


main()
