"""A fake video-translation service that measures how well its clients poll.

    python tracker.py                       # beside a client in any language

In a test, time is moved by hand, so a 30-second job takes no time at all:

>>> import json, tracker, urllib.request
>>> def fetch(url, body=None):
...     with urllib.request.urlopen(url, body) as answer:
...         return json.load(answer)
>>> clock = tracker.ManualClock()
>>> with tracker.create_server(duration=(30, 30), error_rate=0, clock=clock) as server:
...     job_id = fetch(server.url + "/create_job", b"")["job_id"]
...     early = fetch(f"{server.url}/status/{job_id}")
...     clock.advance(32)
...     late = fetch(f"{server.url}/status/{job_id}")
>>> early, late
({'status': 'pending'}, {'status': 'completed'})
>>> job = server.jobs[job_id]
>>> job.requests, job.polls, job.delay      # the end was noticed 2 seconds late
(2, [0.0, 32.0], 2.0)

POST /create_job        {"job_id": "<uuid4>"}
GET /status/<job_id>    {"status": "pending"}, then "in_progress", then "completed",
                        or {"status": "error", "error_message": "<why>"}

The file is also an example of a small threaded HTTP server: the job, the service that keeps the jobs, HTTP,
the server, the command line. It is a test double: do not put it on the internet, where http.server does not
belong either.
"""

import argparse
import contextlib
import dataclasses
import functools
import http.client
import io
import json
import logging
import math
import os
import random
import re
import signal
import socket
import socketserver
import sys
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl, urlsplit

__all__ = ["ManualClock", "TrackerServer", "TranslationJob", "TranslationService", "create_server"]

Clock = Callable[[], float]  # called without arguments, returns seconds
Fault = int | str  # an HTTP status from 400 to 599, or "drop"

DURATION = (5.0, 15.0)  # seconds, from and to
ERROR_RATE = 0.1  # often enough that nobody forgets to handle it
RETRY_AFTER = 1  # whole seconds, all that the header can say
JOBS_KEPT = 100_000  # about 50 MB, not yet polled; a real service forgets too, by age
POLLS_KEPT = 1_000  # of each job: enough to see any schedule, not enough for a stuck client to fill the memory
CLIENT_TIMEOUT = 30  # seconds of silence after which a connection is closed
GRACE = 1.0  # seconds that a step of closing may take: mostly for a client to read its last answer
LINE_SIZE = 65_536  # bytes, of the request line and of each header, as in the standard library
HEADER_LINES = 100  # so many are refused, as in the standard library
PIECE = 65_536  # bytes of a request body in memory at a time
LOG_SIZE = 10_000_000  # bytes of server.log before it becomes server.log.1

FINAL = ("completed", "error")
ERROR_MESSAGES = (
    "The audio track could not be decoded.",
    "No speech was detected in the video.",
    "The source language is not supported.",
    "The translation model ran out of memory.",
    "The lip-sync stage failed to converge.",
)

log = logging.getLogger("tracker")


def _is_number(value: object, low: float, high: float, kind: Any = (int, float)) -> bool:
    """Whether value is a number of that kind from low to high; a NaN, a bool and an int beyond all floats are not."""
    with contextlib.suppress(OverflowError):
        return isinstance(value, kind) and not isinstance(value, bool) and low <= float(value) <= high
    return False


def _unusable(name: str, given: object, accepted: str) -> ValueError:
    """Return the error that says which value is unusable, what was given and what is accepted."""
    return ValueError(f"{name} must be {accepted}, not {given!r:.80}")


# --- The job: what it is, and how time changes it -------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class TranslationJob:
    """One translation, whose fate is sealed at its creation and revealed by polls.

    All times are seconds on the service's clock. Every field may be set by a test, between two polls; `total_time`
    and `delay` follow from the others.
    """

    job_id: str
    status: str = "pending"
    created_at: float = 0.0
    updated_at: float = math.nan  # when a query last moved the status; until then, created_at
    error_message: str | None = None
    duration: float = 0.0
    outcome: str = "completed"  # the status to end in, "completed" or "error"
    faults: list[Fault] = dataclasses.field(default_factory=list)  # what the next status queries get instead
    requests: int = 0  # status queries so far, faulted ones too
    polls: list[float] = dataclasses.field(default_factory=list)  # seconds after creation, up to POLLS_KEPT of them

    def __post_init__(self) -> None:
        if math.isnan(self.updated_at):
            self.updated_at = self.created_at

    def update_status(self, now: float) -> None:
        """Move the status to what it is at `now`: never back, and never away from an end."""
        before, elapsed = self.status, now - self.created_at
        if before not in FINAL:
            if elapsed >= self.duration:
                self.status = self.outcome
            elif elapsed >= self.duration / 5:
                self.status = "in_progress"
        if self.status != before:
            self.updated_at = now
        if self.status == "error" and self.error_message is None:
            # Drawn by the id, so that neither the polls nor other jobs change it.
            self.error_message = random.Random(self.job_id).choice(ERROR_MESSAGES)

    @property
    def total_time(self) -> float | None:
        """Seconds from creation until a query saw the end; None before that."""
        return self.updated_at - self.created_at if self.status in FINAL else None

    @property
    def delay(self) -> float | None:
        """Seconds for which the end went unnoticed; None before it was seen."""
        return None if self.total_time is None else self.total_time - self.duration


class ManualClock:
    """A clock that stands still until `advance` is called; give `sleep` to the client instead of `time.sleep`."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock on by `seconds`; ValueError if that is less than 0, as for `time.sleep`."""
        if not _is_number(seconds, 0, sys.float_info.max):
            raise _unusable("seconds", seconds, "a finite number, 0 or more")
        self.now += seconds

    sleep = advance


def _wall_clock(wall: Clock = time.time, monotonic: Clock = time.monotonic) -> Clock:
    """Return a clock that reads like a Unix timestamp but does not jump when the system's clock is set.

    The defaults are bound at import, out of reach of libraries that replace the functions of `time` later.
    """
    anchor = wall() - monotonic()
    return lambda: anchor + monotonic()


# --- The service: all jobs, one lock, one log -----------------------------------------------------------------


class TranslationService:
    """Creates jobs and answers status queries, for any number of threads; it needs no server.

    duration    (low, high): each job takes a uniformly drawn number of seconds from this range
    error_rate  the chance, from 0 to 1, that a job ends as "error"
    fault_rate  the chance, from 0 to 1, that a status query gets a 503 instead of an answer
    seed        the same seed gives the same ids, durations, outcomes and error messages
    clock       any callable that returns seconds; read once per created job and once per status query

    A value out of range raises ValueError.
    """

    def __init__(
        self,
        *,
        duration: tuple[float, float] = DURATION,
        error_rate: float = ERROR_RATE,
        fault_rate: float = 0.0,
        seed: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        match duration:
            case (low, high) if _is_number(high, 0, math.inf) and _is_number(low, 0, high):
                self._shortest, self._longest = low, high
            case _:
                raise _unusable("duration", duration, "a pair of seconds, (low, high), with 0 <= low <= high")
        for name, rate in ("error_rate", error_rate), ("fault_rate", fault_rate):
            if not _is_number(rate, 0, 1):
                raise _unusable(name, rate, "a number from 0 to 1")
        if not (clock is None or callable(clock)):
            raise _unusable("clock", clock, "a callable that returns seconds")
        self.jobs: OrderedDict[str, TranslationJob] = OrderedDict()  # a plain dict is slow to lose its oldest
        self._error_rate = error_rate
        self._fault_rate = fault_rate
        self._clock = _wall_clock() if clock is None else clock
        self._dice = random.Random(seed)
        self._fault_dice = random.Random(self._dice.random())  # its own, so that polling changes no later job
        # One lock for everything: what is done under it takes microseconds. A real service has a database.
        self._lock = threading.Lock()

    def _read_clock(self) -> float:
        """Return the time; a KeyError or ValueError from a clock would look like an unknown job or a bad parameter."""
        try:
            return self._clock()
        except Exception as error:
            raise RuntimeError("the clock raised an exception") from error

    def create_job(
        self, *, duration: float | None = None, outcome: str | None = None, faults: Iterable[Fault] = ()
    ) -> TranslationJob:
        """Create a job, with the fate that is given or else drawn.

        duration  seconds; inf never ends
        outcome   "completed" or "error"
        faults    what the first status queries get instead of an answer, in turn: an int from 400 to 599 is
                  that status, "drop" a closed connection

        Raises ValueError for a value out of range.
        """
        if not (duration is None or _is_number(duration, 0, math.inf)):
            raise _unusable("duration", duration, "a number of seconds, 0 or more, or inf for a job that never ends")
        if not (outcome is None or outcome in FINAL):
            raise _unusable("outcome", outcome, "completed or error")
        faults = [faults] if isinstance(faults, (str, int)) else list(faults)  # or "drop" would be four faults
        for fault in faults:
            if not (fault == "drop" or _is_number(fault, 400, 599, int)):
                raise _unusable("faults", fault, "HTTP statuses from 400 to 599, or drop")
        with self._lock:
            # Everything is drawn, used or not, so that a chosen fate changes no other job's.
            job_id = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
            spread = self._dice.random()
            fails = self._dice.random() < self._error_rate
            if duration is None:
                low, high = self._shortest, self._longest
                duration = low + (high - low) * spread if low < high else low  # inf - inf is no number
            if outcome is None:
                outcome = "error" if fails else "completed"
            job = TranslationJob(
                job_id, created_at=self._read_clock(), duration=duration, outcome=outcome, faults=faults
            )
            self.jobs[job_id] = job
            while len(self.jobs) > JOBS_KEPT:
                self.jobs.popitem(last=False)
        log.info("Job %s created", job_id)
        return job

    def query_status(self, job_id: str) -> tuple[str, str | None, Fault | None]:
        """Record one status query; return the job's status, its error message, and the fault to answer with.

        Raises KeyError for a job that was never created or is forgotten.
        """
        with self._lock:
            job = self.jobs[job_id]
            now = self._read_clock()
            job.requests += 1
            if len(job.polls) < POLLS_KEPT:
                job.polls.append(now - job.created_at)
            before, fault = job.status, None
            if job.faults:
                job.faults = job.faults if isinstance(job.faults, list) else list(job.faults)  # a test may set a tuple
                fault = job.faults.pop(0)
            elif self._fault_dice.random() < self._fault_rate:
                fault = 503
            else:
                job.update_status(now)
            after = job.status
            answer = after, job.error_message, fault
            ended = after != before and after in FINAL
            metrics = (job.requests, after, job.total_time, job.delay) if ended else None
        # Logged outside the lock: nobody waits for somebody else's line.
        if after != before:
            log.info("Job %s: %s -> %s", job_id, before, after)
        if metrics:
            log.info("Translation metrics - Requests: %d, Status: %s, Total time: %.2fs, Delay: %.2fs", *metrics)
        return answer


# --- HTTP: what a request must be, and what it gets -----------------------------------------------------------

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110, section 5.6.2
_REQUEST_LINE = re.compile(rb"(%s) ([!-~\x80-\xff]+) (HTTP/[0-9.]+)\r?\n" % _TOKEN)  # RFC 9112, section 3
_FIELD_LINE = re.compile(rb"%s:[\t -~\x80-\xff]*\r?\n" % _TOKEN)  # RFC 9112, section 5; folded lines are obsolete
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.~_!$&'()*+;=%-]+)(:[0-9]*)?")  # RFC 9110, section 7.2
_LENGTH = re.compile(r"[0-9]{1,18}")  # RFC 9112, section 6.3; int() would take "+5" and "5_0"; 18 are plenty
# A backslash too, so that a logged \x0a is always a control character.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), ord("\\"), *range(0x7F, 0xA0))}
_ENDPOINTS = "the endpoints are POST /create_job and GET /status/<job_id>"


class _Refusal(Exception):
    """An error to answer with, raised wherever it is found; while the request is being read, it ends the connection."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] = {}) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class _Headers(http.client.HTTPMessage):
    """Request headers. The email parser must not look for the parts of a multipart body: it is not there yet."""

    def get_content_type(self) -> str:
        return "application/octet-stream"


def _split_target(target: str) -> tuple[str, str]:
    """Return the path and the query of a request target: RFC 9112, section 3.2."""
    if target.startswith("/"):
        path, _, query = target.partition("?")  # urlsplit would take //host/path for a host
        return path, query
    with contextlib.suppress(ValueError):
        parts = urlsplit(target)
        if parts.scheme in ("http", "https") and _HOST.fullmatch(parts.netloc):
            return parts.path, parts.query
    if target == "*":
        return target, ""
    raise _Refusal(400, f"The target must be a path or an http URL, not {target!r:.80}.")


class _RequestHead(NamedTuple):
    """What the header lines of a request say, as far as it matters here."""

    close: bool  # this is the last request on its connection
    length: int  # bytes of the body
    expect: bool  # the client waits for a 100 before it sends them
    wanted: str  # the headers that a browser's page would like to send


@functools.lru_cache(maxsize=8)  # a poller sends the same headers each time: parsing them was two fifths of the work
def _parse_head(version: str, lines: tuple[bytes, ...]) -> _RequestHead:
    """Return what the header lines of a request say, or raise the _Refusal for lines that leave it in doubt.

    The standard library's parser was made for mail: it mends what it is given and hides that it did. So each line
    is checked as it came, and whatever two servers could understand in two ways is refused: RFC 9112, section 11.
    """
    for line in lines:
        if not _FIELD_LINE.fullmatch(line):
            raise _Refusal(400, f"A header must be a line 'Name: value' in printable characters, not {line!r:.80}.")
    headers = http.client.parse_headers(io.BytesIO(b"".join(lines)), _class=_Headers)
    hosts, lengths, codings, options = (
        [value.strip(" \t") for value in headers.get_all(name, [])]
        for name in ("Host", "Content-Length", "Transfer-Encoding", "Connection")
    )
    if len(hosts) > 1 or (not hosts and version == "HTTP/1.1"):
        raise _Refusal(400, f"A request must have one Host header, not {len(hosts)}.")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise _Refusal(400, f"Host must be a host name and perhaps a port, not {hosts[0]!r:.80}.")
    if codings and (lengths or version == "HTTP/1.0"):
        raise _Refusal(400, "Transfer-Encoding goes neither with Content-Length nor with HTTP/1.0.")
    if codings and [coding.lower() for coding in codings] != ["chunked"]:
        raise _Refusal(400, f"Transfer-Encoding must be chunked, once, not {', '.join(codings)!r:.80}.")
    if codings:
        raise _Refusal(411, "A chunked body is not read here: send it with its Content-Length.")
    if lengths and not (len(lengths) == 1 and _LENGTH.fullmatch(lengths[0])):
        raise _Refusal(400, f"Content-Length must be once, in at most 18 digits, not {', '.join(lengths)!r:.80}.")
    return _RequestHead(
        close=version == "HTTP/1.0" or "close" in re.split(r"[ \t,]+", ",".join(options).lower()),
        length=int(lengths[0]) if lengths else 0,
        expect=version == "HTTP/1.1" and headers.get("Expect", "").strip().lower() == "100-continue",
        wanted=headers.get("Access-Control-Request-Headers", "*"),
    )


def _parse_query(query: str, parameters: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Return the values of a query's parameters, or raise the _Refusal that names the one that is not accepted."""
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in parameters:
            accepted = ", ".join(parameters) or "none"
            raise _Refusal(400, f"There is no parameter {name!r:.80} here: accepted are {accepted}.")
        if name in values:
            raise _Refusal(400, f"{name} must be given once, not again as {text!r:.80}.")
        values[name] = parameters[name](text)
    return values


def _number(text: str, kind: Callable[[str], float] = float) -> float | str:
    """Return the number that text is, or text itself, for the service to refuse."""
    with contextlib.suppress(ValueError):
        if re.fullmatch("[0-9A-Za-z.+-]+", text):  # float() would take "1_0" and Arabic digits too
            return kind(text)
    return text


def _faults(text: str) -> list[float | str]:
    """Return the faults in a list like "503,drop"."""
    return [_number(fault, int) for fault in text.split(",")]


class _Route(NamedTuple):
    """One endpoint."""

    path: re.Pattern[str]
    methods: tuple[str, ...]
    parameters: Mapping[str, Callable[[str], Any]]  # of the query, each with what reads it
    answer: str  # the name of the function of _Handler for it


_ROUTES = (
    _Route(
        re.compile("/create_job"),
        ("POST",),
        {"duration": _number, "outcome": str, "faults": _faults},
        "_create_job",
    ),
    _Route(re.compile("/status/([^/]+)"), ("GET", "HEAD"), {}, "_job_status"),
    _Route(re.compile(r"\*"), (), {}, ""),  # OPTIONS * asks about the server; no other method is taken there
)


class _Handler(BaseHTTPRequestHandler):
    """One connection: its requests, one after the other, each read whole and answered once.

    The base class has the loop. For each request it reads the first line into `raw_requestline` and calls
    `parse_request`, which reads the rest; then `do_GET` or the like, which all are `_serve`, and that finds the
    endpoint in `_ROUTES` and ends in `_reply`.
    """

    server: "TrackerServer"  # the next section; it has the service
    raw_requestline: bytes
    protocol_version = "HTTP/1.1"  # keep-alive
    server_version = "tracker"
    timeout = CLIENT_TIMEOUT
    # Or a second packet, such as the next pipelined answer, waits 40 ms for the ACK of the first: gh-108736.
    disable_nagle_algorithm = True
    _head: _RequestHead

    # Reading a request.

    def parse_request(self) -> bool:
        """Read the rest of what raw_requestline began; return False if there is nothing to answer, or no more.

        This replaces the base class's method, which takes HTTP/0.9, ambiguous headers and folded lines.
        """
        line = self.raw_requestline
        self.requestline = line.decode("latin-1").rstrip("\r\n")
        self.command = ""  # not the last request's: after a HEAD, a refusal would have no body
        if line in (b"\r\n", b"\n"):  # RFC 9112, section 2.2: ignore an empty line before a request
            self.close_connection = False  # the base class's loop goes on with the next line
            return False
        try:
            self._read_head(line)
            self._read_body()
        except _Refusal as refusal:
            if self.server.closing.is_set():
                self.close_connection = True  # without a word: what is missing may be what the stop cut off
            else:
                self.send_error(refusal.status, str(refusal))
            return False
        return True

    def _read_head(self, line: bytes) -> None:
        """Read the header lines and set what is known of the request, or raise the _Refusal that refuses it."""
        parts = _REQUEST_LINE.fullmatch(line)
        if not parts:
            raise _Refusal(400, "A request line must be 'METHOD target HTTP/1.1', with single spaces.")
        self.command, target, self.request_version = (part.decode("latin-1") for part in parts.groups())
        if self.request_version not in ("HTTP/1.1", "HTTP/1.0"):
            raise _Refusal(505, f"The version must be HTTP/1.1 or HTTP/1.0, not {self.request_version:.20}.")
        if not hasattr(self, f"do_{self.command}"):
            raise _Refusal(501, f"There is no method {self.command!r:.80}: {_ENDPOINTS}.")
        self.path, self._query = _split_target(target)
        lines: list[bytes] = []
        while (line := self.rfile.readline(LINE_SIZE + 1)) not in (b"\r\n", b"\n"):
            lines.append(line)
            if len(line) > LINE_SIZE or len(lines) >= HEADER_LINES:
                raise _Refusal(431, f"There must be fewer than {HEADER_LINES} headers of {LINE_SIZE} bytes each.")
            if not line:
                raise _Refusal(400, "The request must have an empty line after its headers.")
        self._head = _parse_head(self.request_version, tuple(lines))
        self.close_connection = self._head.close or self.server.closing.is_set()

    def _read_body(self) -> None:
        """Read the body to its end and forget it, so that the next request begins where this one ends."""
        left = self._head.length
        if left and self._head.expect:
            self.handle_expect_100()
        while left:
            piece = self.rfile.read1(min(left, PIECE))
            left -= len(piece)
            if not piece:
                raise _Refusal(400, f"The body must be as long as its Content-Length: {left} bytes are missing.")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request and close, for nobody knows where the next one would begin; the base class sends HTML."""
        self.close_connection = True
        sentence = message or f"The request line must be at most {LINE_SIZE} bytes long."  # only a 414 comes without
        self._reply(code, {"error_message": sentence})

    # Answering it.

    def _serve(self) -> None:
        """Answer one well-formed request; the base class calls it by the name of the method, do_GET and so on."""
        try:
            self._route()
        except _Refusal as refusal:
            self._reply(refusal.status, {"error_message": str(refusal)}, refusal.headers)
        except OSError:
            raise  # the client hung up in the middle of an answer: TrackerServer.handle_error
        except Exception:
            log.exception("A bug met %r", self.requestline)
            self._reply(500, {"error_message": "The service has a bug: its log has the traceback."})

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = _serve

    def _route(self) -> None:
        """Find the endpoint by the path, check method and query, and call it."""
        for route in _ROUTES:
            if found := route.path.fullmatch(self.path):
                break
        else:
            raise _Refusal(404, f"There is nothing at {self.path!r:.80}: {_ENDPOINTS}.")
        if self.command in route.methods:
            getattr(self, route.answer)(*found.groups(), **_parse_query(self._query, route.parameters))
            return
        allow = ", ".join((*route.methods, "OPTIONS"))
        if self.command != "OPTIONS":
            raise _Refusal(405, f"{self.path!r:.80} takes {allow}, not {self.command}.", {"Allow": allow})
        # What a browser asks before a page on another origin may poll: Fetch standard, CORS-preflight.
        cors = {"Access-Control-Allow-Methods": allow, "Access-Control-Allow-Headers": self._head.wanted}
        self._reply(204, None, {"Allow": allow, **cors})

    def _create_job(self, **fate: Any) -> None:
        """POST /create_job"""
        try:
            job = self.server.service.create_job(**fate)
        except ValueError as error:
            raise _Refusal(400, f"{error}.") from None
        self._reply(200, {"job_id": job.job_id}, {"Location": f"/status/{job.job_id}", **self.server.retry_header})

    def _job_status(self, job_id: str) -> None:
        """GET /status/<job_id>"""
        try:
            status, error_message, fault = self.server.service.query_status(job_id)
        except KeyError:
            raise _Refusal(404, f"There is no job {job_id!r:.80}: it was never created, or is forgotten.") from None
        if fault == "drop":
            self.log_request()  # _reply would have
            self.close_connection = True
        elif fault is not None:
            retry_header = self.server.retry_header if fault in (429, 503) else {}
            raise _Refusal(int(fault), f"This is a simulated {fault}: poll again.", retry_header)
        elif status == "error":
            self._reply(200, {"status": status, "error_message": error_message})
        else:
            self._reply(200, {"status": status}, {} if status in FINAL else self.server.retry_header)

    def _reply(
        self, status: int, body: Mapping[str, str | None] | None, headers: Mapping[str, str] = {}
    ) -> None:
        """Log one answer, then write it; the job is up to date by then, so its client may look into `server.jobs`."""
        if self.server.latency:
            self.server.closing.wait(self.server.latency)  # a stop cuts it short
        self.log_request(status)
        content = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{self.protocol_version} {status} {http.client.responses.get(status, '')}",
            f"Server: {self.version_string()}",
            f"Date: {self.date_time_string()}",
            "Cache-Control: no-store",
            "Access-Control-Allow-Origin: *",
            "Access-Control-Expose-Headers: Location, Retry-After",
            *[f"{name}: {value}" for name, value in headers.items()],
        ]
        if body is not None:  # a 204 has no Content-Length: RFC 9110, section 8.6
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        if self.close_connection:
            lines += ["Connection: close"]
        answer = "\r\n".join([*lines, "", ""]).encode("latin-1")
        if self.command != "HEAD":
            answer += content
        self.wfile.write(answer)  # head and body in one packet

    def log_message(self, format: str, *args: Any) -> None:
        """Log as the base class does, but to our log; whatever could forge a line is escaped."""
        message = (format % args).translate(_ESCAPES)
        log.info("%s - - [%s] %s", self.client_address[0], self.log_date_time_string(), message)

    def log_error(self, format: str, *args: Any) -> None:
        """Log nothing: the base class calls this for a client that is silent for CLIENT_TIMEOUT, which is no error."""


# --- The server: connections, and how they end ----------------------------------------------------------------


class _Stop(Exception):
    """Ends the loop of serve_forever."""


class _Run:
    """One run of that loop, past, present or next."""

    def __init__(self) -> None:
        self.begun = threading.Lock()  # taken, for good, by the one thread that serves
        self.stop_asked = False
        self.ended = threading.Event()


class TrackerServer(ThreadingHTTPServer):
    """A service on a port, with a thread for each connection. `create_server` makes one.

    `with server:` serves from a background thread and, at the end of the block, stops and closes everything.
    Or call `serve_forever()`, which blocks until another thread calls `shutdown()`, and then `server_close()`.
    """

    request_queue_size = 1024  # connections that wait to be accepted; 5, the default, loses some of a burst
    allow_reuse_address = os.name != "nt"  # restart at once; on Windows it would let two servers share a port: gh-85307
    allow_reuse_port = False  # 3.14 pre-releases let two servers share a port: gh-127319

    def __init__(
        self,
        address: tuple[str, int],
        service: TranslationService,
        *,
        latency: float = 0.0,
        retry_after: int | None = RETRY_AFTER,
    ) -> None:
        host, port = address
        if not _is_number(port, 0, 65_535, int):
            raise _unusable("port", port, "a whole number from 0, which picks a free one, to 65535")
        if not _is_number(latency, 0, threading.TIMEOUT_MAX):
            raise _unusable("latency", latency, f"a number of seconds from 0 to {threading.TIMEOUT_MAX:.0f}")
        if not (retry_after is None or _is_number(retry_after, 0, math.inf, int)):
            raise _unusable("retry_after", retry_after, "a whole number of seconds, 0 or more, or None")
        self.service = service
        self.latency = latency
        self.retry_header = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.closing = threading.Event()  # set when a connection may answer one request more at most
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._run = _Run()  # the present one, or the next
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(address, _Handler)

    @property
    def jobs(self) -> dict[str, TranslationJob]:
        """The service's jobs, by id."""
        return self.service.jobs

    @property
    def url(self) -> str:
        """Where the service is, without a slash at the end."""
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def _address(self) -> tuple[str, int]:
        """The host and port to connect to: not every system can connect to 0.0.0.0, which means any address."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port

    def __repr__(self) -> str:
        return f"<TrackerServer {self.url}>"

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name, which takes seconds on some machines: gh-79345."""
        try:
            socketserver.TCPServer.server_bind(self)
        except TypeError:  # what a name that IDNA does not know raises
            raise _unusable("host", self.server_address[0], "a host name or an address") from None
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    # The loop that accepts connections.

    def __enter__(self) -> "TrackerServer":
        if self.closing.is_set():
            raise RuntimeError("a closed server cannot serve again: create another")
        self._thread = threading.Thread(target=self.serve_forever, name=repr(self), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closing.set()  # first, so that no loop begins any more
        self.shutdown()
        self._thread.join()
        self.server_close()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve in the caller's thread until `shutdown` is called; if another thread serves, wait for its end.

        Unlike the base class's, a stop does not wait for poll_interval, nor for ever if nothing serves.
        """
        run, following = self._run, _Run()  # made now: below, a second KeyboardInterrupt might come between
        if not run.begun.acquire(blocking=False):
            run.ended.wait()
            return
        try:
            with contextlib.suppress(_Stop):
                self.service_actions()  # leaves if the stop was asked for before
                super().serve_forever(poll_interval)
        finally:
            self._run = following
            run.ended.set()

    def service_actions(self) -> None:
        """Leave the loop if a stop was asked for; the loop calls this each time round."""
        if self._run.stop_asked or self.closing.is_set():
            raise _Stop

    def shutdown(self) -> None:
        """Stop `serve_forever` in another thread and wait until it has; connections stay open.

        If nothing serves now, the next `serve_forever` returns at once: its thread may just be starting.
        """
        run = self._ask_to_stop()
        # The loop takes `begun`, then reads `stop_asked`; this did the reverse, so that at least one sees the other.
        if run.begun.locked():
            run.ended.wait()

    def _ask_to_stop(self) -> _Run:
        """Make `serve_forever` return soon. A signal handler may call this: it takes no lock and imports nothing."""
        run = self._run
        if not run.stop_asked:  # or a flood of signals would recurse
            run.stop_asked = True
            # A connection wakes the loop; if none can be made, the loop looks after poll_interval.
            with contextlib.suppress(OSError), socket.socket(self.address_family) as knock:
                knock.settimeout(GRACE)
                knock.connect(self._address)
        return run

    # Connections.

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; without a descriptor for it, wait for one instead of trying again at once."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.05)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection from a thread of its own, and remember both."""
        # A daemon, so that a program that forgets to close the server can still end.
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        thread.start()
        self._connections = {t: s for t, s in self._connections.items() if t.is_alive()}
        self._connections[thread] = request

    def shutdown_request(self, request: Any) -> None:
        """Close a connection at the end of its thread, such that the last answer arrives: RFC 9112, section 9.6.

        Closed with bytes unread, it would be reset, and the client might lose what it has not read either.
        """
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(GRACE)
            deadline = time.monotonic() + GRACE
            while request.recv(PIECE) and time.monotonic() < deadline and not self.closing.is_set():
                pass
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a bug; a client that hangs up (an OSError) is not one."""
        if not isinstance(sys.exc_info()[1], OSError):
            log.exception("A bug met a connection from %s", client_address[0])

    def server_close(self) -> None:
        """Stop listening, let replies in flight arrive, and close every connection; call it after `shutdown`.

        It takes milliseconds, or twice GRACE if a client does not read what it is sent or goes on sending.
        """
        self.closing.set()
        super().server_close()
        # First the reading side: an idle connection ends at once, a busy one when it has answered what came before.
        # Then both sides, of those that have not ended in GRACE.
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            deadline = time.monotonic() + GRACE
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(how)
            for thread in self._connections:
                thread.join(max(0, deadline - time.monotonic()))


def create_server(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    duration: tuple[float, float] = DURATION,
    error_rate: float = ERROR_RATE,
    fault_rate: float = 0.0,
    seed: int | None = None,
    clock: Clock | None = None,
    latency: float = 0.0,
    retry_after: int | None = RETRY_AFTER,
) -> TrackerServer:
    """Return a server that is bound, so that its `url` is valid, but does not serve yet: use `with`.

    host, port   where to listen; port 0 picks a free one
    latency      seconds before each answer
    retry_after  whole seconds for the header of that name; None leaves it out

    The other options are those of `TranslationService`. Raises OSError if it cannot listen there, ValueError for
    an option out of range. The caller closes it.
    """
    service = TranslationService(
        duration=duration, error_rate=error_rate, fault_rate=fault_rate, seed=seed, clock=clock
    )
    return TrackerServer((host, port), service, latency=latency, retry_after=retry_after)


# --- The command line -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the usage."""
        self.exit(2, f"tracker.py: {message.translate(_ESCAPES)}\n")


class _LogFile(logging.FileHandler):
    """server.log, which becomes server.log.1 when it is full.

    RotatingFileHandler looks up the file's size by name before each line, which took a fifth of a request's time, and
    it removes the old file before it knows whether the new one can take its name.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; before that, rename a full file."""
        try:
            # A pipe has no length, and on Windows a file that another program shows keeps its name: go on with it.
            with contextlib.suppress(OSError):
                if self.stream and self.stream.tell() > LOG_SIZE:
                    self.close()  # writing opens it again
                    os.replace(self.baseFilename, self.baseFilename + ".1")
            super().emit(record)
        except Exception:
            self.handleError(record)


def _command_line() -> _Parser:
    """Return the parser of the command line."""
    parser = _Parser(prog="tracker.py", description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    for option, default, kind, metavar, meaning in (
        ("--host", "127.0.0.1", str, "HOST", "address to listen on"),
        ("--port", 8000, int, "PORT", "port to listen on; 0 picks a free one"),
        ("--duration", DURATION, float, ("LOW", "HIGH"), "seconds that a job takes, drawn between the two"),
        ("--error-rate", ERROR_RATE, float, "P", "chance that a job ends as error"),
        ("--fault-rate", 0.0, float, "P", "chance that a status query is answered 503"),
        ("--latency", 0.0, float, "S", "seconds before each answer"),
        ("--retry-after", RETRY_AFTER, int, "S", "whole seconds for the Retry-After header"),
        ("--seed", None, int, "N", "the same seed gives the same jobs"),
        ("--log-file", "server.log", str, "FILE", "where to append the log"),
    ):
        nargs = len(metavar) if isinstance(metavar, tuple) else None
        described = f"{meaning} (default %(default)s)"
        parser.add_argument(option, default=default, type=kind, metavar=metavar, nargs=nargs, help=described)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM, and return 0; exit with 2 and one line on standard error if it cannot."""
    parser = _command_line()
    options = vars(parser.parse_args(argv))
    log_name = options.pop("log_file")
    try:
        server = create_server(**options)
    except OSError as error:
        parser.error(f"cannot listen on {options['host']} port {options['port']}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    try:
        log_file = _LogFile(log_name, encoding="utf-8")
    except OSError as error:
        server.server_close()
        parser.error(f"cannot write the log {log_name}: {error.strerror}")
    for handler in (log_file, logging.StreamHandler()):
        handler.setFormatter(logging.Formatter("%(levelname)s - %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    # Our lines show no caller, thread or process, so do not look them up: logging HOWTO, "Optimization".
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for signum in (signal.SIGINT, signal.SIGTERM):  # also where a script started this with SIGINT ignored
        # Not a KeyboardInterrupt: that may strike anywhere, and a second one in the midst of the clean-up.
        signal.signal(signum, lambda *_: server._ask_to_stop())
    print(
        f"Listening on {server.url} (Ctrl-C to stop). To create a job and to poll it:",
        f"  curl -X POST {server.url}/create_job",
        f"  curl {server.url}/status/JOB_ID",
        sep="\n",
        flush=True,
    )
    server.serve_forever()
    server.server_close()
    with contextlib.suppress(OSError):  # the disk may be full
        log_file.close()
    return 0


if __name__ == "__main__":
    os._exit(main())  # without waiting for a thread that is stuck writing to a console
