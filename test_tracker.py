# /// script
# requires-python = ">=3.10"
# dependencies = ["pytest"]
# ///
"""The behavior of tracker.py, in the order in which a user meets it.

Tests advance a manual clock, and each server listens on a port of its own.
`uv run test_tracker.py` runs them too.
"""

import contextlib
import doctest
import errno
import gc
import http.client
import inspect
import itertools
import json
import logging
import math
import os
import pathlib
import re
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from email.utils import parsedate_to_datetime
from fractions import Fraction
from http import HTTPStatus
from unittest import mock

import pytest

import tracker
from tracker import (
    ManualClock,
    Poll,
    TrackerServer,
    TranslationJob,
    TranslationService,
    UnknownJob,
    create_server,
)

HERE = pathlib.Path(__file__).parent
LOGGER = logging.getLogger("tracker")
not_on_windows = pytest.mark.skipif(
    os.name == "nt", reason="Windows has no fork, poll, terminals or signals like these"
)


# --- Helpers --------------------------------------------------------------------------

CHUNKED = "Transfer-Encoding: chunked"
CLOSE = "Connection: close"


def request(*fields, start="POST /create_job", version="1.1", host="Host: localhost"):
    """Return the bytes of a request without a body."""
    lines = [f"{start} HTTP/{version}", host, *fields]
    return "".join(f"{line}\r\n" for line in [*filter(None, lines), ""]).encode()


def poll_request(job, *fields):
    """Return the bytes of a status request."""
    return request(*fields, start=f"GET /status/{job.job_id}")


# The response repeats the field: 300 unread responses fill all buffers.
LARGE = request("Access-Control-Request-Headers: " + "x" * 60_000, start="OPTIONS *")


def connect(server):
    """Return a new connection to a server, or to a process that has its `url`."""
    url = urllib.parse.urlsplit(server.url)
    return socket.create_connection((url.hostname, url.port), timeout=5)


def read_responses(client):
    """Return the responses on a connection until the server closes it.

    They are header fields, with `status`, `body` and `json` as attributes.
    """
    responses = []
    with client.makefile("rb") as stream:
        while line := stream.readline():
            assert line.startswith(b"HTTP/1.1 ")
            response = http.client.parse_headers(stream)
            response.status = int(line[9:12])
            response.body = stream.read(int(response.get("Content-Length", 0)))
            response.json = json.loads(response.body or "null")
            responses.append(response)
    return responses


def exchange(server, data):
    """Return the responses to bytes on a new connection."""
    with connect(server) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return read_responses(client)


def fetch(server, start, *fields):
    """Return the response to a request, which starts like "GET /path"."""
    (response,) = exchange(server, request(*fields, start=start))
    return response


def create_job(server, query=""):
    """Return a job that was created over HTTP."""
    return server.jobs[fetch(server, f"POST /create_job{query}").json["job_id"]]


def poll(server, job):
    """Return the response to a poll."""
    return fetch(server, f"GET /status/{job.job_id}")


def statuses(responses):
    """Return the status of each response."""
    return [response.status for response in responses]


def in_threads(function, arguments):
    """Return the results of calls in eight threads."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, arguments))


def wait_until(condition):
    """Wait for a condition, for at most 5 s."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the condition is still false after 5 s"
        time.sleep(0.001)


def rejects_connections(server):
    """Return whether the port of a server rejects connections."""
    with contextlib.suppress(ConnectionRefusedError), connect(server):
        return False
    return True


def count_resources():
    """Return the number of threads and of open sockets in this process."""
    gc.collect()
    sockets = [thing for thing in gc.get_objects() if type(thing) is socket.socket]
    return threading.active_count(), sum(sock.fileno() >= 0 for sock in sockets)


class Three:
    """An integer like numpy.int64: no int, and other threads run while it converts."""

    def __index__(self):
        time.sleep(0.0001)
        return 3

    def __repr__(self):
        return "Three()"


def slow_counter():
    """Return a clock that counts its readings; some take 2 ms, to expose races."""
    readings = itertools.count()

    def read():
        reading = next(readings)
        time.sleep(reading % 3 / 1000)
        return reading

    return read


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def server(clock):
    with create_server(duration=30, error_rate=0, seed=1, clock=clock) as server:
        yield server


@pytest.fixture
def log_lines(caplog):
    """A function that returns the log; some lines take up to 3 ms, to expose races."""

    def delay(record):
        time.sleep(record.msecs % 3 / 1000)
        return True

    caplog.set_level(logging.INFO, "tracker")
    LOGGER.addFilter(delay)
    yield lambda: [f"{x.levelname} - {x.getMessage()}" for x in caplog.records]
    LOGGER.removeFilter(delay)


# --- Jobs and clocks ------------------------------------------------------------------


def test_create_job_returns_id_location_and_retry_after(server):
    response = fetch(server, "POST /create_job")
    (job_id,) = server.jobs

    assert response.status == 200
    assert response.body == b'{"job_id": "%b"}\n' % job_id.encode()
    assert response["Content-Type"] == "application/json"
    assert response["Location"] == f"/status/{job_id}"
    assert response["Retry-After"] == "1"
    assert uuid.UUID(job_id).version == 4


@pytest.mark.parametrize(
    "duration, elapsed, status",
    [
        ("30", 5.99, "pending"),
        ("30", 6, "in_progress"),
        ("30", 29.99, "in_progress"),
        ("30", 30, "completed"),
        ("0", 0, "completed"),
        ("inf", 1e9, "pending"),
        ("1.1", 0.22, "in_progress"),
        ("7.1234561234", 7.1234561234, "completed"),
    ],
)
def test_status_depends_on_elapsed_time_and_never_goes_back(
    server, clock, duration, elapsed, status
):
    job = create_job(server, f"?duration={duration}")
    clock.now = elapsed
    first = poll(server, job)
    clock.now = 0
    second = poll(server, job)

    assert first.json == second.json == {"status": status}
    assert job.updated_at == (0 if status == "pending" else elapsed)
    assert job.error_message is None


@pytest.mark.parametrize(
    "option, value", [(0, "0"), (Three(), "3"), (None, None)], ids=repr
)
def test_unfinished_and_429_503_responses_carry_retry_after(option, value):
    with create_server(
        duration=5, tick=1, faults=[429, 503, 500], retry_after=option
    ) as server:
        job = server.service.create_job()
        responses = exchange(server, request() + poll_request(job) * 5)
    values = [response["Retry-After"] for response in responses]

    assert statuses(responses) == [200, 429, 503, 500, 200, 200]
    assert values == [value, value, value, None, value, None]


def test_job_id_matches_exactly_in_upper_case_and_percent_encoded(server):
    job_id = create_job(server).job_id
    server.jobs["Job/1"] = TranslationJob("Job/1", duration=9)
    paths = job_id, job_id.upper(), job_id.replace("-", "%2D"), "Job%2F1?_=123"
    for path in paths:
        assert fetch(server, f"GET /status/{path}").json == {"status": "pending"}
    server.service.create_job = lambda: server.jobs["Job/1"]

    assert fetch(server, "POST /create_job")["Location"] == "/status/Job%2F1"
    assert fetch(server, f"GET /status%2F{job_id}").status == 404


def test_unknown_job_is_404_that_says_so(server):
    response = fetch(server, "GET /status/No-1")

    assert response.status == 404
    assert "Unknown job 'No-1'" in response.json["error_message"]


def test_head_is_not_counted_as_a_poll(server):
    job = create_job(server, "?faults=503")
    paths = "/", f"/status/{job.job_id.upper()}", "/status/none"
    responses = [fetch(server, f"HEAD {path}") for path in paths]

    assert statuses(responses) == [200, 200, 404]
    assert {response.body for response in responses} == {b""}
    assert (job.requests, job.faults) == (0, [503])
    _, error = exchange(server, request(start="HEAD /status/x") + b"malformed\r\n")
    assert error.body


def test_only_the_newest_100_000_jobs_are_kept(server):
    server.jobs.update(dict.fromkeys(range(99_999)))
    created = [create_job(server).job_id, create_job(server).job_id]

    assert list(server.jobs) == [*range(1, 99_999), *created]


def test_job_evicted_while_its_poll_waits_is_unknown(server, monkeypatch):
    first, last, reading = create_job(server), create_job(server), threading.Event()

    def evict_slowly():
        reading.set()
        time.sleep(0.01)
        server.jobs.pop(last.job_id, None)
        return 0

    monkeypatch.setattr(server.service, "clock", evict_slowly)
    with ThreadPoolExecutor() as pool:
        pool.submit(poll, server, first)
        reading.wait(5)
        assert poll(server, last).status == 404


def test_service_returns_named_poll_or_raises_unknown_job():
    service = TranslationService(duration=0)
    job = service.create_job(outcome="error", faults=[503])
    first = service.query_status(job.job_id)
    last = service.query_status(job.job_id)

    assert first == Poll(status="pending", error_message=None, fault=503)
    assert last == ("error", job.error_message, None)
    assert issubclass(UnknownJob, KeyError)
    with pytest.raises(UnknownJob):
        service.query_status("none")


def test_fields_may_be_assigned_between_polls(server):
    job = create_job(server)
    job.faults, job.duration, job.outcome = [500], 0, "error"
    fault, first, second = exchange(server, poll_request(job) * 3)
    message, job.error_message = job.error_message, "The disk is full."

    assert fault.status == 500
    assert first.json == second.json == {"status": "error", "error_message": message}
    assert re.fullmatch(r"[A-Z].{20,}\.", message)
    assert poll(server, job).json["error_message"] == "The disk is full."


def test_job_has_defaults_for_tests_that_insert_one():
    assert TranslationJob("x") == TranslationJob(
        "x", "pending", 0, 0, None, 0, "completed", [], 0, [], None, None
    )


def test_assigned_decimal_never_leaves_a_job_half_finished(server, clock):
    job = create_job(server)
    job.duration = Decimal(30)
    clock.now = 31
    poll(server, job)
    result = job.requests, job.status, job.total_time, job.delay

    assert result in [(0, "pending", None, None), (1, "completed", 31, 1)]


@pytest.mark.parametrize("seconds", [-1, math.nan, 1_000_000_000.5])
def test_manual_clock_rejects_what_is_no_positive_number(clock, seconds):
    with pytest.raises(ValueError, match="^seconds must be .*, not"):
        clock.sleep(seconds)


def test_threads_on_one_manual_clock_lose_no_advance(clock):
    in_threads(clock.advance, [Three()] * 200)

    assert clock.now == 600


def test_patched_time_affects_neither_jobs_nor_date(monkeypatch):
    monkeypatch.setattr(LOGGER, "disabled", True)
    fake = mock.Mock(side_effect=[946684800.0])
    with monkeypatch.context() as patch:
        patch.setattr("time.time", fake)
        patch.setattr("time.monotonic", fake)
        with create_server() as server:
            date = fetch(server, "POST /create_job", CLOSE)["Date"]

    assert not fake.called
    now = parsedate_to_datetime(date).timestamp()
    assert now == pytest.approx(time.time(), abs=4)


@pytest.mark.parametrize("error", [OSError, KeyError, ValueError, StopIteration])
def test_exception_of_the_clock_is_500_and_connection_stays_open(
    server, monkeypatch, caplog, error
):
    job = create_job(server)
    readings = mock.Mock(side_effect=[error("no time"), error("no time"), Decimal(3)])
    monkeypatch.setattr(server.service, "clock", readings)
    responses = exchange(server, request() + poll_request(job) * 2)

    assert statuses(responses) == [500, 500, 200]
    assert job.polls == [3.0]
    assert caplog.text.count("Traceback") == 2


def test_tick_advances_a_job_at_each_of_its_own_polls():
    with create_server(duration=0.3, tick=0.1, error_rate=0) as server:
        job, other = create_job(server, "?faults=503"), create_job(server)
        _, *responses = exchange(server, poll_request(job) * 3)
        poll(server, other)

    assert [x.json["status"] for x in responses] == ["in_progress", "completed"]
    assert job.polls == [0.1, 0.2, 0.3]
    assert other.polls == [0.1]


# --- Measuring the client -------------------------------------------------------------


@pytest.mark.parametrize(
    "duration, pause, polls, delay",
    [
        (30, 15.5, [15.5, 31], 1),
        (1, 0.1, [tenth / 10 for tenth in range(1, 11)], 0),
        (0.95, 0.5000004, [0.5, 1.000001], 0.050001),
    ],
    ids=["late", "tenths", "microseconds"],
)
def test_requests_polls_total_time_and_delay_are_recorded(
    server, clock, duration, pause, polls, delay
):
    job = server.service.create_job(duration=duration)
    while job.delay is None:
        clock.sleep(pause)
        poll(server, job)
    assert job.polls == polls
    # A finished job does not change any more.
    job.duration = clock.now = 100
    poll(server, job)

    assert job.status == "completed"
    assert job.requests == len(polls) + 1
    assert job.total_time == polls[-1]
    assert job.delay == delay


def test_poll_is_recorded_before_its_response_and_1000_times_are_kept(server):
    job = create_job(server)
    with connect(server) as client:
        for count in range(1, 1002):
            client.sendall(poll_request(job))
            # One packet holds the whole response.
            assert client.recv(65536).endswith(b'{"status": "pending"}\n')
            assert job.requests == count
            assert len(job.polls) == min(count, 1000)


def test_polls_of_many_threads_are_atomic(log_lines):
    clock = slow_counter()
    service = TranslationService(duration=0, clock=clock)
    jobs = [service.create_job() for _ in range(20)]
    polls = in_threads(service.query_status, [job.job_id for job in jobs] * 4)

    assert polls == polls[:20] * 4
    # No line comes between a transition and its metrics.
    metrics = [" - Requests: 1, " in line for line in log_lines()[20:]]
    assert metrics == [False, True] * 20
    assert all(job.polls == sorted(job.polls) for job in jobs)
    # The clock was read once per job and once per poll.
    assert clock() == 20 + 80


def test_jobs_of_many_threads_are_created_atomically(log_lines):
    serial, parallel = (
        TranslationService(seed=1, error_rate=0.5, clock=slow_counter())
        for _ in range(2)
    )
    jobs = [serial.create_job() for _ in range(20)]
    in_threads(lambda _: parallel.create_job(), jobs)
    lines = [f"INFO - Job {job.job_id} created" for job in jobs]

    assert list(parallel.jobs.values()) == jobs
    assert log_lines() == lines * 2


def get_defaults(function):
    """Return the default of each argument; each must have a type."""
    parameters = inspect.signature(function).parameters.values()
    assert inspect.Parameter.empty not in [x.annotation for x in parameters]
    return {parameter.name: parameter.default for parameter in parameters}


def test_each_option_is_named_with_its_type_and_default():
    service_defaults = {
        "duration": (5, 15),
        "error_rate": 0.1,
        "faults": (),
        "fault_rate": 0,
        "seed": None,
        "clock": time.monotonic,
        "tick": None,
    }
    server_defaults = {"host": "127.0.0.1", "port": 0, "latency": 0, "retry_after": 1}

    assert get_defaults(TranslationService) == service_defaults
    assert get_defaults(create_server) == service_defaults | server_defaults
    server_defaults["service"] = inspect.Parameter.empty
    assert get_defaults(TrackerServer) == server_defaults


# --- Options --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 3.0, Decimal(3), Fraction(3), Three()], ids=repr)
def test_any_real_number_works_until_the_job_ends(number):
    create_server(latency=number).server_close()
    service = TranslationService(tick=number, error_rate=0, clock=lambda: number)
    service.duration = number
    for duration in None, number, (number, number):
        job = service.create_job(duration=duration)
        assert service.query_status(job.job_id).status == "completed"
        assert job.created_at == job.total_time == 3
        assert job.delay == 0
        assert type(job.duration) is type(job.updated_at) is float


@pytest.mark.parametrize(
    "option, values",
    [
        ("host", [30]),
        ("port", [-1, 65536]),
        ("duration", ["x", -1, math.nan, (9, 1), (1, 2, 3), ()]),
        ("error_rate", [-0.1, 1.1]),
        ("faults", [399, 600, "5_03", ["stop"]]),
        ("fault_rate", [-0.1, 1.1]),
        ("tick", [0, -1, 10**400]),
        ("seed", [1.5]),
        ("clock", [5]),
        ("latency", [-1, 3601]),
        ("retry_after", [1.5, -1]),
    ],
)
def test_invalid_option_is_named_with_its_value(option, values):
    for value in values:
        with pytest.raises((ValueError, TypeError)) as caught:
            create_server(**{option: value})

        assert caught.type in (ValueError, TypeError)
        kind = "an integer" if option in ("port", "seed", "retry_after") else ".{5,}"
        assert re.match(f"{option} must be {kind}.*, not ", str(caught.value))
        assert repr(value)[:60] in str(caught.value)


def test_invalid_option_leaves_no_socket_open(server):
    before = count_resources()
    for options in (30,), ("127.0.0.1", -1), ("127.0.0.1", server.server_port):
        with pytest.raises((ValueError, TypeError, OSError)):
            create_server(*options)

    assert count_resources() == before


def test_invalid_argument_of_create_job_creates_no_job():
    service = TranslationService()
    for argument in "duration", "outcome", "faults":
        with pytest.raises(ValueError, match=f"^{argument} must be .*, not 'x'"):
            service.create_job(**{argument: "x"})

    assert service.jobs == {}


def test_rates_are_probabilities_and_durations_fill_their_range():
    service = TranslationService(error_rate=0.25, fault_rate=0.5, seed=7)
    jobs = [service.create_job() for _ in range(2000)]
    faults = [service.query_status(job.job_id).fault for job in jobs]

    assert 400 < [job.outcome for job in jobs].count("error") < 600
    assert 900 < faults.count(503) < 1100
    assert {int(job.duration) for job in jobs} == set(range(5, 15))


def run_jobs(polls=0, first=None, seed=42, **options):
    """Return IDs, outcomes, messages and durations of 100 jobs; and their faults."""
    service = TranslationService(seed=seed, error_rate=0.5, fault_rate=0.5, **options)
    jobs, faults = [], []
    for overrides in [first or {}, *[{}] * 99]:
        job = service.create_job(**overrides)
        faults += [service.query_status(job.job_id).fault for _ in range(polls)]
        job.update_status(math.inf)
        jobs.append((job.job_id, job.outcome, job.error_message, job.duration))
    return *zip(*jobs, strict=True), faults


def test_same_seed_gives_the_same_jobs_and_faults():
    assert run_jobs(polls=1) == run_jobs(polls=1)
    assert run_jobs(seed=None) != run_jobs(seed=None)
    # None of completed jobs, and more than one message of failed ones.
    assert len(set(run_jobs()[2])) > 2


@pytest.mark.parametrize(
    "overrides",
    [{"duration": (1, 2)}, {"outcome": "error"}, {"faults": [500]}],
    ids=str,
)
def test_overrides_do_not_change_later_jobs(overrides):
    changed = run_jobs(first=overrides)

    assert [values[1:] for values in changed] == [values[1:] for values in run_jobs()]


def test_polls_and_duration_change_neither_ids_nor_outcomes():
    jobs = run_jobs()

    assert run_jobs(polls=3)[:4] == jobs[:4]
    for duration in 0, 30, (0, 1), math.inf:
        assert run_jobs(duration=duration)[:3] == jobs[:3]


def test_random_faults_are_independent_of_outcomes():
    _, outcomes, _, _, faults = run_jobs(polls=3)
    for number in range(3):
        pairs = list(zip(outcomes, faults[number::3], strict=True))
        # Half of the 100 jobs fail, and half of the polls get a fault.
        assert 10 < pairs.count(("error", 503)) < 40


# --- Outcomes and faults --------------------------------------------------------------


def test_query_overrides_duration_outcome_and_faults():
    with create_server(error_rate=1, faults=[418]) as server:
        job = create_job(
            server, "?duration=3&outcome=completed&faults=500,%20drop&faults=429"
        )
        other = create_job(server, "?faults=&duration=7,8")
        default = create_job(server)

    assert job.duration == 3
    assert job.outcome == "completed"
    assert job.faults == [500, "drop", 429]
    assert 7 < other.duration < 8
    assert other.faults == []
    assert default.outcome == "error"
    assert default.faults == [418]


@pytest.mark.parametrize(
    "parameter",
    [
        "duration=-1",
        "duration=nan",
        "duration=",
        "duration=9,1",
        "outcome=fine",
        "outcome=",
        "faults=600",
        "faults=5_03",
        "faults=٥٠٣",
        "faults=" + "5" * 5000,
    ],
    ids=lambda text: text[:20],
)
def test_invalid_parameter_is_400_and_creates_no_job(server, parameter):
    query = urllib.parse.quote(parameter, safe="=")
    response = fetch(server, f"POST /create_job?{query}")
    message = response.json["error_message"]
    name, _, value = parameter.partition("=")

    assert response.status == 400
    assert server.jobs == {}
    assert message.startswith(f"{name} must be ")
    assert value[:9] in message
    assert len(message) < 300


def test_unknown_parameter_is_400_that_lists_the_known_ones(server):
    response = fetch(server, "POST /create_job?durations=3")
    message = response.json["error_message"]

    assert response.status == 400
    assert server.jobs == {}
    assert "'durations'" in message
    assert re.search("duration.*outcome.*faults", message)


@pytest.mark.parametrize(
    "faults, expected",
    [
        (503, [503]),
        (HTTPStatus.SERVICE_UNAVAILABLE, [503]),
        ([HTTPStatus.SERVICE_UNAVAILABLE, "hang"], [503, "hang"]),
        (" 503, drop ", [503, "drop"]),
        ((400, 599), [400, 599]),
    ],
    ids=repr,
)
def test_faults_are_a_sequence_a_string_or_a_single_fault(faults, expected):
    assert TranslationService(faults=faults).create_job().faults == expected
    service = TranslationService(faults=[418])
    assert service.create_job(faults=faults).faults == expected


def test_each_job_gets_its_own_copy_of_the_faults():
    faults = [503, "drop"]
    service = TranslationService(faults=faults)
    jobs = service.create_job(), service.create_job(faults=faults)
    faults.clear()
    for job in jobs:
        service.query_status(job.job_id)
        assert job.faults == ["drop"]

    assert service.create_job().faults == [503, "drop"]


@pytest.mark.parametrize(
    "status, name, value",
    [
        (401, "WWW-Authenticate", 'Bearer realm="tracker"'),
        (407, "Proxy-Authenticate", 'Bearer realm="tracker"'),
        (405, "Allow", "GET, HEAD, OPTIONS"),
        (426, "Upgrade", "HTTP/2.0"),
        (426, "Connection", "Upgrade"),
    ],
)
def test_fault_has_required_header_and_does_not_change_status(
    server, clock, status, name, value
):
    job = create_job(server, f"?faults={status},{status}")
    clock.now = 30
    requests = poll_request(job) + poll_request(job, CLOSE)
    first, last = exchange(server, requests)

    assert first.status == status
    assert first[name] == value
    assert last.get_all("Connection") == ["close"]
    assert job.polls == [30, 30]
    assert job.status == "pending"


def test_drop_closes_the_connection_without_a_response(server):
    job = create_job(server, "?faults=drop")

    assert exchange(server, poll_request(job) + request()) == []
    assert job.requests == len(server.jobs) == 1


def test_hang_ignores_pipelined_requests_until_the_client_closes(server):
    job = create_job(server, "?faults=hang")
    _, before = count_resources()
    with connect(server) as client:
        client.settimeout(0.05)
        for _ in range(2):
            client.sendall(poll_request(job) + request())
            wait_until(lambda: job.requests)
            with pytest.raises(TimeoutError):
                client.recv(1)
    wait_until(lambda: count_resources()[1] == before)

    assert job.requests == len(server.jobs) == 1


# --- HTTP: routes and headers ---------------------------------------------------------


@pytest.mark.parametrize("start", ["GET /", "GET http://localhost?x=/y", "GET /?x"])
def test_root_lists_the_endpoints(server, start):
    assert fetch(server, start).json == {
        "endpoints": ["POST /create_job", "GET /status/<job_id>"]
    }


@pytest.mark.parametrize(
    "allow, start",
    [
        (None, "POST //create_job"),
        (None, "CONNECT a:443"),
        ("POST, OPTIONS", "GET /create_job"),
        ("POST, OPTIONS", "BREW /create_job?x"),
        ("GET, HEAD, OPTIONS", "DELETE /status/x"),
    ],
)
def test_unknown_path_or_method_keeps_the_connection_open(server, allow, start):
    data = request("Content-Length: 6", start=start) + b"a body" + request()
    response, created = exchange(server, data)
    message = response.json["error_message"]

    assert response.status == (405 if allow else 404)
    assert response["Allow"] == allow
    assert (allow or "POST /create_job, GET /status/<job_id>") in message
    assert created.status == 200


@pytest.mark.parametrize(
    "start",
    [
        "POST /create_job",
        "GET /status/broken",
        "GET /status/fault",
        "OPTIONS *",
    ],
)
def test_every_response_has_date_cache_and_cors_headers(server, start):
    server.jobs.update(fault=TranslationJob("fault", faults=[503] * 5), broken=None)
    requests = (
        request(start=start)
        + request("Origin:", start=start)
        + request("Origin: http://a:3000", start=start)
    )
    responses = exchange(server, requests * 2 + b"malformed\r\n")

    origins = [x["Access-Control-Allow-Origin"] for x in responses]
    assert origins == ["*", "*", "http://a:3000"] * 2 + ["*"]
    credentials = [x["Access-Control-Allow-Credentials"] for x in responses]
    assert credentials == [None, None, "true"] * 2 + [None]
    for response in responses:
        assert response["Cache-Control"] == "no-store"
        assert response["Date"].endswith(" GMT")
        assert response["Access-Control-Expose-Headers"] == "Location, Retry-After"


def test_preflight_allows_what_it_asks_for(server):
    plain = fetch(server, "OPTIONS /create_job")
    preflight = fetch(server, "OPTIONS *", "Access-Control-Request-Headers: X-Key")

    assert plain.status == 204
    assert plain.body == b""
    assert plain["Allow"] == plain["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert plain["Access-Control-Allow-Headers"] == "*"
    assert preflight["Allow"] == "GET, HEAD, OPTIONS"
    assert preflight["Access-Control-Allow-Headers"] == "X-Key"


def test_response_that_cannot_be_encoded_is_500(server, log_lines):
    server.jobs["x"] = TranslationJob("x", "error", error_message=b"x")
    responses = exchange(server, request(start="GET /status/x") + request())
    error, access, *_ = log_lines()

    assert statuses(responses) == [500, 200]
    assert error.startswith("ERROR - ")
    assert access.endswith(' "GET /status/x HTTP/1.1" 500 -')


# --- HTTP: grammar --------------------------------------------------------------------


def assert_accepted(server, first):
    """Assert that a connection stays open after a request that creates a job."""
    last = request("Connection: Keep-Alive, Close")
    responses = exchange(server, first + last + request())
    assert statuses(responses) == [200, 200]
    assert [response["Connection"] for response in responses] == [None, "close"]
    # A request after `Connection: close` is not read.
    assert len(server.jobs) == 2


def assert_rejected(server, malformed, status=400):
    """Assert that the connection closes after a malformed request; return why."""
    (response,) = exchange(server, malformed + request())
    assert (response.status, response["Connection"]) == (status, "close")
    assert server.jobs == {}
    message = response.json["error_message"]
    assert re.fullmatch(r"[A-Z].{20,}\.", message)
    return message


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\n" + request().replace(b"\r", b""),
        request(version="1.2"),
        request(start="POST http://[::1]/create_job", host="Host: [::1]:80"),
        request("Y:", "X: caf\xe9\t\xff", host="hOST: a \t"),
        request("cOnTeNt-LeNgTh:10 \t", "Expect: 100-continue") + b"GET / HTTP",
    ],
    ids=["lone LF", "HTTP/1.2", "absolute target", "unusual fields", "body"],
)
def test_valid_request_keeps_the_connection_open(server, data):
    assert_accepted(server, data)


@pytest.mark.parametrize(
    "line",
    [
        "/",
        "POST /create_job",
        "POST /create_job HTTP/1.1 ",
        "POST /create_job HTTP/1.1\r\r",
        "\rPOST /create_job HTTP/1.1",
        "POST /\x01 HTTP/1.1",
        "POST /\rX HTTP/1.1",
        "POST x HTTP/1.1",
        "POST /create_job http/1.1",
        "\x16\x03\x01",
    ],
)
def test_malformed_request_line_is_rejected_at_its_end(server, line):
    with connect(server) as client:
        client.sendall(f"\r\n{line}\n".encode())
        assert statuses(read_responses(client)) == [400]


@pytest.mark.parametrize(
    "field",
    [
        "Content-Length : 0",
        "Content-Length: +5",
        "Content-Length: ٥",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 1234567890123456789",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0",
        "X: 1\r\n 2",
        "X: \0",
        "X: 1\rY: 2",
        "\r",
        "Host: a",
    ],
)
def test_malformed_field_is_rejected(server, field):
    assert_rejected(server, request(field))


@pytest.mark.parametrize("host", ["", "Host:", "Host: a/b", "Host: a, b", "Host: []"])
def test_missing_or_invalid_host_is_rejected(server, host):
    assert_rejected(server, request(host=host))


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b" a" * 30_000 + b"\r\n\r\n",
        b"GET http://" + b"/" * 60_000 + b"\r\n\r\n",
        request(host="Host: " + "a:" * 30_000),
        request(host="Host: [" + ":" * 60_000),
        request("X" * 60_000),
        request(CHUNKED) + b"0" * 60_000 + b"\r\n",
    ],
    ids=["spaces", "slashes", "colons", "IPv6", "field", "chunk"],
)
def test_60_000_bytes_that_match_no_pattern_are_rejected(server, data):
    assert_rejected(server, data)


def test_request_head_is_limited_to_64_kib_and_100_fields(server):
    padding = "x" * (65_536 - len(request("X: ")))

    assert statuses(exchange(server, b"x" * 65_536)) == [414]
    assert_rejected(server, request(f"X: {padding}x"), 431)
    assert_rejected(server, request(*["X: 1"] * 100), 431)
    exact = request(f"X: {padding}") + request(*["X: 1"] * 99)
    assert statuses(exchange(server, exact)) == [200, 200]


def test_other_major_version_is_505(server):
    assert_rejected(server, request(start="PRI *", version="2.0"), 505)


def test_http_1_0_connection_closes_after_one_response(server):
    assert_rejected(server, request(CHUNKED, version="1.0") + b"0\r\n\r\n")
    assert_rejected(server, request(version="1.0", host="Host: a/b"))
    fields = "Connection: keep-alive", "Expect: 100-continue"
    (response,) = exchange(server, request(*fields, version="1.0", host=""))

    assert response.status == 200
    assert response["Connection"] == "close"


# --- HTTP: bodies ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"3\r\nabc\r\nA\r\n0123456\r\n9\r\n0\r\n\r\n",
        b"1;a=b\r\na\r\n1 \r\n0\r\n0\r\n\r\n",
        b"1\r\n0\r\n00\r\nX: 1\r\nY: 1\r\n\r\n",
    ],
    ids=["empty", "two chunks", "extension", "trailers"],
)
def test_chunked_body_is_discarded(server, body):
    assert_accepted(server, request(CHUNKED.upper()) + body)


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhello!\r\n\r\n0\r\n\r\n",
        b"5\r\nhell\r\n0\r\n\r\n",
        b"0x\r\n\r\n",
        b"1\r\n0XX0\r\n\r\n",
        b"0\r\nGET / HTTP/1.1\r\n\r\n",
        b"11111111111111111\r\n",
    ],
)
def test_malformed_chunked_body_is_rejected(server, body):
    assert_rejected(server, request(CHUNKED) + body)


@pytest.mark.parametrize(
    "body",
    [
        b"1\n0\r\n0\r\n\r\n",
        b"1\r\n0\n0\r\n\r\n",
        b"0\n\r\n",
        b"0\r\n\n",
        b"0\r\nX: 1\n\r\n",
    ],
)
def test_lone_lf_in_a_chunked_body_is_named(server, body):
    data = request(CHUNKED) + body
    assert "CR" in assert_rejected(server, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        request()[:-2],
        request("Content-Length: 9") + b"short",
        request(CHUNKED) + b"9\r\nshort",
        request(CHUNKED) + b"0\r\n",
    ],
)
def test_incomplete_request_gets_no_response_and_creates_no_job(
    server, log_lines, data
):
    assert exchange(server, data) == []
    assert server.jobs == {}
    assert log_lines() == []


def test_expect_100_continue_gets_an_interim_response(server):
    fields = "Expect: 100-Continue", "Content-Length: 2", CLOSE
    with connect(server) as client:
        client.sendall(request(*fields))
        interim = client.recv(65536)
        client.sendall(b"{}")
        assert statuses(read_responses(client)) == [200]

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    "field, begin, end",
    [
        ("Content-Length: 20000000", b"", b""),
        (CHUNKED, b"1312d00\r\n", b"\r\n0\r\n\r\n"),
    ],
    ids=["length", "chunk"],
)
def test_body_is_discarded_in_small_pieces(server, field, begin, end):
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy has none")
    data = request(field, CLOSE) + begin + bytes(20_000_000) + end
    tracemalloc.start()
    responses = exchange(server, data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert statuses(responses) == [200]
    assert peak < 2_000_000


def test_large_pipelined_responses_arrive_whole(server):
    # Connections inherit the small send buffer.
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    job = create_job(server, "?faults=drop")
    with connect(server) as client, ThreadPoolExecutor() as pool:
        pool.submit(client.sendall, LARGE * 30 + poll_request(job))
        large = read_responses(client)

    assert [len(x["Access-Control-Allow-Headers"]) for x in large] == [60_000] * 30


def test_client_reads_the_rejection_while_it_sends_a_body(server):
    server.write_timeout = 60
    with connect(server) as client:
        client.sendall(request("Bad Field: x") + bytes(10_000_000))
        assert statuses(read_responses(client)) == [400]


def test_rejected_client_that_never_stops_sending_is_reset(server, monkeypatch):
    monkeypatch.setattr(TrackerServer, "write_timeout", 0.05)
    with connect(server) as client, pytest.raises(ConnectionError):
        client.sendall(b"malformed\r\n")
        for _ in range(1_000_000):
            client.sendall(bytes(100_000))


# --- Life of a server -----------------------------------------------------------------


def test_server_listens_when_created_and_looks_up_no_name(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", None)
    server = create_server()
    connect(server).close()
    with pytest.raises(OSError, match="use|10048"):
        create_server(port=server.server_port)
    server.server_close()

    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", server.url)
    assert server.url in repr(server)


@pytest.mark.parametrize(
    "host, name", [("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")]
)
def test_other_hosts_have_a_url_that_works(host, name):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((name, 0), family=family).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with create_server(host) as server:
        assert create_job(server)

    assert urllib.parse.urlsplit(server.url).hostname == name


def test_two_servers_share_nothing_unless_they_share_a_service(server):
    service = TranslationService()
    with TrackerServer(service) as first, TrackerServer(service, retry_after=5) as last:
        job = create_job(first)
        response = poll(last, job)

    assert service.jobs == {job.job_id: job}
    assert response["Retry-After"] == "5"
    assert server.jobs == {}


def test_subclass_keeps_its_type_in_a_with_block():
    class Subclass(TrackerServer):
        pass

    with Subclass(TranslationService()) as server:
        assert type(server) is Subclass


def test_burst_of_clients_is_served_and_leaves_some_threads(clock):
    server = create_server(clock=clock)
    threads, sockets = count_resources()
    clients = [connect(server) for _ in range(80)]
    with server:
        for client in reversed(clients):
            client.sendall(request(CLOSE))
            with client:
                assert statuses(read_responses(client)) == [200]
        wait_until(lambda: count_resources()[1] == sockets)
        wait_until(lambda: threading.active_count() == threads + 17)


def test_reset_connections_are_not_errors(server, capfd, log_lines):
    # With a linger time of 0 s, closing resets the connection.
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
    for data in b"POST", request("Content-Length: 9"), LARGE * 50:
        with connect(server) as client, contextlib.suppress(ConnectionError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.sendall(data)
    server.server_close()

    assert capfd.readouterr() == ("", "")
    assert all(line.startswith("INFO") for line in log_lines())


def test_disconnect_before_the_first_read_is_not_an_error(
    server, monkeypatch, log_lines
):
    failing = mock.Mock(side_effect=OSError(errno.EINVAL, "disconnected"))
    with monkeypatch.context() as patch:
        patch.setattr("socket.socket.setsockopt", failing)
        assert exchange(server, b"") == []

    assert log_lines() == []


@pytest.mark.parametrize(
    "function, error",
    [
        ("socket.socket.accept", RuntimeError),
        ("socket.socket.accept", ConnectionAbortedError),
        ("threading.Thread.start", RuntimeError),
    ],
)
def test_failed_accept_or_thread_costs_one_connection(
    server, monkeypatch, caplog, capfd, function, error
):
    accept = socket.socket.accept

    def failing(self):
        if self is server.socket:
            accept(self)[0].close()
        raise error("none left")

    with monkeypatch.context() as patch:
        patch.setattr(function, failing)
        clients = [connect(server) for _ in range(3)]
        wait_until(lambda: len(caplog.records) >= 3)
        for client in clients:
            with client, contextlib.suppress(ConnectionError):
                assert read_responses(client) == []

    assert create_job(server)
    assert capfd.readouterr() == ("", "")


def test_running_out_of_descriptors_is_logged_without_busy_waiting(
    server, monkeypatch, caplog
):
    failing = mock.Mock(side_effect=OSError(errno.EMFILE, "no descriptors"))
    with monkeypatch.context() as patch:
        patch.setattr("socket.socket.accept", failing)
        with connect(server):
            wait_until(lambda: "no descriptors" in caplog.text)
            time.sleep(0.05)
            assert failing.call_count < 5

    assert create_job(server)


@not_on_windows
def test_exception_while_waiting_for_clients_does_not_end_serving(monkeypatch, caplog):
    poll, failures = select.poll, [RuntimeError("no wait")] * 2

    def failing_poll():
        if failures:
            raise failures.pop()
        return poll()

    monkeypatch.setattr("select.poll", failing_poll)
    with create_server() as server:
        assert create_job(server)

    assert "no wait" in caplog.text


def test_serve_forever_ends_with_shutdown_and_cannot_restart():
    server = create_server()
    with ThreadPoolExecutor() as pool:
        serving = pool.submit(server.serve_forever)
        create_job(server)
        server.shutdown()
        assert serving.result(5) is None
    server.server_close()
    server.serve_forever()
    with server:
        assert rejects_connections(server)


def test_shutdown_may_be_repeated_by_many_threads(server):
    in_threads(lambda _: server.shutdown(), range(500))
    in_threads(lambda _: server.server_close(), range(8))

    assert rejects_connections(server)


def test_second_close_ignores_another_server_on_the_same_port():
    first = create_server()
    first.server_close()
    with create_server(port=first.server_port) as second, connect(second):
        create_job(second)
        first.server_close()
        assert create_job(second)


# --- Shutdown -------------------------------------------------------------------------


def test_block_may_end_at_once():
    before = threading.active_count()
    for _ in range(20):
        with create_server() as server:
            pass
        assert rejects_connections(server)

    assert threading.active_count() == before


def test_shutdown_closes_all_connections_and_leaves_nothing(clock, monkeypatch):
    before = count_resources()
    with create_server(clock=clock, faults=["hang"]) as server:
        job = create_job(server)
        clients = [connect(server) for _ in range(4)]
        _, idle, uploading, hanging = clients
        idle.sendall(request())
        uploading.sendall(request("Expect: 100-continue", "Content-Length: 9"))
        hanging.sendall(poll_request(job))
        for client in idle, uploading:
            assert client.recv(65536)
        wait_until(lambda: job.requests)
        # As pytest-socket does.
        monkeypatch.setattr("socket.socket", None)
    monkeypatch.undo()

    for client in clients:
        with client:
            assert read_responses(client) == []
    assert count_resources() <= before
    assert rejects_connections(server)
    # The port is free again.
    create_server(port=server.server_port).server_close()


def test_shutdown_delivers_responses_that_wait_for_their_latency(clock):
    with create_server(clock=clock, latency=3600) as server:
        clients = [connect(server), connect(server)]
        for client in clients:
            client.sendall(request() * 2)
        wait_until(lambda: len(server.jobs) == 2)
    for client in clients:
        with client:
            (response,) = read_responses(client)
            assert response["Connection"] == "close"


def test_shutdown_aborts_uploads():
    def upload(client):
        client.sendall(request("Content-Length: 999999999999"))
        while True:
            client.sendall(bytes(100_000))

    with ThreadPoolExecutor() as pool:
        with create_server() as server:
            clients = [connect(server) for _ in range(6)]
            uploads = [pool.submit(upload, client) for client in clients]
            time.sleep(0.01)
        for client, future in zip(clients, uploads, strict=True):
            assert isinstance(future.exception(), ConnectionError)
            client.close()


def test_shutdown_does_not_wait_for_clients_that_do_not_read(clock, monkeypatch):
    assert TrackerServer.write_timeout == 1
    monkeypatch.setattr(TrackerServer, "write_timeout", 0.2)
    before = threading.active_count()
    with create_server(clock=clock) as server, connect(server) as client:
        client.settimeout(0.05)
        with contextlib.suppress(OSError):
            while True:
                client.sendall(LARGE)
        server.server_close()
        assert threading.active_count() == before


def test_shutdown_does_not_wait_for_a_clock_that_blocks(monkeypatch):
    monkeypatch.setattr(TrackerServer, "write_timeout", 0.02)
    before = threading.active_count()
    released = threading.Event()
    clock = mock.Mock(side_effect=released.wait)
    with create_server(clock=clock) as server, connect(server) as client:
        client.sendall(request())
        wait_until(lambda: clock.called)
        server.server_close()
        released.set()
    wait_until(lambda: threading.active_count() == before)


def test_64_kib_of_line_ends_do_not_delay_other_clients_or_shutdown():
    before = count_resources()
    with create_server() as server:
        clients = [connect(server) for _ in range(16)]
        for client in clients:
            client.sendall(b"\n" * 65_536)
        create_job(server)
    for client in clients:
        client.close()
    assert count_resources() <= before


def test_shutdown_waits_for_a_connection_that_is_being_accepted(server, monkeypatch):
    begun, done = threading.Event(), threading.Event()
    process_request = server.process_request

    def slow_process_request(*connection):
        begun.set()
        time.sleep(0.01)
        process_request(*connection)
        done.set()

    monkeypatch.setattr(server, "process_request", slow_process_request)
    with connect(server):
        begun.wait(5)
        server.shutdown()

    assert done.is_set()


# --- Processes ------------------------------------------------------------------------


def fork(function):
    """Return the ID of a forked child, which calls a function and exits."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    return child


@not_on_windows
@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_child_affects_neither_clients_nor_the_port():
    with create_server() as server, connect(server) as client:
        client.sendall(request())
        client.recv(65536)
        staying = fork(signal.pause)
        leaving = fork(lambda: server.__exit__(None, None, None))
        try:
            wait_until(lambda: os.waitpid(leaving, os.WNOHANG)[0])
            client.sendall(request(CLOSE))
            assert statuses(read_responses(client)) == [200]
            assert create_job(server)
            server.server_close()
            assert rejects_connections(server)
        finally:
            os.kill(staying, signal.SIGKILL)
            os.waitpid(staying, 0)


def start_python(folder, *arguments, stderr=subprocess.PIPE):
    """Return a Python process in a folder, which can import tracker."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "",
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "no_proxy": "*",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


IMPORT = """
import logging, os, socket, threading, tracker
assert sorted(tracker.__all__) == [
    "ManualClock", "Poll", "TrackerServer", "TranslationJob", "TranslationService",
    "UnknownJob", "create_server"]
assert os.listdir() == [] and threading.active_count() == 1
logger = logging.getLogger("tracker")
assert [type(handler) for handler in logger.handlers] == [logging.NullHandler]
assert not logging.getLogger().handlers and not logger.level
server = tracker.create_server().__enter__()
client = socket.create_connection(server.server_address)
while threading.active_count() < 3: pass
"""


def test_import_has_no_effect_and_an_open_server_does_not_block_exit(tmp_path):
    with start_python(
        tmp_path, "-W", "ignore::ResourceWarning", "-c", IMPORT
    ) as process:
        assert process.communicate(timeout=5) == ("", "")
        assert process.returncode == 0


# --- Command line ---------------------------------------------------------------------


@contextlib.contextmanager
def serving(folder, *options, program=(str(HERE / "tracker.py"),), **streams):
    """Run tracker.py; yield its process, with the lines it printed and its URL."""
    with start_python(folder, *program, "--port", "0", *options, **streams) as process:
        try:
            process.printed = [process.stdout.readline() for _ in range(3)]
            process.url = re.search(r"http://[\w.:]+\w", process.printed[0]).group()
            yield process
        finally:
            process.kill()


def test_cli_prints_usage_and_appends_to_the_log(tmp_path):
    log = tmp_path / "my.log"
    log.write_bytes(b" " * 10_000_001)
    # A program that has configured logging may call main().
    code = (
        "import logging, sys, tracker; logging.basicConfig(); sys.exit(tracker.main())"
    )
    options = "--log-file", "my.log", "--seed", "5"
    with serving(tmp_path, *options, program=("-c", code)) as process:
        # More log than fits into a pipe that nobody reads.
        exchange(process, request() + request(start="OPTIONS *") * 1000)
    printed, url = "".join(process.printed), process.url
    job = TranslationService(seed=5).create_job()
    logged = log.read_text(encoding="utf-8")

    assert f"Listening on {url}" in printed
    assert f"curl -X POST {url}/create_job\n" in printed
    assert f"curl {url}/status/" in printed
    assert logged.startswith(" " * 10_000_001 + f"INFO - Job {job.job_id} created\n")


def run_client(server):
    """Return what a client sees that creates ten jobs and polls each ten times."""
    created = exchange(server, request() * 10)
    polls = [request(start=f"GET {response['Location']}") * 10 for response in created]
    responses = created + exchange(server, b"".join(polls))
    return [(x.status, x.body, x["Retry-After"]) for x in responses]


@pytest.mark.parametrize(
    "arguments, options",
    [
        (["--tick=2", "--seed=5", "--faults="], {"tick": 2, "seed": 5}),
        (
            ["--tick=.5", "--seed=7", "--duration", "3", "5", "--error-rate=0.5"]
            + ["--faults=503, 404", "--fault-rate=0.25", "--retry-after=9"]
            + ["--latency=0", "--host=127.0.0.1"],
            {
                "tick": 0.5,
                "seed": 7,
                "duration": (3, 5),
                "error_rate": 0.5,
                "faults": [503, 404],
                "fault_rate": 0.25,
                "retry_after": 9,
            },
        ),
    ],
    ids=["defaults", "all options"],
)
def test_cli_options_equal_those_of_create_server(tmp_path, arguments, options):
    with serving(tmp_path, *arguments) as process, create_server(**options) as server:
        assert run_client(process) == run_client(server)


@not_on_windows
@pytest.mark.parametrize(
    "signum, log",
    [(signal.SIGINT, "server.log"), (signal.SIGTERM, "/dev/full")],
    ids=["Ctrl-C", "SIGTERM with a full disk"],
)
def test_signals_end_the_process_with_status_0(tmp_path, signum, log):
    if not os.path.exists(log):
        log = "server.log"
    options = "--log-file", log, "--duration", "3"
    with serving(tmp_path, *options) as process, connect(process) as client:
        client.sendall(request())
        client.recv(1)

        def has_ended_after_a_signal():
            process.send_signal(signum)
            return process.poll() is not None

        wait_until(has_ended_after_a_signal)
        assert process.communicate() == ("", "")
        assert process.returncode == 0


SIGNAL_WHILE_PRINTING = """
import io, signal, sys, tracker
class Reader(io.StringIO):
    def write(self, text):
        signal.raise_signal(signal.SIGTERM)
sys.stdout = Reader()
sys.exit(tracker.main(["--port", "0"]))
"""


def test_signal_while_the_url_is_printed_ends_the_process(tmp_path):
    with start_python(tmp_path, "-c", SIGNAL_WHILE_PRINTING) as process:
        assert process.communicate(timeout=5) == ("", "")
        assert process.returncode == 0


@not_on_windows
def test_log_goes_to_a_terminal_too(tmp_path):
    try:
        terminal, stderr = os.openpty()
    except OSError:
        pytest.skip("this machine has no terminals")
    os.set_blocking(terminal, False)
    with serving(tmp_path, stderr=stderr) as process:
        fetch(process, "POST /create_job")
        assert re.match(rb"INFO - Job \S+ created", os.read(terminal, 999))
    os.close(terminal)
    os.close(stderr)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--port BUSY", r"serve on 127.0.0.1 port \d+: "),
        ("--host no..host", "serve on no..host port 8000: "),
        ("--port 0 --log-file no/such.log", "cannot log: .*such"),
        ("--duration 1 2 3", "duration must be "),
        ("--error-rate x", "error.rate must be .*'x'"),
        ("--faults 503,x", "faults must be .*503,x"),
    ],
)
def test_startup_error_is_one_line_with_exit_status_2(
    server, capsys, arguments, message
):
    with pytest.raises(SystemExit) as caught:
        tracker.main(arguments.replace("BUSY", str(server.server_port)).split())
    (line,) = capsys.readouterr().err.splitlines()

    assert caught.value.code == 2
    assert re.search(message, line)


def test_help_lists_the_defaults(capsys):
    with pytest.raises(SystemExit):
        tracker.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    defaults = re.findall(r"\(default: (.*?)\)", text)

    assert {"127.0.0.1", "8000", "5 15", "0.1", "server.log"} <= set(defaults)


def test_version_option_prints_the_version(capsys):
    with pytest.raises(SystemExit):
        tracker.main(["--version"])

    assert capsys.readouterr().out.strip().endswith(tracker.__version__)


# --- Log ------------------------------------------------------------------------------

METRICS = """Translation metrics - Requests: 3, Status: completed, \
Total time: 42.00s, Delay: 12.00s"""


def test_log_records_the_life_of_a_job(server, clock, log_lines):
    job = create_job(server, "?faults=drop")
    for now in 0, 7, 42, 52:
        clock.now = now
        exchange(server, poll_request(job))
    job_id = job.job_id
    access = f'INFO - 127.0.0.1 - - [TIME] "GET /status/{job_id} HTTP/1.1"'

    assert [re.sub(r"\[.*?\]", "[TIME]", line) for line in log_lines()] == [
        f"INFO - Job {job_id} created",
        'INFO - 127.0.0.1 - - [TIME] "POST /create_job?faults=drop HTTP/1.1" 200 -',
        f"{access} - -",
        f"INFO - Job {job_id}: pending -> in_progress",
        f"{access} 200 -",
        f"INFO - Job {job_id}: in_progress -> completed",
        f"INFO - {METRICS}",
        f"{access} 200 -",
        f"{access} 200 -",
    ]
    for text in re.findall(r"\[(.*?)\]", "".join(log_lines())):
        logged = time.mktime(time.strptime(text, "%d/%b/%Y %H:%M:%S"))
        assert logged == pytest.approx(time.time(), abs=4)


def test_control_characters_are_escaped_in_the_log(server, log_lines):
    targets = b"/\x1b[31m", b"/\x00", b"/a\rINFO - forged", b"/\xc2\x85\x9b", b"/\\x0a"
    for target in targets:
        exchange(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    assert len(log_lines()) == 5
    assert re.fullmatch("[ -~]*", "".join(log_lines()))
    # A single backslash always begins an escape.
    assert sum(r"\\x0a" in line for line in log_lines()) == 1


# --- Documents ------------------------------------------------------------------------


@pytest.mark.skipif(sys.flags.optimize > 1, reason="-OO removes docstrings")
def test_docstring_example_runs_under_any_module_name(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(sys.modules, "tracker", None)
    names = runpy.run_path(tracker.__file__, run_name="package.fake")
    parser = doctest.DocTestParser()
    example = parser.get_doctest(tracker.__doc__, names, "docstring", None, 0)

    assert len(example.examples) > 2
    assert doctest.DocTestRunner().run(example).failed == 0


def test_readme_examples_run_and_print_what_they_say(tmp_path):
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(
        r"^```python\n(# (\w+\.py)\n.*?)^```", readme, re.DOTALL | re.MULTILINE
    )
    for block, name in blocks:
        with open(tmp_path / name, "a", encoding="utf-8") as file:
            file.write(block)
    shutil.copy(tracker.__file__, tmp_path)
    suite = start_python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    with start_python(tmp_path, "strategies.py") as strategies, suite:
        printed, errors = strategies.communicate(timeout=30)
        report = suite.communicate(timeout=30)

    assert suite.returncode == 0, report
    assert errors == ""
    assert re.findall(r"^# (at most .*\n)", readme, re.MULTILINE) == printed.splitlines(
        True
    )


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
