"""`lora-drop view DIR`: the report page in a browser on this machine, loaded again whenever a run arrives.

What is served comes from files that models have written, so little is served: two addresses, to this machine alone.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_eval_lora_drop.commands.options import command, natural
from lm_eval_lora_drop.errors import ArgumentError

_HOST = "127.0.0.1"
_OURS = frozenset({_HOST, "localhost"})
_READ = ("*.json", "*.jsonl")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="folders written by lm_eval --output_path; may still be empty",
    )
    parser.add_argument("--port", type=_port, default=0, help="port to listen on (default: a free one)")
    parser.add_argument(
        "--baseline", metavar="NAME", help="baseline, (part of) a system's name (default: the full adapter)"
    )
    parser.add_argument("--documents", type=natural, default=50, help="documents to show, per pair or K (default 50)")


def _port(text: str) -> int:
    if natural(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535, got {text}")
    return natural(text)


@command("view", "the report page in a browser, refreshed while runs arrive", _add_options)
def _view(args: argparse.Namespace) -> int:
    """Serves the report page on this machine only, until Ctrl-C. From another machine: ssh -L.

    lora-drop view out
    lora-drop view out/full out/auto --baseline boundary=full
    lora-drop view out --port 8000 --documents 200
    """
    server = Viewer(args.paths, port=args.port, baseline=args.baseline, documents=args.documents)
    print(f"{', '.join(map(str, args.paths))}: {server.url} (Ctrl-C ends it)", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


add_parser = _view.add_parser


class Viewer(ThreadingHTTPServer):
    """Serves the page of `paths` at `/`, and at `/state` a digest that changes when their files do; nothing else.

    Raises:
        ArgumentError: a path that does not exist, or a port that cannot be had.
    """

    daemon_threads = True

    def __init__(self, paths: list[Path], *, port: int = 0, baseline: str | None = None, documents: int = 50) -> None:
        if missing := [str(path) for path in paths if not path.exists()]:
            raise ArgumentError(f"{missing[0]} does not exist. Give the folder that is lm_eval's --output_path.")
        self._paths, self._baseline, self._documents = paths, baseline, documents
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None
        try:
            super().__init__((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ArgumentError(f"port {port} cannot be used ({error}). Leave --port out to get a free one.") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{_HOST}:{self.server_address[1]}/"

    def state(self) -> str:
        """A digest of the names, sizes and times of the files that a report reads."""
        found = []
        for path in self._paths:
            for file in [path] if path.is_file() else [one for kind in _READ for one in sorted(path.rglob(kind))]:
                try:
                    status = file.stat()
                except OSError:
                    continue  # gone since it was listed
                found.append(f"{file} {status.st_size} {status.st_mtime_ns}")
        return hashlib.sha256("\n".join(found).encode("utf-8", "surrogateescape")).hexdigest()

    def page(self) -> str:
        """The report as the files are now, or a page that says why there is none yet; made once for each state."""
        from lm_eval_lora_drop.show.report.page import render, write_report

        with self._lock:
            # Before reading: what arrives while the page is made gives another state, and so another page.
            state = self.state()
            if self._made is None or self._made[0] != state:
                try:
                    text, _ = write_report(self._paths, baseline=self._baseline, documents=self._documents, state=state)
                except ArgumentError as error:
                    text = render("waiting.html.j2", state=state, title="No report yet", message=str(error))
                self._made = state, text
            return self._made[1]


class _Handler(BaseHTTPRequestHandler):
    server: Viewer

    def do_GET(self) -> None:
        # A page elsewhere whose name was made to point here (DNS rebinding) comes under its own name.
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in _OURS:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
        elif self.path == "/":
            self._send("text/html", self.server.page())
        elif self.path == "/state":
            self._send("text/plain", self.server.state())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, kind: str, text: str) -> None:
        body = text.encode("utf-8", "surrogateescape")
        self.send_response(HTTPStatus.OK)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the signature of http.server
        """Say nothing: the page asks every two seconds."""
