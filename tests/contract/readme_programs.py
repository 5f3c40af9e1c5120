"""Commands and programs of protos/README.md, each language in a folder with only them and the contract.

    python -m tests.contract.readme_programs [LANGUAGE …]

runs them against a router: the program publishes a message and answers one as a worker. A language whose
tools are not installed is left out. Builds are kept in build/readme, so that only the first one is slow.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import grpc
from trunkline.v1.address_pb2 import CONVERSATION_KIND_PERSON, Address, Conversation
from trunkline.v1.broadcast_service_pb2 import BroadcastRequest
from trunkline.v1.broadcast_service_pb2_grpc import BroadcastServiceStub
from trunkline.v1.history_service_pb2 import ListMessagesRequest
from trunkline.v1.history_service_pb2_grpc import HistoryServiceStub
from trunkline.v1.message_pb2 import ROLE_USER, Author, Part, TextPart

from tests.support.node import newest_node
from tests.support.patience import patient
from tests.support.processes import ROOT, Process, router_process

#: Languages with the program that each needs.
TOOLS = {"Python": sys.executable, "Go": "go", "TypeScript": "npm", "Java": "mvn", "Rust": "cargo"}

#: The address of a router in the README.
ROUTER = "127.0.0.1:50051"

_README = ROOT / "protos" / "README.md"


class Section(NamedTuple):
    """The blocks of one section of the README."""

    commands: list[str]
    #: Content by name, for the blocks that have one.
    files: dict[str, str]


def section(title: str) -> Section:
    """Return the blocks of a section, the commands in order."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## )", _README.read_text(), re.MULTILINE | re.DOTALL)
    assert found, title
    commands, files = [], {}
    blocks = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    for language, name, text in blocks.findall(found[1]):
        if name:
            files[name] = text
        elif language == "sh" and not text.startswith("pip install"):
            commands.append(text)
    return Section(commands, files)


def build(title: str, folder: Path, router: str = ROUTER) -> str:
    """Write a section's files beside a copy of protos/, and run the commands; return the last one instead."""
    shutil.rmtree(folder / "protos", ignore_errors=True)
    shutil.copytree(ROOT / "protos", folder / "protos", ignore=shutil.ignore_patterns("__pycache__"))
    commands, files = section(title)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace(ROUTER, router))
    *steps, start = "".join(commands).replace("\\\n", " ").splitlines()
    for step in steps:
        done = subprocess.run(
            ["sh", "-euc", step], cwd=folder, env=environ(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
    return start


def environ() -> dict[str, str]:
    """Return an environment with this interpreter as `python` and the newest installed Node as `node`."""
    folders = [str(Path(program).parent) for program in (sys.executable, newest_node()) if program]
    return {**os.environ, "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}


def check(title: str, folder: Path, router: str) -> str:
    """Run a section's program until it has answered a message; return the id of the one that it published."""
    command = build(title, folder, router)
    with Process(["sh", "-euc", command], environ(), title, folder) as program:
        message_id, seq = program.line(timeout_s=patient(600)).split()
        assert seq == "1"
        program.line(lambda line: line == "attached")
        text = f"hello {title} {time.time_ns()}"
        conversation = Conversation(kind=CONVERSATION_KIND_PERSON, id=title)
        address = Address(tenant="demo", agent="parrot", platform="web", conversation=conversation)
        with grpc.insecure_channel(router) as channel:
            BroadcastServiceStub(channel).Broadcast(
                BroadcastRequest(
                    address=address, author=Author(role=ROLE_USER), parts=[Part(text=TextPart(text=text))]
                ),
                timeout=patient(10),
            )
            until = time.monotonic() + patient(20)
            while time.monotonic() < until:
                request = ListMessagesRequest(address=address, limit=2)
                logged = HistoryServiceStub(channel).ListMessages(request, timeout=patient(10)).messages
                if [message.parts[0].text.text for message in logged] == [text, text]:
                    return message_id
                time.sleep(0.05)
    raise AssertionError(f"{title}: the message was not answered")


def main(languages: list[str]) -> None:
    """Check the named languages, or all."""
    for language in languages or TOOLS:
        if shutil.which(TOOLS[language]) is None:
            print(f"{language}: skipped, as {TOOLS[language]} is not installed", flush=True)
            continue
        folder = ROOT / "build" / "readme" / language.lower()
        folder.mkdir(parents=True, exist_ok=True)
        if language == "Go":
            (folder / "go.mod").unlink(missing_ok=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as data, router_process(Path(data)) as router:
            check(language, folder, router.address)
        print(f"{language}: passed in {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
