"""Requests that chat front ends make on their own: for a title, for tags, for follow-up questions.

They go to the same model as what people say, as texts that the front ends do not mark. Open WebUI and
LibreChat use these templates unless they are configured otherwise.
"""

from __future__ import annotations

from trunkline_edge.dialects.openai.chat_request import ChatRequest

#: Header that names the task of a request, for front ends that can send one: in Open WebUI, the connection's
#: own header `X-Background-Task: {{TASK}}`.
HEADER = "x-background-task"

#: Open WebUI: titles, tags, follow-ups, search queries, image prompts, completions of what is being typed.
_OPEN_WEBUI = ("### Task:", "<chat_history>")

_LIBRECHAT = (
    "Provide a concise, 5-word-or-less title for the conversation, using title case conventions.",
    "Analyze this conversation and provide:\n1. The detected language of the conversation\n2. A concise ",
)


def is_background_task(request: ChatRequest, task: str) -> bool:
    """Whether a front end made the request on its own; `task` is the value of HEADER."""
    if task.strip():
        return True
    # A person's request continues a conversation, or is one message without such a frame.
    if any(message["role"] in ("user", "assistant") for message in request.earlier):
        return False
    text = request.text.lstrip()
    begin, history = _OPEN_WEBUI
    return text.startswith(_LIBRECHAT) or (text.startswith(begin) and history in text)
