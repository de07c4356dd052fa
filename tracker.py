"""A fake video-translation service that measures how well its clients poll.

POST /create_job        {"job_id": "<uuid4>"}; ?duration=3&outcome=error&faults=503,drop chooses its fate
GET /status/<job_id>    {"status": "pending"}, then "in_progress", then "completed",
                        or {"status": "error", "error_message": "<why>"}

`python tracker.py` serves it to a client in any language. In a test, a 30-second job takes no time:

>>> import json, tracker
>>> from urllib.request import urlopen
>>> clock = tracker.ManualClock()
>>> with tracker.create_server(duration=30, error_rate=0, clock=clock) as server:
...     job_id = json.load(urlopen(server.url + "/create_job", b""))["job_id"]
...     clock.advance(32)
...     json.load(urlopen(f"{server.url}/status/{job_id}"))
{'status': 'completed'}
>>> server.jobs[job_id].delay      # the end was noticed 2 seconds late
2.0

A test double, not for the internet. Third edition, 2026; MIT License, Copyright The tracker.py authors.
"""

import argparse
import json
import logging
import os
import random
import re
import selectors
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.client import responses
from http.server import ThreadingHTTPServer
from socketserver import BaseRequestHandler, TCPServer
from typing import Any
from urllib.parse import parse_qs, unquote

__all__ = ["ManualClock", "TrackerServer", "TranslationJob", "TranslationService", "create_server"]

Clock = Callable[[], float]  # returns seconds
Duration = float | Sequence[float]  # seconds; two of them are the ends of a range
Fault = int | str  # instead of an answer: a status from 400 to 599, "drop" (hang up), "hang" (stay silent)
Faults = Sequence[Fault]  # one for each of the first polls; or a text like "503,drop"
log = logging.getLogger("tracker")


class _Refusal(ValueError):
    """Why a value or a request is not taken, in one sentence; over HTTP, it is answered with this status."""
    status: int


def _require(condition: Any, rule: str, given: object, status: int = 400) -> Any:
    """Return the condition (it may be a match) if it is true; else raise the _Refusal "RULE, not GIVEN."."""
    if not condition:
        refusal = _Refusal(f"{rule}, not {given!r:.80}.")
        refusal.status = status
        raise refusal
    return condition


# --- The job and the clock: what time makes of a job, and what time is ------------------------------------
FINAL = ("completed", "error")  # what a job may end in, and never leaves
ERROR_MESSAGES = ("The audio track could not be decoded.", "No speech was detected in the video.")


@dataclass(slots=True)
class TranslationJob:
    """One translation. Its fate is settled at creation; polls only use up its faults. A test may set all."""

    job_id: str
    status: str = "pending"
    created_at: float = 0.0  # seconds on the service's clock
    updated_at: float = 0.0  # when a poll last moved the status; at first, the same as created_at
    error_message: str | None = None
    duration: float = 0.0  # seconds
    outcome: str = "completed"  # the status to end in: "completed" or "error"
    faults: list[Fault] = field(default_factory=list)  # what the next polls get instead of an answer
    requests: int = 0  # polls so far, faulted ones too
    polls: list[float] = field(default_factory=list)  # seconds after creation, of the first 1,000 of them
    total_time: float | None = None  # seconds from creation until a poll saw the end
    delay: float | None = None  # seconds for which the end went unnoticed

    def update_status(self, now: float) -> None:
        """Move the status on to what it is at `now`: pending for the first fifth. It never moves back."""
        elapsed = round(now - self.created_at, 6)  # or ten sleeps of 0.1 would make 0.9999999999999999
        if self.status not in FINAL and elapsed >= self.duration:
            self.status, self.updated_at = self.outcome, now
            self.total_time, self.delay = elapsed, round(elapsed - self.duration, 6)
        elif self.status == "pending" and elapsed >= round(self.duration / 5, 6):
            self.status, self.updated_at = "in_progress", now
        if self.status == "error" and self.error_message is None:  # perhaps a test has set the status
            self.error_message = random.Random(self.job_id).choice(ERROR_MESSAGES)  # for one id, the same


@dataclass
class ManualClock:
    """A clock that stands still until `advance` is called; a client under test sleeps with its `sleep`."""

    now: float = 0.0  # seconds

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds`; ValueError if that is less than 0, as for `time.sleep`."""
        _require(0 <= seconds < float("inf"), "seconds must be a finite number, 0 or more", seconds)
        self.now += seconds

    sleep = advance


# --- The service: all jobs, one lock, one log -------------------------------------------------------------
def _list_of(faults: Faults) -> list[Fault]:
    """Return the faults as a new list; ValueError if one is no fault."""
    copy: list[Fault] = []
    for fault in faults.split(",") if isinstance(faults, str) else faults:
        fit = re.fullmatch("[45][0-9][0-9]|drop|hang", str(fault))
        _require(fit, "faults must be a list of HTTP statuses from 400 to 599, drop or hang", fault)
        copy.append(fault if fault in ("drop", "hang") else int(fault))
    return copy


@dataclass(kw_only=True)
class TranslationService:
    """Jobs, created and polled by any number of threads; ValueError if an option is out of range."""

    duration: Duration = (5.0, 15.0)  # seconds that a job takes; in a range, they are drawn for each job
    error_rate: float = 0.1  # the chance, from 0 to 1, that a job ends as "error"
    faults: Faults = ()  # what the first polls of each job get instead of an answer
    fault_rate: float = 0.0  # the chance, from 0 to 1, that a poll gets a 503 instead of an answer
    seed: int | None = None  # the same seed gives the same ids, outcomes, error messages and durations
    clock: Clock = time.monotonic  # read once per created job and, without a tick, once per poll
    tick: float | None = None  # a job's nth poll finds it n * tick seconds old, whatever the clock says

    def __post_init__(self) -> None:
        ends = self.duration if isinstance(self.duration, Sequence) else [self.duration]
        in_order = len(ends) in (1, 2) and 0 <= ends[0] <= ends[-1]
        _require(in_order, "duration must be a number of seconds, or two: 0 <= low <= high", self.duration)
        _require(0 <= self.error_rate <= 1, "error_rate must be a number from 0 to 1", self.error_rate)
        _require(0 <= self.fault_rate <= 1, "fault_rate must be a number from 0 to 1", self.fault_rate)
        _require(self.tick is None or self.tick > 0, "tick must be more than 0 seconds", self.tick)
        self.faults = _list_of(self.faults)
        self.jobs: dict[str, TranslationJob] = {}
        self._low, self._high = ends[0], ends[-1]
        self._dice = random.Random(self.seed)
        self._fault_dice = random.Random(self._dice.random())  # for polls, which must not change later jobs
        self._lock = threading.Lock()  # polls are one step each, or two would log one end or pop one fault

    def create_job(self, *, duration: float | None = None, outcome: str | None = None,
                   faults: Faults | None = None) -> TranslationJob:
        """Create a job with the fate that is given, or else drawn; ValueError if a value is out of range."""
        _require(duration is None or duration >= 0, "duration must be 0 seconds or more, or inf", duration)
        _require(outcome is None or outcome in FINAL, "outcome must be completed or error", outcome)
        faults = _list_of(self.faults if faults is None else faults)
        with self._lock:
            # Always these three draws: whatever is set or chosen, the next job meets the same random numbers.
            job_id = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
            drawn = min(self._high, self._dice.uniform(self._low, self._high))  # inf - inf is nan: take inf
            fails = self._dice.random() < self.error_rate
            now = self.clock()
            job = self.jobs[job_id] = TranslationJob(
                job_id, created_at=now, updated_at=now, faults=faults,
                duration=round(drawn if duration is None else duration, 6),
                outcome=outcome or ("error" if fails else "completed"))
            if len(self.jobs) > 100_000:  # a real service forgets too, by age
                del self.jobs[next(iter(self.jobs))]
            log.info(f"Job {job_id} created")
        return job

    def query_status(self, job_id: str) -> tuple[str, str | None, Fault | None]:
        """Record a poll; return status, error message and fault. KeyError if there is no such job."""
        with self._lock:
            job = self.jobs[job_id]
            now = self.clock() if self.tick is None else job.created_at + self.tick * (job.requests + 1)
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
                log.info(f"Job {job_id}: {before} -> {job.status}")
                if job.status in FINAL:
                    log.info(f"Translation metrics - Requests: {job.requests}, Status: {job.status}, "
                             f"Total time: {job.total_time:.2f}s, Delay: {job.delay:.2f}s")
            return job.status, job.error_message, None


# --- The server: a thread for each connection, and a bell that tells all of them to stop -------------------
class TrackerServer(ThreadingHTTPServer):
    """A service on a port, with a thread for each connection; it is bound at once, so that `url` is valid.

    `with server:` serves from a background thread, and stops for good and closes everything at the end.
    Or call `serve_forever()`, which blocks until `shutdown()` is called elsewhere, and then `server_close()`.
    `latency`: seconds before each answer. `retry_after`: whole seconds for that header, None to leave it out.
    OSError if it cannot listen there, ValueError if an option, of the service's too, is out of range.

    The base class in between: `handle_request` accepts a connection and calls our `process_request`, which
    starts a thread. There, `process_request_thread` makes a `_Connection` (so its `handle` runs), tells
    `handle_error` what that raises, and closes the socket. A `with` block's `__exit__` is `server_close`.
    """

    request_queue_size = 1024  # connections that wait to be accepted; the default, 5, loses some of a burst
    allow_reuse_address = os.name != "nt"  # restart at once; Windows would let two share a port: gh-85307
    server_bind = TCPServer.server_bind  # HTTPServer's looks the host's name up, for up to 30 s: gh-79345
    grace = 1.0  # seconds that a client has to read an answer, and to hang up after its last one
    real_time, monotonic = staticmethod(time.time), staticmethod(time.monotonic)  # whatever a test patches

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, duration: Duration = (5.0, 15.0),
                 error_rate: float = 0.1, faults: Faults = (), fault_rate: float = 0.0,
                 seed: int | None = None, clock: Clock = time.monotonic, tick: float | None = None,
                 latency: float = 0.0, retry_after: int | None = 1) -> None:
        _require(0 <= port <= 65_535, "port must be a number from 0, which picks a free one, to 65535", port)
        _require(0 <= latency <= 3600, "latency must be a number of seconds from 0 to 3600", latency)
        _require(retry_after is None or retry_after >= 0 and retry_after % 1 == 0,
                 "retry_after must be a whole number of seconds, 0 or more", retry_after)
        self.service = TranslationService(duration=duration, error_rate=error_rate, faults=faults,
                                          fault_rate=fault_rate, seed=seed, clock=clock, tick=tick)
        self.jobs = self.service.jobs
        self.latency = latency
        self.retry_headers = [] if retry_after is None else [f"Retry-After: {int(retry_after)}"]
        # super().__init__ calls server_close if it cannot listen: what that needs stands above it.
        self.url = ""
        self.stopping = False
        self._owner = os.getpid()
        self._accepting = threading.RLock()  # serve_forever holds it for as long as it runs
        self._bell, self._button = socket.socketpair()  # to shut the button down makes the bell readable
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Connection)
        self.socket.setblocking(False)  # a client may be gone between `wait` and `accept`
        host, self.server_port = self.socket.getsockname()[:2]
        self.server_name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # 0.0.0.0 is for listening
        self.url = f"http://{f'[{self.server_name}]' if ':' in host else self.server_name}:{self.server_port}"

    def wait(self, seconds: float, *sockets: socket.socket) -> bool:
        """Wait until a socket can be read, the bell rings (a stop) or time is up; True only for a socket."""
        if self.stopping:  # the bell may be closed by now
            return False
        with getattr(selectors, "PollSelector", selectors.SelectSelector)() as selector:  # no poll on Windows
            for one in (self._bell, *sockets):
                selector.register(one, selectors.EVENT_READ)
            return bool(selector.select(seconds)) and not self.stopping

    def __enter__(self) -> "TrackerServer":
        threading.Thread(target=self.serve_forever, name=self.url, daemon=True).start()
        return self

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in the caller's thread until `shutdown`; Windows sees a Ctrl-C only each poll_interval."""
        with self._accepting:
            while not self.stopping:
                if self.wait(poll_interval, self.socket):
                    with suppress(Exception):  # pytest-socket makes accept raise RuntimeError, say
                        self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        # A stop finds the thread by its name; it is a daemon, as an unclosed server must keep no program.
        threading.Thread(target=self.process_request_thread, args=(request, client_address),
                         name=self.url, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception(f"The connection from {client_address[0]} failed")  # a print may hang on a full pipe

    def shutdown(self) -> None:
        """Stop for good, and wait until nobody accepts any more; connections end with the answer they owe."""
        if os.getpid() != self._owner:  # a forked child leaves the block: bell and port are its parent's too
            return
        self.stopping = True
        with suppress(OSError):  # at a second stop, the button is closed already
            self._button.shutdown(socket.SHUT_WR)  # rings the bell: serve_forever will let go of _accepting
        # Wait for that. A signal's handler may run in serve_forever's own thread, which an RLock lets pass.
        with self._accepting, suppress(OSError):  # macOS and Windows raise it for a socket that listens
            self.socket.shutdown(socket.SHUT_RDWR)  # or the port would live on in a forked child

    def server_close(self) -> None:
        """Stop and close all: in milliseconds, or in about `grace` if a client does not read its answer."""
        self.shutdown()
        super().server_close()
        deadline = self.monotonic() + 2 * self.grace  # one for a write that has just begun, one to spare
        for thread in threading.enumerate():
            if thread.name == self.url and thread.is_alive():
                thread.join(deadline - self.monotonic())
        self._bell.close()
        self._button.close()


create_server = TrackerServer  # the name that reads best in a fixture

# --- One connection: read a request to its end, find its answer, write it, and again ----------------------
_SILENCE = 75  # seconds; at 30 a connection would close just as a poller with that interval writes
_LONGEST = 65_536  # bytes of a line with its end, and of what is received at a time
# Strict, as a proxy before us must not see one request where we see two: the sections are RFC 9112's.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # GET, or Content-Length: RFC 9110, section 5.6.2
_TARGET = r"\*|[!-~]+:\d+|(?:/|https?://)[!-~\x80-\xff]*"  # /status/x?y, or http://host/, or host:443, or *
_REQUEST_LINE = rf"({_TOKEN}) ({_TARGET}) (HTTP/\d\.\d)\r?|\r?"  # or empty: RFC 9112, sections 2.2 and 3
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.~_!$&'()*+;=%-]+)(:\d*)?"  # localhost:80
_FIELD = rf"(?:({_TOKEN}):([\t -~\x80-\xff]*))?"  # Host: localhost, or nothing at the end: section 5
_HEADER, _TRAILER = _FIELD + r"\r?", _FIELD + r"\r"  # in a chunked body, each line must end in CRLF
_CHUNK = r"(?:0+|([0-9A-Fa-f]{1,16}))[ \t]*(?:;[\t -~\x80-\xff]*)?\r"  # 1F;a=b, or 0 (no group): section 7.1
_ENDPOINTS = "POST /create_job and GET /status/<job_id>"
_FAULT_HEADERS: dict[Fault, list[str]] = {  # RFC 9110 requires them; Java's client fails without the first
    401: ['WWW-Authenticate: Bearer realm="tracker"'], 405: ["Allow: GET, HEAD, OPTIONS"],
    407: ['Proxy-Authenticate: Bearer realm="tracker"'],
    426: ["Upgrade: HTTP/2.0", "Connection: Upgrade"]}


class _Connection(BaseRequestHandler):
    """One connection, in a thread of its own, until it closes:

    - when its client closes it, asks for that (Connection: close) or speaks HTTP/1.0;
    - after the answer to a request that was refused before it was read to its end;
    - instead of an answer, for the faults "drop" and "hang";
    - after 75 seconds in which the client sends nothing, or `grace` in which it does not read its answer;
    - when the server stops: at once, or after the answer to a request that has been read to its end.
    """

    server: TrackerServer
    request: socket.socket  # the base class's word for the connection, not an HTTP request
    headers: dict[str, str]
    received = b""  # what has come and is not used yet
    is_last = False  # whether the connection closes after this request

    def handle(self) -> None:
        """Read a request, find its answer, write it, and again."""
        with suppress(OSError):  # such are those that _receive raises: gone, silent for too long, or a stop
            self.request.setblocking(False)  # only `wait` waits, which a stop ends (and _write, for `grace`)
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)  # or pipelining waits 44 ms
            while not self.is_last and not self.server.stopping:
                self.is_last = True  # until all is read: a failure midway hides where the next one begins
                self.request_line, self.method, self.path, self.headers = "", "", "", {}
                try:
                    self._read_request()
                    answer = self._find_answer()
                except _Refusal as refusal:
                    answer = refusal.status, str(refusal), []
                except Exception:
                    if not self.path:  # set last, so this was reading: gone, silent or a stop; no answer
                        raise
                    log.exception(f"A bug met {self.request_line!r}")
                    answer = 500, "The service has a bug: its log has the traceback.", []
                self._write(*answer)
            # Read on till it hangs up (an OSError): a client still writing would lose the answer. Section 9.6
            self.request.shutdown(socket.SHUT_WR)
            deadline = self.server.monotonic() + self.server.grace
            while self.server.monotonic() < deadline:
                self._receive(deadline - self.server.monotonic())
                self.received = b""

    def _read_request(self) -> None:
        """Read a request to its end: its head into attributes, its body into nothing."""
        while not self.request_line:  # _read_line sets it to the first line that is not empty: section 2.2
            match = self._read_line(_REQUEST_LINE, "A request must begin like 'GET /path HTTP/1.1'")
        self.method, target, version = match.groups()
        is_modern = version == "HTTP/1.1"
        _require(is_modern or version == "HTTP/1.0", "The version must be HTTP/1.1 or HTTP/1.0", version, 505)
        self.headers = headers = self._read_headers(_HEADER)
        host = headers.get("host", "")
        fit = re.fullmatch(_HOST, host) or not (host or is_modern)
        _require(fit, "Host must be one host name, perhaps with a port", host)
        if is_modern and headers.get("expect", "").lower() == "100-continue":
            self.request.send(b"HTTP/1.1 100 Continue\r\n\r\n")  # curl waits for it before a large body
        coding = headers.get("transfer-encoding")  # of the body: RFC 9112, section 6
        if coding is None:
            length = headers.get("content-length", "0")
            _require(re.fullmatch("[0-9]{1,18}", length), "Content-Length must be one number", length)
            self._skip(int(length))
        else:
            fit = coding.lower() == "chunked" and is_modern and "content-length" not in headers
            _require(fit, "Transfer-Encoding must be chunked, in HTTP/1.1, without a Content-Length", coding)
            while size := self._read_line(_CHUNK, "A chunk must begin with its hexadecimal size and CRLF")[1]:
                self._skip(int(size, 16))
                self._read_line("\r", "A chunk must end where its size says")  # "\r?" would miss a byte
            self._read_headers(_TRAILER)
        options = re.split("[ \t,]+", headers.get("connection", "").lower())
        self.is_last = not is_modern or "close" in options
        path, _, self.query = re.sub(r"\Ahttps?://[^/?]*", "", target).partition("?")
        self.path = path or "/"  # last, as a sign that all has been read

    def _read_headers(self, pattern: str) -> dict[str, str]:
        """Read the lines of a head, or of trailers, up to the empty one; names become lower case."""
        headers: dict[str, str] = {}
        count = 0
        while (match := self._read_line(pattern, "A header must be a printable 'Name: value'"))[1]:
            count += 1
            _require(count <= 100, "A request must have at most 100 headers", count, 431)
            name, value = match[1].lower(), match[2].strip(" \t")
            # Two of a name are joined (RFC 9110, section 5.3), so neither two Hosts nor two lengths pass.
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    def _skip(self, size: int) -> None:
        """Read so many bytes and forget them."""
        while size > len(self.received):
            size -= len(self.received)
            self.received = b""
            self._receive(_SILENCE)
        self.received = self.received[size:]

    def _read_line(self, pattern: str, rule: str) -> Any:
        """Read a line and return its match, or refuse it by the rule; `request_line` keeps the first."""
        while b"\n" not in self.received and len(self.received) < _LONGEST:
            self._receive(_SILENCE)
        line, _, self.received = self.received.partition(b"\n")  # without one, all: it is too long
        text = line.decode("latin-1")
        _require(len(text) < _LONGEST, "A line must be under 64 KiB", text, 431 if self.request_line else 414)
        self.request_line = self.request_line or text.removesuffix("\r")
        return _require(re.fullmatch(pattern, text), rule, text.removesuffix("\r"))

    def _receive(self, seconds: float) -> None:
        """Receive once, or wait until the next call can; OSError if there is nothing to wait for."""
        try:
            data = self.request.recv(_LONGEST)
        except BlockingIOError:
            if not self.server.wait(seconds, self.request):
                raise TimeoutError  # it was silent for too long, or the server stops
            return  # with nothing yet: whoever called asks again
        if not data or self.server.stopping:  # without data, the client has hung up
            raise ConnectionAbortedError
        self.received += data

    def _find_answer(self) -> tuple[Any, Any, list[str]]:
        """Return status, body and headers; a body is JSON, the sentence of an error, or None."""
        _, *segments = map(unquote, self.path.split("/"))  # in this order, an escaped slash stays one
        allow = "POST, OPTIONS" if segments == ["create_job"] else "GET, HEAD, OPTIONS"
        match self.method, segments:
            case "POST", ["create_job"]:
                return self._create_job()
            case "GET", ["status", job_id]:
                try:
                    return self._poll(job_id.lower())
                except KeyError:
                    if job_id.lower() in self.server.jobs:
                        raise  # the job is there, so the clock raised it; if not, on to the 404 below
            case "HEAD", ["status", job_id]:
                if job_id.lower() in self.server.jobs:  # no poll: its client cannot see the status
                    return 200, None, []
            case "GET" | "HEAD", [""]:
                return 200, {"endpoints": _ENDPOINTS.split(" and ")}, []
            case "OPTIONS", _:  # what a browser may ask before a page on another port can poll
                wanted = self.headers.get("access-control-request-headers", "*")
                return 204, None, [f"Allow: {allow}", f"Access-Control-Allow-Methods: {allow}",
                                   f"Access-Control-Allow-Headers: {wanted}"]
            case _, ["create_job"] | ["status", _] | [""]:
                return 405, f"{self.path!r:.80} takes {allow}, not {self.method:.80}.", [f"Allow: {allow}"]
        return 404, f"There is no {self.path!r:.80}, or no more: the endpoints are {_ENDPOINTS}.", []

    def _create_job(self) -> tuple[Any, Any, list[str]]:
        """Return the answer to a query like "duration=3&outcome=error&faults=503,drop"."""
        parameters = parse_qs(self.query, keep_blank_values=True)
        fate: dict[str, Any] = {name: ",".join(texts) for name, texts in parameters.items()}
        unknown = fate.keys() - {"duration", "outcome", "faults"}
        _require(not unknown, "Parameter must be duration, outcome or faults", ", ".join(unknown))
        if "duration" in fate:
            text = fate["duration"]
            fit = re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]+|inf", text)
            _require(fit, "duration must be 0 seconds or more, or inf", text)
            fate["duration"] = float(text)
        job_id = self.server.service.create_job(**fate).job_id
        return 200, {"job_id": job_id}, [f"Location: /status/{job_id}", *self.server.retry_headers]

    def _poll(self, job_id: str) -> tuple[Any, Any, list[str]]:
        """Return the answer to a poll; KeyError if there is no such job."""
        status, error_message, fault = self.server.service.query_status(job_id)
        if fault:
            headers = self.server.retry_headers if fault in (429, 503) else _FAULT_HEADERS.get(fault, [])
            return fault, f"This is a simulated {fault}: poll again.", headers
        if status == "error":
            return 200, {"status": status, "error_message": error_message}, []
        return 200, {"status": status}, [] if status in FINAL else self.server.retry_headers

    def _write(self, status: Any, body: Any, headers: list[str]) -> None:
        """Log an answer, then write it: a client that has it finds it in the log, and its job in `jobs`."""
        if self.server.latency:
            self.server.wait(self.server.latency)  # which a stop cuts short
        is_silent = status in ("drop", "hang")
        now = time.strftime("%d/%b/%Y %H:%M:%S")
        line = self.request_line.encode("unicode_escape").decode()  # so that it stays one line
        log.info(f'{self.client_address[0]} - - [{now}] "{line}" {"-" if is_silent else status} -')
        if is_silent:  # a "hang" lasts until the client hangs up or sends more, or for 75 seconds
            self.server.wait(_SILENCE if status == "hang" else 0, self.request)
            raise ConnectionAbortedError  # for `handle`, as if the client had hung up
        if status >= 400:
            body = {"error_message": body}
        content = json.dumps(body).encode() + b"\n" if body else b""
        origin = self.headers.get("origin")
        lines = [f"HTTP/1.1 {status} {responses.get(status, '')}", *headers, "Cache-Control: no-store",
                 f"Date: {formatdate(self.server.real_time(), usegmt=True)}",
                 "Access-Control-Expose-Headers: Location, Retry-After",
                 f"Access-Control-Allow-Origin: {origin or '*'}"]
        if origin:
            lines.append("Access-Control-Allow-Credentials: true")
        if content:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        if self.is_last or self.server.stopping:
            lines = [*(line for line in lines if line != "Connection: Upgrade"), "Connection: close"]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        data = head if self.method == "HEAD" else head + content
        with suppress(BlockingIOError):
            data = data[self.request.send(data):]  # as a rule all of it, in one packet
        if data:  # some is left: the client asks and asks, but reads no answer
            self.request.settimeout(self.server.grace)
            self.request.sendall(data)
            self.request.setblocking(False)


# --- The command line -------------------------------------------------------------------------------------
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM, and return 0; exit with 2 and the reason on stderr if it cannot."""
    about = "A fake video-translation service that measures how well its clients poll."
    parser = argparse.ArgumentParser(description=about, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", default=8000, type=int, help="port to listen on; 0 picks a free one (default: 8000)")
    add("--duration", type=float, nargs="+", metavar=("SECONDS", "HIGH"),
        help="seconds that a job takes, or low and high, to draw them for each job (default: 5 15)")
    add("--error-rate", type=float, help="chance that a job ends as error (default: 0.1)")
    add("--faults", help="what the first polls of each job get, as 503,drop (default: none)")
    add("--fault-rate", type=float, help="chance that a poll is answered 503 (default: 0)")
    add("--tick", type=float, help="seconds by which each poll finds its job older (default: none)")
    add("--latency", type=float, help="seconds before each answer (default: 0)")
    add("--retry-after", type=int, help="seconds for the Retry-After header (default: 1)")
    add("--seed", type=int, help="the same seed gives the same jobs (default: none)")
    add("--log-file", default="server.log", help="where to append the log (default: server.log)")
    options = vars(parser.parse_args(argv))
    log_file = options.pop("log_file")
    try:
        with create_server(**options) as server:
            handlers: list[logging.Handler] = [logging.FileHandler(log_file, encoding="utf-8")]
            if sys.stderr and sys.stderr.isatty():  # a pipe that nobody reads would block after 64 kB
                handlers.append(logging.StreamHandler())
            logging.raiseExceptions = False  # its tracebacks, as of a full disk, would go to that pipe too
            logging.basicConfig(format="%(levelname)s - %(message)s", handlers=handlers, force=True)
            log.setLevel(logging.INFO)
            for signum in signal.SIGINT, signal.SIGTERM:  # unlike a KeyboardInterrupt, this cuts nothing off
                signal.signal(signum, lambda signum, frame: server.shutdown())
            print(f"Listening on {server.url} and logging to {log_file}; Ctrl-C stops it. To try it:\n"
                  f"  curl -X POST {server.url}/create_job\n  curl {server.url}/status/JOB_ID", flush=True)
            while not server.stopping:
                server.wait(0.5)
    except (RuntimeError, ValueError) as error:  # RuntimeError: no thread can be started
        parser.error(str(error))
    except OSError as error:
        task = "log" if error.filename else f"serve on {options['host']} port {options['port']}"
        parser.error(f"cannot {task}: {error}")
    return 0


if __name__ == "__main__":
    os._exit(main())  # Python's own exit may wait for a log that blocks, and a signal spoil the status
