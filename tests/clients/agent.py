"""A LangChain agent calls a tool and hears what it gave: by each of the box's three ways to chat."""

import os
import subprocess

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

url, key, model = os.environ["URL"], os.environ["KEY"], os.environ["MODEL"]


@tool
def Bash(command: str, description: str = "") -> str:
    """Runs a command."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


for chat in (
    ChatOpenAI(model=model, base_url=url + "/v1", api_key=key),
    ChatOpenAI(model=model, base_url=url + "/v1", api_key=key, use_responses_api=True),
    ChatAnthropic(model=model, base_url=url, api_key=key, max_tokens=200),
):
    agent = create_agent(chat, [Bash])
    last = agent.invoke({"messages": [{"role": "user", "content": "Write the word into said.txt."}]})["messages"][-1]
    assert last.text == "The word is written.", last
    assert open("said.txt").read() == "said by the box\n"
    os.remove("said.txt")
    words = "".join(str(chunk.text) for chunk in chat.stream("Write the file yourself."))
    assert "```\nsaid by the box\n```" in words, words
