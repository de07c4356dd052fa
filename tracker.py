"""A fake video-translation service that measures how well its clients poll.

POST /create_job        {"job_id": "<uuid4>"}; ?duration=3&outcome=error&faults=503,drop chooses its fate
GET /status/<job_id>    {"status": "pending"}, then "in_progress", then "completed",
                        or {"status": "error", "error_message": "<why>"}

`python tracker.py` serves it to a client in any language. In a test, a 30-second job takes no time:

>>> import json, tracker
>>> from urllib.request import urlopen
>>> clock = tracker.ManualClock()
>>> with tracker.create_server(duration=(30, 30), error_rate=0, clock=clock) as server:
...     job_id = json.load(urlopen(server.url + "/create_job", b""))["job_id"]
...     clock.advance(32)
...     json.load(urlopen(f"{server.url}/status/{job_id}"))
{'status': 'completed'}
>>> server.jobs[job_id].delay      # the end was noticed 2 seconds late
2.0

It is a test double, not for the internet, and an example of a small threaded HTTP server.
"""

import argparse
import json
import logging
import os
import random
import re
import signal
import socket
import socketserver
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qs

__all__ = ["ManualClock", "TrackerServer", "TranslationJob", "TranslationService", "create_server"]

Clock = Callable[[], float]  # returns seconds
Fault = int | str  # what a poll gets instead of an answer: an HTTP status from 400 to 599, or "drop"
Faults = Sequence[Fault]  # in turn; or a text like "503,drop"
log = logging.getLogger("tracker")


class _Refusal(ValueError):
    """Why a value or a request is not taken, in one sentence; over HTTP, the answer has this status."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def _require(fulfilled: Any, name: str, given: object, accepted: str, status: int = 400) -> Any:
    """Return what is fulfilled, or raise the _Refusal that says what was given and what is accepted."""
    if not fulfilled:
        raise _Refusal(f"{name} must be {accepted}, not {given!r:.80}.", status)
    return fulfilled


# --- The job and the clock: what time makes of a job, and what time is ------------------------------------

FINAL = ("completed", "error")  # what a job may end in, and never leaves
ERROR_MESSAGES = ("The audio track could not be decoded.", "No speech was detected in the video.")


@dataclass(slots=True)
class TranslationJob:
    """One translation. Its end is drawn at creation, so that no poll changes it. A test may set any field."""

    job_id: str
    status: str = "pending"
    created_at: float = 0.0  # seconds on the service's clock
    updated_at: float = 0.0  # when a query last moved the status; at first, the same as created_at
    error_message: str | None = None
    duration: float = 0.0  # seconds
    outcome: str = "completed"  # the status to end in, "completed" or "error"
    faults: list[Fault] = field(default_factory=list)  # what the next status queries get instead of an answer
    requests: int = 0  # status queries so far, faulted ones too
    polls: list[float] = field(default_factory=list)  # seconds after creation, of the first 1,000 of them
    total_time: float | None = None  # seconds from creation until a query saw the end
    delay: float | None = None  # seconds for which the end went unnoticed

    def update_status(self, now: float) -> None:
        """Move the status on to what it is at `now`: pending for the first fifth. It never moves back."""
        elapsed = round(now - self.created_at, 6)  # or ten sleeps of 0.1 would make 0.9999999999999999
        if self.status not in FINAL and elapsed >= self.duration:
            self.status, self.updated_at = self.outcome, now
            self.total_time, self.delay = elapsed, round(elapsed - self.duration, 6)
        elif self.status == "pending" and elapsed >= round(self.duration / 5, 6):
            self.status, self.updated_at = "in_progress", now
        if self.status == "error" and self.error_message is None:  # drawn by the id: no other job changes it
            self.error_message = random.Random(self.job_id).choice(ERROR_MESSAGES)


@dataclass
class ManualClock:
    """A clock that stands still until `advance` is called; a client under test sleeps with its `sleep`."""

    now: float = 0.0  # seconds

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds`; ValueError if that is less than 0, as for `time.sleep`."""
        _require(0 <= seconds < float("inf"), "seconds", seconds, "a finite number, 0 or more")
        self.now += seconds

    sleep = advance


def _wall_clock(wall: Clock = time.time, monotonic: Clock = time.monotonic) -> Clock:
    """Return a clock that reads like a Unix timestamp but does not jump when the system's clock is set."""
    anchor = wall() - monotonic()  # both are bound at import: freezegun and the like replace them later
    return lambda: anchor + monotonic()


# --- The service: all jobs, one lock, one log -------------------------------------------------------------

def _list_of(faults: Faults) -> list[Fault]:
    """Return the faults as a new list; ValueError if one is no fault."""
    if isinstance(faults, str):
        faults = [int(fault) if re.fullmatch("[0-9]{3}", fault) else fault for fault in faults.split(",")]
    copy = list(faults)
    fit = all(fault == "drop" or fault in range(400, 600) for fault in copy)
    _require(fit, "faults", copy, "a list of HTTP statuses from 400 to 599, or drop")
    return copy


@dataclass(kw_only=True)
class TranslationService:
    """Jobs, created and polled by any number of threads; ValueError if an option is out of range."""

    duration: tuple[float, float] = (5.0, 15.0)  # seconds, low and high: a job's is drawn from between
    error_rate: float = 0.1  # the chance, from 0 to 1, that a job ends as "error"
    faults: Faults = ()  # what the first polls of each job get instead of an answer, in turn
    fault_rate: float = 0.0  # the chance, from 0 to 1, that a poll gets a 503 instead of an answer
    seed: int | None = None  # the same seed gives the same ids, durations, outcomes and error messages
    clock: Clock = field(default_factory=_wall_clock)  # read once per created job and once per poll

    def __post_init__(self) -> None:
        low, high = self.duration  # a pair of seconds
        _require(0 <= low <= high, "duration", self.duration, "a pair of seconds, 0 <= low <= high")
        for name, rate in ("error_rate", self.error_rate), ("fault_rate", self.fault_rate):
            _require(0 <= rate <= 1, name, rate, "a number from 0 to 1")
        self.faults = _list_of(self.faults)
        self.jobs: dict[str, TranslationJob] = {}
        self._dice = random.Random(self.seed)
        self._fault_dice = random.Random(self.seed)  # its own, so that polling changes no later job
        self._lock = Lock()  # for a poll's count, status and log lines as one; a real service has a database

    def create_job(self, *, duration: float | None = None, outcome: str | None = None,
                   faults: Faults | None = None) -> TranslationJob:
        """Create a job with the fate that is given, or else drawn; ValueError if a value is out of range."""
        _require(duration is None or duration >= 0, "duration", duration, "0 seconds or more, or inf")
        _require(outcome is None or outcome in FINAL, "outcome", outcome, "completed or error")
        faults = _list_of(self.faults if faults is None else faults)
        with self._lock:
            # Everything is drawn, used or not, so that a chosen fate changes no other job's.
            job_id = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
            low, high = self.duration
            drawn = low if low == high else self._dice.uniform(low, high)  # inf - inf is no number
            fails = self._dice.random() < self.error_rate
            duration = round(drawn if duration is None else duration, 6)
            outcome = outcome or ("error" if fails else "completed")
            now = self.clock()
            job = self.jobs[job_id] = TranslationJob(job_id, created_at=now, updated_at=now,
                                                     duration=duration, outcome=outcome, faults=faults)
            if len(self.jobs) > 100_000:  # 50 MB and more; a real service forgets too, by age
                del self.jobs[next(iter(self.jobs))]
            log.info("Job %s created", job_id)
        return job

    def query_status(self, job_id: str) -> tuple[str, str | None, Fault | None]:
        """Record a poll; return status, error message and fault. KeyError if there is no such job."""
        with self._lock:
            job, now = self.jobs[job_id], self.clock()
            job.requests += 1
            if len(job.polls) < 1_000:  # a client that never stops must not fill the memory
                job.polls.append(round(now - job.created_at, 6))
            if job.faults:
                return job.status, job.error_message, job.faults.pop(0)
            if self._fault_dice.random() < self.fault_rate:
                return job.status, job.error_message, 503
            before = job.status
            job.update_status(now)
            if job.status != before:
                log.info("Job %s: %s -> %s", job_id, before, job.status)
                if job.status in FINAL:
                    line = "Translation metrics - Requests: %d, Status: %s, Total time: %.2fs, Delay: %.2fs"
                    log.info(line, job.requests, job.status, job.total_time, job.delay)
            return job.status, job.error_message, None


# --- One connection: read a request to its end, find its answer, write it, and again ----------------------

SIZE = 65_536  # bytes of a line, as in the standard library, and of a body in memory at a time
# Unlike the base class, we refuse what a proxy before us might read in another way: RFC 9112, section 11.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, section 5.6.2
_REQUEST_LINE = re.compile(rf"({_TOKEN}) (?:https?://[!$-.0->@-~]+)?(/[!-~\x80-\xff]*|\*) (HTTP/\d\.\d)")
_HEADER = re.compile(rf"({_TOKEN}):([\t -~\x80-\xff]*)")  # RFC 9112, section 5
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.~_!$&'()*+;=%-]+)(:[0-9]*)?")  # RFC 9110, section 7.2
_CHUNK = re.compile(r"([0-9A-Fa-f]{1,15})[ \t]*(;[\t -~\x80-\xff]*)?")  # RFC 9112, section 7.1
_SECONDS = re.compile(r"[0-9]+|[0-9]*\.[0-9]+|inf")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_ENDPOINTS = ("POST /create_job", "GET /status/<job_id>")
_FAULT_HEADERS = {  # RFC 9110 requires them; Java's client, for one, raises an IOException without the first
    401: {"WWW-Authenticate": 'Bearer realm="tracker"'},
    405: {"Allow": "GET, HEAD, OPTIONS"},
    407: {"Proxy-Authenticate": 'Bearer realm="tracker"'},
    426: {"Upgrade": "HTTP/2.0", "Connection": "Upgrade"},
}


def _parse_fate(query: str) -> dict[str, Any]:
    """Return the arguments of create_job in a query like "duration=3&outcome=error&faults=503,drop"."""
    fate: dict[str, Any] = {name: ",".join(texts) for name, texts in parse_qs(query, True).items()}
    for name, text in fate.items():
        _require(name in ("duration", "outcome", "faults"), "Parameter", name, "duration, outcome or faults")
        if name == "duration":
            fate[name] = float(_require(_SECONDS.fullmatch(text), name, text, "0 seconds or more, or inf")[0])
    return fate


class _Connection(BaseHTTPRequestHandler):
    """One connection, in a thread of its own, until it closes:

    - when its client closes it, asks for that (Connection: close) or speaks HTTP/1.0;
    - after a refusal of a request that was not read to its end: nobody knows where the next one begins;
    - instead of an answer, for the fault "drop";
    - after 75 seconds in which the client sends nothing, or does not read its answer;
    - when the server stops: at once, or after the answer, but for a refusal, that is on its way.
    """

    server: "TrackerServer"  # the next section
    timeout = 75  # seconds; at 30 a connection would close just as a poller with that interval writes

    def handle(self) -> None:
        """Read a request, find its answer, write it, and again; then the server closes the connection."""
        self.close_connection = False
        with suppress(OSError):  # the client hung up, was silent or asked for a drop; or the server stops
            while not self.close_connection:
                self.close_connection = True  # until the request has been read to its end
                self.requestline = self.command = ""  # until they are read
                self._headers: dict[str, str] = {}
                try:
                    self.server.note(self.connection, is_reading=True)
                    self._read_request()
                    self.server.note(self.connection, is_reading=False)
                    answer = self._find_answer()
                except _Refusal as refusal:
                    answer = refusal.status, str(refusal), {}
                except OSError:
                    raise
                except Exception:
                    log.exception("A bug met %r", self.requestline)
                    answer = 500, "The service has a bug: its log has the traceback.", {}
                self._write(*answer)

    def _read_request(self) -> None:
        """Read a request to its end: its head into attributes, its body into nothing."""
        while not self.requestline:  # RFC 9112, section 2.2: an empty line before a request is ignored
            self.requestline = line = self._read_line()
        found = _require(_REQUEST_LINE.fullmatch(line), "A request line", line, "'METHOD /path HTTP/1.1'")
        self.command, self.path, version = found.groups()
        _require(version in ("HTTP/1.1", "HTTP/1.0"), "The version", version, "HTTP/1.1 or HTTP/1.0", 505)
        _require(self.command in _METHODS, "A method", self.command, "GET, HEAD, POST or OPTIONS", 501)
        headers = self._headers
        while line := self._read_line():
            found = _require(_HEADER.fullmatch(line), "A header", line, "a printable 'Name: value'")
            name, value = found[1].lower(), found[2].strip(" \t")
            # Two of a name are joined (RFC 9110, section 5.3), so neither two Hosts nor two lengths pass.
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        host = headers.get("host", "" if version == "HTTP/1.1" else "none")  # HTTP/1.0 needs none
        _require(_HOST.fullmatch(host), "Host", host, "one host name, perhaps with a port")
        if version == "HTTP/1.1" and headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # curl waits for it before a large body
        match version, headers.get("content-length"), headers.get("transfer-encoding"):  # needs Python 3.10
            case _, str(length), None if re.fullmatch("[0-9]{1,18}", length):  # str(): if there is one
                self._skip(int(length))
            case "HTTP/1.1", None, str(coding) if coding.lower() == "chunked":  # RFC 9112, section 6
                size = -1  # not known yet
                while size:  # section 7.1: a line with the size, so many bytes, a line end; at last, size 0
                    line = self._read_line()
                    found = _require(_CHUNK.fullmatch(line), "A chunk", line, "begun with its size")
                    size = int(found[1], 16)
                    self._skip(size)
                    while line := self._read_line():  # after the last chunk, these are trailers
                        fit = not size and _HEADER.fullmatch(line)
                        _require(fit, "A chunk", line, "ended where its size says, but for trailers at last")
            case _, *framing:  # no body, if neither is there
                _require(framing == [None, None], "A body", framing, "of one length or, in HTTP/1.1, chunked")
        self.close_connection = version == "HTTP/1.0" or "close" in headers.get("connection", "").lower()

    def _read_line(self) -> str:
        """Return the next line of a request, without its end."""
        line = self.rfile.readline(SIZE + 1)
        _require(len(line) <= SIZE, "A line", line, "65,536 bytes at most", 431 if self.requestline else 414)
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError("the client hung up")
        return line.decode("latin-1").removesuffix("\n").removesuffix("\r")

    def _skip(self, size: int) -> None:
        """Read so many bytes of a body and forget them, or the next request would begin in its midst."""
        while size:
            piece = self.rfile.read(min(size, SIZE))
            if not piece:
                raise ConnectionAbortedError("the client hung up")
            size -= len(piece)

    def _find_answer(self) -> tuple[int, Any, Mapping[str, str]]:
        """Return status, body and headers; a body is JSON, the sentence of an error, or None."""
        path, _, query = self.path.partition("?")
        service, retry_after = self.server.service, self.server.retry_headers
        allow = "POST, OPTIONS" if path == "/create_job" else "GET, HEAD, OPTIONS"
        match self.command, path.split("/"):
            case "POST", ["", "create_job"]:
                job_id = service.create_job(**_parse_fate(query)).job_id
                return 200, {"job_id": job_id}, {"Location": f"/status/{job_id}", **retry_after}
            case "GET" | "HEAD", ["", "status", job_id] if job_id.lower() in service.jobs:
                if self.command == "HEAD":
                    return 200, None, {}  # no poll: its client cannot see the status
                status, error_message, fault = service.query_status(job_id.lower())
                if fault == "drop":
                    self.log_request()
                    raise ConnectionAbortedError("a drop was asked for")
                if fault:
                    headers = retry_after if fault in (429, 503) else _FAULT_HEADERS.get(int(fault), {})
                    return int(fault), f"This is a simulated {fault}: poll again.", headers
                if status == "error":
                    return 200, {"status": status, "error_message": error_message}, {}
                return 200, {"status": status}, {} if status in FINAL else retry_after
            case "GET" | "HEAD", ["", ""]:
                return 200, {"endpoints": _ENDPOINTS}, {}
            case "OPTIONS", _:  # what a browser may ask before a page on another port can poll
                wanted = self._headers.get("access-control-request-headers", "*")
                cors = {"Access-Control-Allow-Methods": allow, "Access-Control-Allow-Headers": wanted}
                return 204, None, {"Allow": allow, **cors}
            case method, ["", "create_job"] | ["", "status", _] | ["", ""] if method not in allow:
                return 405, f"{path!r:.80} takes {allow}, not {method}.", {"Allow": allow}
        return 404, f"There is no {path!r:.80}, or no more: the endpoints are {' and '.join(_ENDPOINTS)}.", {}

    def _write(self, status: int, body: Any, headers: Mapping[str, str]) -> None:
        """Log an answer, then write it: a client that has it finds it in the log, and its job in `jobs`."""
        if self.server.latency:
            self.server.stopping.wait(self.server.latency)  # a stop cuts it short
        self.log_request(status)
        if status >= 400:
            body = {"error_message": body}
        content = json.dumps(body).encode() if body else b""
        origin = self._headers.get("origin")
        fields = {  # a false value is left out
            "Date": self.date_time_string(),
            "Cache-Control": "no-store",
            "Access-Control-Allow-Origin": origin or "*",
            "Access-Control-Allow-Credentials": origin and "true",
            "Access-Control-Expose-Headers": "Location, Retry-After",
            "Content-Type": content and "application/json",
            "Content-Length": len(content),
            "Connection": self.close_connection and "close",
            **headers,
        }
        start = f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}"
        lines = [start, *(f"{name}: {value}" for name, value in fields.items() if value), "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        self.wfile.write(head if self.command == "HEAD" else head + content)  # in one packet

    def log_message(self, format: str, *args: Any) -> None:
        """Log what log_request says: as the base class does, but to our log, and all on one line."""
        message = (format % args).encode("unicode_escape").decode()
        log.info("%s - - [%s] %s", self.client_address[0], self.log_date_time_string(), message)


# --- The server: connections, and how they end ------------------------------------------------------------

class TrackerServer(ThreadingHTTPServer):
    """A service on a port, with a thread for each connection; it is bound at once, so that `url` is valid.

    `with server:` serves from a background thread, and stops for good and closes everything at the end.
    Or call `serve_forever()`, which blocks until another thread calls `shutdown()`; then `server_close()`.
    `latency`: seconds before each answer. `retry_after`: whole seconds for that header, None to leave it out.
    OSError if it cannot listen there, ValueError if an option, of the service's too, is out of range.
    """

    request_queue_size = 1024  # connections that wait to be accepted; of a burst, 5, the default, loses some
    allow_reuse_address = os.name != "nt"  # restart at once; Windows would let two share a port: gh-85307
    timeout = 0.5  # seconds after which handle_request returns, in case that `shutdown` cannot wake it
    grace = 1.0  # seconds that a client has, after a stop, to read the answer that is on its way
    server_bind = socketserver.TCPServer.server_bind  # HTTPServer's may look up the host for 30 s: gh-79345

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *,
                 latency: float = 0.0, retry_after: int | None = 1, **options: Any) -> None:
        _require(0 <= port <= 65_535, "port", port, "a number from 0, which picks a free one, to 65535")
        _require(0 <= latency <= 3600, "latency", latency, "a number of seconds from 0 to 3600")
        fit = retry_after is None or retry_after >= 0 and retry_after % 1 == 0
        _require(fit, "retry_after", retry_after, "a whole number of seconds, 0 or more, or None")
        self.latency = latency
        self.retry_headers = {} if retry_after is None else {"Retry-After": str(int(retry_after))}
        self.service = TranslationService(**options)
        self.jobs = self.service.jobs
        self.stopping = Event()
        self.reading: set[socket.socket] = set()  # whose request is being read; add, discard, &= are atomic
        self._sockets: dict[Thread, socket.socket] = {}  # of each thread of ours
        self._serving = Lock()  # held by the thread that accepts connections
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Connection)  # which, if it fails, calls server_close
        host, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.server_name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # 0.0.0.0 is for listening
        self.url = f"http://{f'[{self.server_name}]' if ':' in host else self.server_name}:{self.server_port}"

    def __enter__(self) -> "TrackerServer":
        thread = Thread(target=self.serve_forever, daemon=True)
        thread.start()
        self._sockets[thread] = self.socket  # so that a stop joins it too
        return self

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in the caller's thread until `shutdown`, which wakes it at once: poll_interval is ignored."""
        with self._serving:
            while not self.stopping.is_set():
                with suppress(Exception):  # pytest-socket makes accept raise RuntimeError, say
                    self.handle_request()  # waits for a connection and gives it to process_request

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return not self.stopping.is_set()  # or the connection that `shutdown` makes would be served

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, in which a _Connection is made, calls handle and is closed; note it for a stop."""
        thread = Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        thread.start()
        self._sockets = {t: s for t, s in self._sockets.items() if t.is_alive()} | {thread: request}
        self.reading &= set(self._sockets.values())  # forget, as above, those that have ended

    def note(self, connection: socket.socket, is_reading: bool) -> None:
        """Note whether a connection waits for its client; raise ConnectionAbortedError if a stop has come."""
        (self.reading.add if is_reading else self.reading.discard)(connection)
        if self.stopping.is_set():  # a stop sets this, then looks at `reading`: one of us sees the other
            raise ConnectionAbortedError("the server stops")

    def shutdown(self) -> None:
        """Stop `serve_forever` for good, and wait for its end; no further request is answered."""
        self.stopping.set()
        if self._serving.locked():
            with suppress(Exception):  # a test may have patched socket.socket: then `timeout` ends the wait
                socket.create_connection((self.server_name, self.server_port), self.grace).close()
        with self._serving:
            pass

    def server_close(self) -> None:
        """Stop and close all: at once, or in `grace` if a client reads no answer. A `with` ends by it."""
        self.shutdown()
        with suppress(OSError):  # which macOS and Windows raise
            self.socket.shutdown(socket.SHUT_RDWR)  # a child forked meanwhile has the socket too
        super().server_close()
        for connections in list(self.reading), list(self._sockets.values()):  # who waits, then who is left
            for connection in connections:
                with suppress(OSError):  # it has ended
                    if os.name == "nt":  # only this wakes a thread there: gh-91913
                        socket.close(connection.detach())
                    else:
                        connection.shutdown(socket.SHUT_RDWR)
            deadline = time.monotonic() + self.grace
            for thread in self._sockets:
                thread.join(max(0, deadline - time.monotonic()))


create_server = TrackerServer  # the name that reads best in a fixture


# --- The command line -------------------------------------------------------------------------------------

def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM, and return 0; exit with 2 and the reason on stderr if it cannot."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", default=8000, type=int, help="port to listen on; 0 picks a free one")
    add("--duration", default=(5.0, 15.0), type=float, nargs=2, metavar=("LOW", "HIGH"), help="seconds")
    add("--error-rate", default=0.1, type=float, metavar="P", help="chance that a job ends as error")
    add("--faults", default=(), metavar="LIST", help="what the first polls of each job get, such as 503,drop")
    add("--fault-rate", default=0.0, type=float, metavar="P", help="chance that a poll is answered 503")
    add("--latency", default=0.0, type=float, metavar="S", help="seconds before each answer")
    add("--retry-after", default=1, type=int, metavar="S", help="seconds for the Retry-After header")
    add("--seed", type=int, metavar="N", help="the same seed gives the same jobs")
    add("--log-file", default="server.log", metavar="FILE", help="where to append the log")
    options = vars(parser.parse_args(argv))
    log_file = options.pop("log_file")
    signals: list[int] = []
    try:
        with create_server(**options) as server:
            handlers: list[logging.Handler] = [logging.FileHandler(log_file, encoding="utf-8")]
            if sys.stderr and sys.stderr.isatty():  # a pipe that nobody reads would block after 64 kB
                handlers.append(logging.StreamHandler())
            logging.raiseExceptions = False  # tracebacks, as of a full disk, would go to that pipe too
            logging.basicConfig(level=logging.INFO, format="%(levelname)s - %(message)s", handlers=handlers)
            for signum in signal.SIGINT, signal.SIGTERM:
                # Only noted: a KeyboardInterrupt strikes anywhere, a second one in the midst of the clean-up.
                signal.signal(signum, lambda signum, frame: signals.append(signum))
            print(f"Listening on {server.url} and logging to {log_file}; Ctrl-C stops it. To try it:\n"
                  f"  curl -X POST {server.url}/create_job\n  curl {server.url}/status/JOB_ID", flush=True)
            while not signals:
                time.sleep(0.1)
                with suppress(OSError):  # Windows renames no file that is open
                    if os.path.getsize(log_file) > 10_000_000:
                        handlers[0].close()
                        os.replace(log_file, log_file + ".1")
                        handlers[0].close()  # in case that a thread opened it; logging opens a new one
    except (OSError, ValueError) as error:
        parser.error(f"cannot serve on {options['host']} port {options['port']}: {error}")
    return 0


if __name__ == "__main__":
    os._exit(main())  # at once, with no flush: a second signal or a log that blocks has no say any more
