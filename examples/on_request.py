"""A workflow per HTTP request: each has a store of its own, and its exit state decides the answer.

The text of a request is checked, counted and shouted. A text that is blank ends in another exit state, which is
another status. The script serves on loopback, asks itself, and ends.

    curl --data 'Hello World From Cano' http://127.0.0.1:PORT/
"""

import json
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from canobatch import TaskContext, Workflow
from canobatch.models import Node, RouterTask


class S(Enum):
    """The states; the last two are answers."""

    CHECK = auto()
    COUNT = auto()
    SHOUT = auto()
    ANSWERED = auto()
    REFUSED = auto()


@dataclass(frozen=True)
class Request:
    """What a run is about."""

    text: str


class Check(RouterTask):
    """Is there anything to do?"""

    def route(self, ctx: TaskContext) -> S:
        return S.COUNT if ctx.params.text.strip() else S.REFUSED


class CountWords(Node):
    """Counts the words."""

    def prep(self, ctx: TaskContext) -> str:
        return str(ctx.params.text)

    def exec(self, value: str) -> int:
        return len(value.split())

    def post(self, ctx: TaskContext, result: int) -> S:
        ctx.store.put("words", result)
        return S.SHOUT


def shout(ctx: TaskContext) -> S:
    ctx.store.put("upper", ctx.params.text.upper())
    return S.ANSWERED


workflow = (
    Workflow("on-request", params=Request)
    .register_router(S.CHECK, Check())
    .register(S.COUNT, CountWords())
    .register(S.SHOUT, shout)
    .add_exit_states([S.ANSWERED, S.REFUSED])
)


def answer(text: str) -> tuple[int, dict[str, Any]]:
    """Run the workflow for one text; return status and body."""
    run = workflow.start(S.CHECK, params=Request(text))
    if run.wait() is S.REFUSED:
        return 400, {"error": "the text is blank"}
    return 200, {"words": run.store.get("words"), "upper": run.store.get("upper")}


class Handler(BaseHTTPRequestHandler):
    """POST a text, get JSON."""

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        status, body = answer(text)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
        """Say nothing."""


def ask(url: str, text: str) -> tuple[int, dict[str, Any]]:
    """Send one request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, text.encode()), timeout=30) as response:  # noqa: S310
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


texts = sys.argv[1:] or ["Hello World From Cano", "   ", *(f"request number {n}" for n in range(20))]
with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda text: ask(url, text), texts))
    server.shutdown()
    serving.join()

for text, (status, body) in list(zip(texts, answers, strict=True))[:3]:
    print(f"{text!r}: {status} {json.dumps(body)}")
statuses = [status for status, _ in answers]
print(f"{len(statuses)} requests: {statuses.count(200)} answered, {statuses.count(400)} refused")
