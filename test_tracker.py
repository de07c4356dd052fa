# /// script
# requires-python = ">=3.10"
# dependencies = ["pytest"]
# ///
"""What tracker.py promises, in the order in which a user meets it.

Time is moved by hand: no test sleeps to let a job finish. Every server has a port of its own, so that the suite
may run beside itself. `python -m pytest` or `uv run test_tracker.py` runs it.
"""

import contextlib
import doctest
import fractions
import http.client
import io
import itertools
import json
import logging
import math
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from unittest import mock

import pytest

import tracker

HERE = pathlib.Path(__file__).parent
os.environ["no_proxy"] = "*"  # or urllib would ask a proxy for 127.0.0.1

# --- Helpers --------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def json(self):
        assert self.headers["Content-Type"] == "application/json"
        assert self.headers["Content-Length"] == str(len(self.content))
        return json.loads(self.content)


def connected(server):
    return contextlib.closing(http.client.HTTPConnection(*server.server_address[:2], timeout=5))


def ask(place, method, target, body=None, **headers):
    """Send one request, over a connection or to a server, and return the answer."""
    with contextlib.ExitStack() as stack:
        if not isinstance(place, http.client.HTTPConnection):
            place = stack.enter_context(connected(place))
        place.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = place.getresponse()
        return Answer(response.status, response.headers, response.read())


def create(place, query=""):
    return ask(place, "POST", "/create_job" + query).json["job_id"]


def poll(place, job_id):
    return ask(place, "GET", f"/status/{job_id}").json


def raw(server):
    return socket.create_connection(server.server_address[:2], timeout=5)


def head(*lines, start="POST /create_job HTTP/1.1", host="Host: localhost"):
    """A request's head from its lines."""
    return "\r\n".join(filter(None, (start, host, *lines, "\r\n"))).encode("latin-1")


def read_answers(client):
    """Read until the server closes, and return all answers."""
    answers = []
    with client.makefile("rb") as stream:
        while line := stream.readline():
            version, status, _ = line.decode().split(" ", 2)
            headers = http.client.parse_headers(stream)
            assert version == "HTTP/1.1"
            answers.append(Answer(int(status), headers, stream.read(int(headers.get("Content-Length", 0)))))
    return answers


def send(server, request):
    """Send raw bytes and return the answers to them."""
    with raw(server) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return read_answers(client)


def wait_until(condition):
    """Wait, for a few seconds at most, for another thread to get there."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


@pytest.fixture
def clock():
    return tracker.ManualClock()


@pytest.fixture
def server(clock):
    with tracker.create_server(duration=(30, 30), error_rate=0, seed=1, clock=clock) as server:
        yield server


@pytest.fixture
def lines(caplog):
    """The log's lines, as main() would have them in server.log."""
    caplog.set_level(logging.INFO, "tracker")
    return lambda: [f"{record.levelname} - {record.getMessage()}" for record in caplog.records]


# --- Creating a job -------------------------------------------------------------------------------------------


def test_a_new_job_has_an_id_a_place_and_a_time_to_come_back(server):
    answer = ask(server, "POST", "/create_job")

    assert (answer.status, list(answer.json)) == (200, ["job_id"])
    assert uuid.UUID(answer.json["job_id"]).version == 4
    assert answer.headers["Location"] == f"/status/{answer.json['job_id']}"
    assert answer.headers["Retry-After"] == "1"


def test_whatever_the_body_is_it_is_read_and_thrown_away(server):
    with connected(server) as connection:
        for body in b"", b'{"duration": 3}', b"GET / HTTP/1.1\r\n\r\n", bytes(1_000_000):
            for sent in body, iter([body[:7], body[7:]] if body else []):  # with a length, and chunked
                job_id = ask(connection, "POST", "/create_job", sent).json["job_id"]
                assert server.jobs[job_id].duration == 30


def test_only_the_newest_100_000_jobs_are_kept(server):
    server.jobs.update(dict.fromkeys(range(99_999)))
    created = [create(server), create(server)]

    assert list(server.jobs) == [*range(1, 99_999), *created]


# --- Waiting for it, to its end -------------------------------------------------------------------------------


@pytest.mark.parametrize("query, elapsed, status, retry_after", [
    ("", 0, "pending", "1"), ("", 5.99, "pending", "1"), ("", 6, "in_progress", "1"),
    ("", 29.99, "in_progress", "1"), ("", 30, "completed", None), ("", 3600, "completed", None),
    ("?outcome=error", 30, "error", None), ("?duration=0", 0, "completed", None),
    ("?duration=inf", 1e9, "pending", "1"), ("?duration=0.7", 0.14, "in_progress", "1"),
    ("?duration=1.1", 0.22, "in_progress", "1"), ("?duration=7.1234561234", 7.1234561234, "completed", None),
])
def test_status_is_a_function_of_time(server, clock, query, elapsed, status, retry_after):
    job_id = create(server, query)
    clock.advance(elapsed)

    answer = ask(server, "GET", f"/status/{job_id}")

    assert (answer.status, answer.json["status"], answer.headers["Retry-After"]) == (200, status, retry_after)
    assert server.jobs[job_id].error_message == answer.json.get("error_message")
    assert (status == "error") == (answer.json.get("error_message") in tracker.ERROR_MESSAGES)


def test_no_later_reading_of_the_clock_moves_a_status_back():
    job = tracker.TranslationJob("x", created_at=100.0, duration=10.0)
    seen = []
    for now in 101, 103, 100, 110, 100:
        job.update_status(now)
        seen.append(job.status)
    job.duration = 5000.0
    job.update_status(2000)

    assert seen == ["pending", "in_progress", "in_progress", "completed", "completed"]
    assert (job.status, job.updated_at) == ("completed", 110)


def test_a_status_query_may_have_a_query_and_an_id_in_capitals(server):
    job_id = create(server)

    assert poll(server, job_id.upper() + "?_=1732") == {"status": "pending"}
    assert server.jobs[job_id].requests == 1


def test_head_asks_whether_there_is_a_job_and_is_no_poll(server, clock):
    job_id = create(server, "?faults=503")
    clock.advance(32)

    statuses = [ask(server, "HEAD", f"/status/{name}").status for name in (job_id, job_id.upper(), "none")]

    job = server.jobs[job_id]
    assert statuses == [200, 200, 404]
    assert (job.requests, job.polls, job.status, job.faults) == (0, [], "pending", [503])


def test_the_root_answers_whoever_waits_for_the_server(server):
    assert ask(server, "GET", "/").json == {"endpoints": ["POST /create_job", "GET /status/<job_id>"]}
    assert ask(server, "HEAD", "/").status == 200


# --- Measuring the poller -------------------------------------------------------------------------------------


def test_requests_polls_total_time_and_delay_are_data(server, clock):
    job = server.jobs[create(server)]
    assert (job.requests, job.polls, job.total_time, job.delay) == (0, [], None, None)

    for wait in 0, 1, 2, 4, 8, 16, 32:
        clock.sleep(wait)
        poll(server, job.job_id)

    assert job.polls == [0, 1, 3, 7, 15, 31, 63]
    assert (job.requests, job.total_time, job.delay) == (7, 31, 1)
    assert (job.created_at, job.updated_at) == (0, 31)


def test_ten_sleeps_of_a_tenth_are_one_second(server, clock):
    job = server.service.create_job(duration=1)
    server.service.query_status(job.job_id)
    while job.delay is None:
        clock.sleep(0.1)
        server.service.query_status(job.job_id)

    assert job.polls == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert (job.total_time, job.delay) == (1, 0)


def test_a_poll_is_recorded_before_its_answer_leaves_and_the_first_1000_with_their_times(server):
    with connected(server) as connection:
        job = server.jobs[create(connection)]
        for count in range(1, 1003):
            poll(connection, job.job_id)
            assert job.requests == count

    assert len(job.polls) == 1000


def test_the_log_tells_the_life_of_a_job_and_the_metrics_once(server, clock, lines):
    job_id = create(server, "?faults=drop")
    with pytest.raises(http.client.RemoteDisconnected):
        poll(server, job_id)
    for wait in 7, 35, 10:
        clock.advance(wait)
        poll(server, job_id)
    access = f'INFO - 127.0.0.1 - - [TIME] "GET /status/{job_id} HTTP/1.1"'

    assert [re.sub(r"\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d", "TIME", line) for line in lines()] == [
        f"INFO - Job {job_id} created",
        'INFO - 127.0.0.1 - - [TIME] "POST /create_job?faults=drop HTTP/1.1" 200 -',
        f"{access} - -",
        f"INFO - Job {job_id}: pending -> in_progress",
        f"{access} 200 -",
        f"INFO - Job {job_id}: in_progress -> completed",
        "INFO - Translation metrics - Requests: 3, Status: completed, Total time: 42.00s, Delay: 12.00s",
        f"{access} 200 -",
        f"{access} 200 -",
    ]


def test_eight_threads_see_one_ending_and_each_metrics_line_stands_after_its_job(server, clock, lines):
    jobs = [server.service.create_job().job_id for _ in range(50)]
    clock.advance(30)
    together = threading.Barrier(8)

    def client(_):
        together.wait(5)
        return {server.service.query_status(job_id)[0] for job_id in jobs}

    with ThreadPoolExecutor(8) as pool:
        assert set.union(*pool.map(client, range(8))) == {"completed"}

    kinds = ["metrics" if "metrics" in line else "end" for line in lines()[50:]]
    assert kinds == ["end", "metrics"] * 50
    assert {job.requests for job in server.jobs.values()} == {8}


# --- Time as an argument --------------------------------------------------------------------------------------


def test_no_step_of_the_system_clock_moves_a_job(monkeypatch):
    service = tracker.TranslationService()
    job = service.create_job()
    assert job.created_at == pytest.approx(time.time(), abs=60)

    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 946684800.0)
    service.query_status(job.job_id)
    later = tracker.TranslationService().create_job()

    assert job.status == "pending"
    assert 0 <= job.polls[0] < 5
    assert later.created_at - job.created_at < 5


def test_a_counting_clock_is_read_once_per_job_and_once_per_query():
    service = tracker.TranslationService(duration=(30, 30), error_rate=0, clock=itertools.count(0, 5).__next__)
    job = service.create_job()
    for _ in range(6):
        service.query_status(job.job_id)

    assert (job.polls, job.status) == ([5, 10, 15, 20, 25, 30], "completed")


def test_a_manual_clock_moves_only_forward_and_by_any_number():
    clock = tracker.ManualClock(100.0)
    clock.advance(2)
    clock.sleep(fractions.Fraction(1, 2))

    assert clock() == clock.now == 102.5
    for wrong in -1, math.nan, math.inf:
        with pytest.raises(ValueError, match="seconds must be a finite number, 0 or more, not"):
            clock.sleep(wrong)


def test_a_clock_that_fails_costs_one_answer_and_nothing_else(caplog):
    with tracker.create_server(clock=iter([0.0, 3.0]).__next__, duration=(30, 30)) as server:
        with connected(server) as connection:
            job_id = create(connection)
            assert poll(connection, job_id) == {"status": "pending"}
            answers = ask(connection, "GET", f"/status/{job_id}"), ask(connection, "POST", "/create_job")
            assert poll(connection, "none")["error_message"]  # the connection goes on

    assert [answer.status for answer in answers] == [500, 500]
    assert "bug" in answers[0].json["error_message"]
    assert (server.jobs[job_id].polls, len(server.jobs)) == ([3.0], 1)
    assert f"A bug met 'GET /status/{job_id} HTTP/1.1'" in caplog.text
    assert "StopIteration" in caplog.text


# --- Choosing a fate ------------------------------------------------------------------------------------------


def test_a_fate_may_be_chosen_in_any_mixture(server):
    job = server.jobs[create(server, "?duration=3&outcome=error&faults=503,drop,429")]

    assert (job.duration, job.outcome, job.faults) == (3, "error", [503, "drop", 429])
    assert server.jobs[create(server, "?faults=503&faults=drop")].faults == [503, "drop"]
    assert server.jobs[create(server)].outcome == "completed"


@pytest.mark.parametrize("query, name, given, accepted", [
    ("duration=-1", "duration", "'-1'", "0 seconds or more"), ("duration=nan", "duration", "'nan'", "inf"),
    ("duration=soon", "duration", "'soon'", "seconds"), ("duration", "duration", "''", "seconds"),
    ("duration=1&duration=2", "duration", "'1,2'", "seconds"), ("duration=1_0", "duration", "'1_0'", "seconds"),
    ("outcome=fine", "outcome", "'fine'", "completed or error"), ("faults=503,200", "faults", "200", "400 to 599"),
    ("faults=600", "faults", "600", "or drop"), ("faults=5_03", "faults", "'5_03'", "400 to 599"),
    ("faults=", "faults", "''", "400 to 599"), ("_=1", "Parameter", "'_'", "duration, outcome or faults"),
])
def test_an_unusable_parameter_is_named_and_creates_no_job(server, query, name, given, accepted):
    answer = ask(server, "POST", "/create_job?" + query)

    sentence = answer.json["error_message"]
    assert (answer.status, server.jobs) == (400, {})
    assert name in sentence and given in sentence and accepted in sentence


@pytest.mark.parametrize("status, header, value", [
    (400, "Retry-After", None), (401, "WWW-Authenticate", 'Bearer realm="tracker"'),
    (405, "Allow", "GET, HEAD, OPTIONS"), (407, "Proxy-Authenticate", 'Bearer realm="tracker"'),
    (426, "Upgrade", "HTTP/2.0"), (426, "Connection", "Upgrade"), (429, "Retry-After", "1"),
    (499, "Retry-After", None), (503, "Retry-After", "1"), (599, "Retry-After", None),
])
def test_a_fault_is_counted_does_not_move_the_status_and_has_its_header(server, clock, status, header, value):
    job_id = create(server, f"?faults={status},drop")
    clock.advance(30)

    answer = ask(server, "GET", f"/status/{job_id}")
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "GET", f"/status/{job_id}")

    assert (answer.status, answer.headers[header]) == (status, value)
    assert str(status) in answer.json["error_message"]
    job = server.jobs[job_id]
    assert (job.requests, job.polls, job.status, job.faults) == (2, [30, 30], "pending", [])
    assert poll(server, job_id) == {"status": "completed"}


def test_a_service_may_give_faults_to_each_job(clock):
    with tracker.create_server(clock=clock, faults=[503, "drop"]) as server:
        first, second, own = (server.jobs[create(server, query)] for query in ("", "", "?faults=429"))
        assert ask(server, "GET", f"/status/{first.job_id}").status == 503

    assert (first.faults, second.faults, own.faults) == (["drop"], [503, "drop"], [429])
    assert server.service.create_job(faults=[]).faults == []


def test_every_field_may_be_set_between_two_polls(server, clock):
    job = server.jobs[create(server)]
    job.faults.append(500)
    assert ask(server, "GET", f"/status/{job.job_id}").status == 500
    job.duration, job.outcome, job.error_message = 10, "error", "The disk is full."
    clock.advance(9)
    assert poll(server, job.job_id) == {"status": "in_progress"}
    job.created_at -= 1
    assert poll(server, job.job_id) == {"status": "error", "error_message": "The disk is full."}
    job.error_message = None
    assert poll(server, job.job_id)["error_message"] in tracker.ERROR_MESSAGES


@pytest.mark.parametrize("wrong, sentence", [
    ({"duration": (2, 1)}, "duration must be a pair of seconds, 0 <= low <= high, not (2, 1)"),
    ({"duration": (-1, 1)}, "duration must be"), ({"duration": (0, math.nan)}, "duration must be"),
    ({"error_rate": 1.1}, "error_rate must be a number from 0 to 1, not 1.1"),
    ({"error_rate": math.nan}, "error_rate must be a number from 0 to 1, not nan"),
    ({"fault_rate": -0.1}, "fault_rate must be a number from 0 to 1, not -0.1"),
    ({"faults": [200]}, "faults must be a list of HTTP statuses from 400 to 599, or drop, not [200]"),
    ({"latency": -1}, "latency must be a number of seconds from 0"), ({"latency": 3601}, "latency must be"),
    ({"retry_after": 1.5}, "retry_after must be a whole number of seconds, 0 or more, or None, not 1.5"),
    ({"retry_after": -1}, "retry_after must be"), ({"port": -1}, "port must be"),
    ({"port": 65536}, "port must be a number from 0, which picks a free one, to 65535, not 65536"),
])
def test_an_option_out_of_range_is_refused_with_what_is_accepted(wrong, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        tracker.create_server(**wrong)


def test_from_python_a_fate_is_checked_too(server):
    for wrong in {"duration": -1}, {"duration": math.nan}, {"outcome": "pending"}, {"faults": [200]}, {"faults": "x"}:
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
            server.service.create_job(**wrong)
    assert server.jobs == {}


def test_rates_are_chances_and_durations_are_drawn_from_their_range(clock):
    service = tracker.TranslationService(error_rate=0.25, fault_rate=0.5, seed=7, clock=clock)
    jobs = [service.create_job() for _ in range(2000)]
    faults = [service.query_status(job.job_id)[2] for job in jobs]

    assert 400 < sum(job.outcome == "error" for job in jobs) < 600
    assert 900 < faults.count(503) < 1100
    assert faults.count(503) + faults.count(None) == 2000
    assert 5 <= min(job.duration for job in jobs) < 5.1 < 14.9 < max(job.duration for job in jobs) <= 15
    assert tracker.TranslationService(duration=(math.inf, math.inf)).create_job().duration == math.inf


def test_the_same_seed_gives_the_same_jobs_however_they_are_polled():
    def lives(polls, **fate):
        clock = tracker.ManualClock()
        service = tracker.TranslationService(seed=42, error_rate=0.5, fault_rate=0.5, clock=clock)
        for number in range(20):
            job = service.create_job(**(fate if number == 0 else {}))
            for _ in range(polls):
                service.query_status(job.job_id)
        clock.advance(60)
        for job in service.jobs.values():
            while job.total_time is None:
                service.query_status(job.job_id)
        return [(job.job_id, job.duration, job.outcome, job.error_message) for job in service.jobs.values()]

    assert lives(0) == lives(3)
    assert lives(0)[1:] == lives(0, duration=1, outcome="error", faults=[500])[1:]
    assert {message for *_, message in lives(0)} == {None, *tracker.ERROR_MESSAGES}
    assert tracker.TranslationService().create_job().job_id != tracker.TranslationService().create_job().job_id


# --- Going wrong ----------------------------------------------------------------------------------------------

ENDPOINTS = "the endpoints are POST /create_job and GET /status/<job_id>"


@pytest.mark.parametrize("method, target, status, allow, words", [
    ("GET", "/status/unknown", 404, None, "There is no job 'unknown'"), ("GET", "/nothing", 404, None, ENDPOINTS),
    ("GET", "/status/", 404, None, "There is no job ''"), ("GET", "/status/a/b", 404, None, ENDPOINTS),
    ("POST", "/create_job/", 404, None, ENDPOINTS), ("POST", "//create_job", 404, None, ENDPOINTS),
    ("GET", "//host/status/x", 404, None, ENDPOINTS), ("POST", "/CREATE_JOB", 404, None, ENDPOINTS),
    ("GET", "/create_job", 405, "POST, OPTIONS", "takes POST, OPTIONS, not GET"),
    ("DELETE", "/status/x", 405, "GET, HEAD, OPTIONS", "takes GET, HEAD, OPTIONS, not DELETE"),
    ("POST", "/", 405, "GET, HEAD, OPTIONS", "not POST"),
])
def test_a_wrong_path_or_method_is_told_the_right_one(server, method, target, status, allow, words):
    with connected(server) as connection:
        answer = ask(connection, method, target, b"a body")

        assert (answer.status, answer.headers["Allow"], list(answer.json)) == (status, allow, ["error_message"])
        assert words in answer.json["error_message"]
        assert create(connection) in server.jobs  # the same connection goes on


def test_nothing_that_is_requested_reaches_the_log_raw(server, lines):
    for target in b"/\x1b[31m", b"/\x00", b"/a\rINFO - forged", b"/\xc2\x85\x9b", b"/\\x0a", b"/a\x0b":
        send(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    assert len(lines()) == 6
    assert all(re.fullmatch("[ -~]*", line) for line in lines())
    assert sum(r"\\x0a" in line for line in lines()) == 1  # so a single backslash is always an escape


# --- Speaking HTTP --------------------------------------------------------------------------------------------

CHUNKED = "Transfer-Encoding: chunked"
REFUSED = {
    "two words": (400, head(start="POST /create_job")),
    "two spaces": (400, head(start="POST  /create_job HTTP/1.1")),
    "space at the end": (400, head(start="POST /create_job HTTP/1.1 ")),
    "control character in the target": (400, head(start="POST /create_job\x01 HTTP/1.1")),
    "method is no token": (400, head(start="PO(ST /create_job HTTP/1.1")),
    "version without a number": (400, head(start="POST /create_job HTTP/x")),
    "target is no path": (400, head(start="POST create_job HTTP/1.1")),
    "HTTP/2": (505, head(start="PRI * HTTP/2.0")),
    "unknown method": (501, head(start="BREW /create_job HTTP/1.1")),
    "long target": (414, head(start=f"POST /{'x' * 65536} HTTP/1.1")),
    "long header": (431, head(f"X: {'x' * 65536}")),
    "a byte too long": (431, head(f"X: {'x' * (65536 - 4)}")),
    "no Host": (400, head(host="")),
    "two Hosts": (400, head("Host: localhost")),
    "Host with a slash": (400, head(host="Host: a/b")),
    "header name is no token": (400, head("X(: 1")),
    "header without a colon": (400, head("X")),
    "space before the colon": (400, head("Content-Length : 0")),
    "folded header": (400, head("X: 1\r\n 2")),
    "NUL in a value": (400, head("X: \0")),
    "bare carriage return": (400, head("X: 1\r")),
    "length with a sign": (400, head("Content-Length: +5")),
    "empty length": (400, head("Content-Length:")),
    "two lengths": (400, head("Content-Length: 5", "Content-Length: 5")),
    "long length": (400, head("Content-Length: " + "1" * 5000)),
    "chunked with a length": (400, head(CHUNKED, "Content-Length: 0")),
    "chunked on HTTP/1.0": (400, head(CHUNKED, start="POST /create_job HTTP/1.0")),
    "chunked twice": (400, head(CHUNKED, CHUNKED)),
    "unknown coding": (400, head("Transfer-Encoding: gzip, chunked")),
    "chunk without a size": (400, head(CHUNKED) + b"\r\n"),
    "chunk of a negative size": (400, head(CHUNKED) + b"-1\r\n"),
    "chunk longer than it says": (400, head(CHUNKED) + b"5\r\nhello!\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_what_http_forbids_is_refused_and_nothing_after_it_is_read_as_a_request(server, rule):
    status, request = REFUSED[rule]

    (answer,) = send(server, request + head("Connection: close"))

    assert (answer.status, answer.headers["Connection"], server.jobs) == (status, "close", {})
    assert re.fullmatch(r"[A-Z].{20,}\.", answer.json["error_message"])


OLD = "POST /create_job HTTP/1.0"
ALLOWED = {
    "HTTP/1.0 without Host": head(start=OLD, host=""),
    "any case of header names": head("cOnTeNt-LeNgTh: 2", host="hOST: localhost") + b"{}",
    "spaces round a value": head("Content-Length:2 \t", host="Host: localhost \t") + b"{}",
    "bytes over 127 in a value": head("X: caf\xe9\t\xff"),
    "an empty value": head("X:"),
    "the longest line": head(f"X: {'x' * (65536 - 5)}"),
    "lines that end in LF alone": b"POST /create_job HTTP/1.1\nHost: localhost\n\n",
    "empty lines first": b"\r\n\n\r\n" + head(),
    "an IPv6 Host": head(host="Host: [::1]:8000"),
    "an absolute target": head(start="POST http://localhost:8000/create_job HTTP/1.1"),
    "a strange boundary": head("Content-Type: multipart/x; boundary*=idna''a", "Content-Length: 2") + b"--",
    "extensions and trailers": head(CHUNKED.upper()) + b"3;a=b\r\nabc\r\nA \r\n0123456789\r\n0\r\nX: 1\r\n\r\n",
    "no chunk at all": head(CHUNKED) + b"0\r\n\r\n",
    "an expectation that nobody knows": head("Expect: wonders"),
    "an expectation on HTTP/1.0": head("Expect: 100-continue", "Content-Length: 2", start=OLD) + b"{}",
}


@pytest.mark.parametrize("rule", ALLOWED)
def test_what_http_allows_works_and_so_does_the_next_request(server, rule):
    answers = send(server, ALLOWED[rule] + head("Connection: Keep-Alive, Close") + head())

    assert [answer.status for answer in answers] == [200] * (1 if "HTTP/1.0" in rule else 2)
    assert answers[0].json["job_id"] in server.jobs
    assert answers[-1].headers["Connection"] == "close"


def test_a_client_that_hangs_up_in_a_request_gets_no_answer_and_no_job(server, lines):
    for request in (b"", b"POST /cre", head()[:-2], head("Content-Length: 9") + b"short",
                    head(CHUNKED) + b"9\r\nshort", head(CHUNKED) + b"0\r\n"):
        assert send(server, request) == []
    assert (server.jobs, lines()) == ({}, [])


def test_a_client_that_waits_for_100_continue_is_told_to_go_on_unless_it_is_refused(server):
    with raw(server) as client:
        client.sendall(head("Expect: 100-Continue", "Content-Length: 2", "Connection: close"))
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"{}")
        assert [answer.status for answer in read_answers(client)] == [200]
    assert [answer.status for answer in send(server, head("Expect: 100-continue", "Bad Header: x"))] == [400]


def test_an_answer_to_head_never_has_a_body_and_the_next_one_has(server):
    with raw(server) as client:
        client.sendall(head(start="HEAD / HTTP/1.1") + head(start="HEAD /nothing HTTP/1.1") + b"nonsense\r\n\r\n")
        with client.makefile("rb") as stream:
            answers = stream.read()

    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"404", b"400"]
    assert answers.count(b"\r\n\r\nHTTP/1.1 ") == 2
    assert answers.endswith(b'"}')


@pytest.mark.parametrize("method, target, allow", [
    ("OPTIONS", "/create_job", "POST, OPTIONS"), ("OPTIONS", "/status/x", "GET, HEAD, OPTIONS"),
    ("OPTIONS", "*", "GET, HEAD, OPTIONS"), ("OPTIONS", "/nothing", "GET, HEAD, OPTIONS"),
    ("POST", "/create_job", None), ("GET", "/nothing", None), ("HEAD", "/", None),
])
def test_every_answer_has_what_a_page_on_another_port_needs(server, method, target, allow):
    origin = "http://localhost:3000"
    plain = ask(server, method, target).headers
    cross = ask(server, method, target, Origin=origin, Access_Control_Request_Headers="X-Key").headers

    assert (plain["Access-Control-Allow-Origin"], plain["Access-Control-Allow-Credentials"]) == ("*", None)
    assert (cross["Access-Control-Allow-Origin"], cross["Access-Control-Allow-Credentials"]) == (origin, "true")
    assert cross["Access-Control-Expose-Headers"] == "Location, Retry-After"
    assert (cross["Cache-Control"], cross["Date"][-4:]) == ("no-store", " GMT")
    assert cross["Allow"] == cross["Access-Control-Allow-Methods"] == allow
    assert cross["Access-Control-Allow-Headers"] == ("X-Key" if allow else None)
    if allow:
        answer = ask(server, method, target)
        assert (answer.status, answer.content, answer.headers["Content-Length"]) == (204, b"", None)


def test_a_client_that_resets_or_stalls_is_no_error(monkeypatch, capfd, lines):
    settimeout = socket.socket.settimeout
    monkeypatch.setattr(socket.socket, "settimeout", lambda self, s: settimeout(self, 0.05 if s == 75 else s))
    linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # on, 0 seconds: closing sends a reset
    with tracker.create_server() as server:
        for request in b"", b"POST", head("Content-Length: 9"), head() * 50, ECHO * 50:
            with raw(server) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.sendall(request)
        with raw(server) as stalled:
            stalled.sendall(b"POST /create")
            assert stalled.recv(1) == b""  # after the time-out
        create(server)

    assert capfd.readouterr() == ("", "")
    assert all(line.startswith("INFO") for line in lines())


# Its answer says it again: a few of them, unread, fill all buffers.
ECHO = head("Access-Control-Request-Headers: " + "x" * 60_000, start="OPTIONS * HTTP/1.1")


def test_a_burst_of_clients_waits_its_turn_and_silent_ones_slow_nobody(clock):
    server = tracker.create_server(clock=clock)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw(server)) for _ in range(80)]
        stack.enter_context(server)
        assert create(server) in server.jobs
        for client in clients:
            client.sendall(head("Connection: close"))
        assert [answer.status for client in clients for answer in read_answers(client)] == [200] * 80


# --- Living in a test suite -----------------------------------------------------------------------------------


def test_a_server_is_bound_when_it_is_made_shares_nothing_and_looks_up_no_name(server, monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("it was looked up"))
    with pytest.raises(OSError):
        tracker.create_server(port=server.server_port)
    with tracker.create_server(seed=1) as other:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", other.url)
        assert other.jobs is other.service.jobs
        assert create(server) == create(other)  # as they have the same seed
        create(other)
    assert (len(server.jobs), len(other.jobs)) == (1, 2)


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize("host, url", [
    ("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("::", "http://[::1]:"),
])
def test_other_hosts_have_a_url_that_works(host, url):
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with tracker.create_server(host) as server:
        assert server.url.startswith(url)
        assert get(server.url + "/create_job", b"")["job_id"] in server.jobs


def test_after_the_block_the_port_refuses_and_every_connection_is_closed(clock, lines):
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        with pytest.raises(ZeroDivisionError), tracker.create_server(clock=clock) as server:
            silent, halfway = stack.enter_context(raw(server)), stack.enter_context(raw(server))
            halfway.sendall(head("Content-Length: 100") + b"half")
            idle = stack.enter_context(connected(server))
            create(idle)
            wait_until(lambda: threading.active_count() == before + 4)
            1 / 0

        assert threading.active_count() == before
        assert silent.recv(1) == b""
        assert read_answers(halfway) == []
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            create(idle)
        with pytest.raises(ConnectionRefusedError):
            raw(server)
    assert len(lines()) == 2
    with tracker.create_server(port=server.server_port) as second:  # the port is free again at once
        assert second.url == server.url


@pytest.mark.parametrize("retry_after, header", [(None, None), (0, "0"), (7, "7")])
def test_an_answer_waits_for_its_latency_but_not_for_the_end_of_the_block(clock, retry_after, header):
    with tracker.create_server(clock=clock, latency=3600, retry_after=retry_after) as server:
        client = raw(server)
        client.sendall(head() * 2)
        wait_until(lambda: server.jobs)
        client.settimeout(0.01)
        with pytest.raises(TimeoutError):
            client.recv(1)

    with client:
        client.settimeout(5)
        (answer,) = read_answers(client)
        assert [answer.json["job_id"]] == list(server.jobs)
        assert answer.headers["Retry-After"] == header


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(clock, monkeypatch):
    monkeypatch.setattr(tracker.TrackerServer, "grace", 0.05)
    before = threading.active_count()
    with tracker.create_server(clock=clock) as server:
        client = raw(server)
        client.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while True:
                client.sendall(ECHO)

    assert threading.active_count() == before
    client.close()


def open_descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


def test_a_hundred_servers_leave_no_thread_and_no_descriptor(clock):
    before = threading.active_count(), open_descriptors()
    for _ in range(100):
        with tracker.create_server(clock=clock):
            pass
        with tracker.create_server(clock=clock) as server, connected(server) as connection:
            create(connection)
            idle = raw(server)
        assert threading.active_count() == before[0]
        idle.close()

    assert open_descriptors() == before[1]


def test_a_failed_accept_costs_one_connection_and_a_patched_socket_does_not_hold_up_the_end():
    before = threading.active_count()
    with mock.patch.object(tracker.TrackerServer, "timeout", 0.05):
        with tracker.create_server() as server:
            with mock.patch.object(socket.socket, "accept", side_effect=RuntimeError("no sockets in tests")):
                client = raw(server)
                wait_until(lambda: socket.socket.accept.called)
            assert create(server) in server.jobs
            client.close()
            stop = mock.patch("socket.socket", side_effect=RuntimeError)
            stop.start()
    stop.stop()

    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        raw(server)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it has no fork")
def test_a_forked_child_does_not_keep_the_port():
    with tracker.create_server() as server:
        create(server)
        child = os.fork()
        if not child:
            time.sleep(30)
            os._exit(0)
    try:
        with pytest.raises(ConnectionRefusedError):
            raw(server)
        tracker.create_server(port=server.server_port).server_close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_serve_forever_and_shutdown_mean_what_they_always_meant_in_any_order():
    server, unserved = tracker.create_server(), tracker.create_server()
    with ThreadPoolExecutor() as pool:
        first, second = pool.submit(server.serve_forever), pool.submit(server.serve_forever)
        assert create(server) in server.jobs
        for step in server.shutdown, unserved.shutdown, server.serve_forever, *[unserved.server_close] * 2:
            pool.submit(step).result(5)
        first.result(5), second.result(5)
        server.server_close()
    with server, pytest.raises(ConnectionRefusedError):  # a stopped server stays stopped
        raw(server)


def python(folder, *arguments, **options):
    """Start a Python in an empty folder; what it prints must have been flushed by itself."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **options)


def test_importing_has_no_effect_and_no_server_keeps_a_program_from_its_end(tmp_path):
    code = (
        "import logging, os, threading, tracker, urllib.request\n"
        "assert os.listdir() == [] and threading.active_count() == 1\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('tracker').handlers\n"
        "server = tracker.create_server().__enter__()\n"
        "client = urllib.request.socket.create_connection(server.server_address)\n"
    )
    assert python(tmp_path, "-W", "ignore::ResourceWarning", "-c", code).wait(5) == 0
    assert tracker.__all__ == ["ManualClock", "TrackerServer", "TranslationJob", "TranslationService", "create_server"]


# --- Running from the command line ----------------------------------------------------------------------------


@contextlib.contextmanager
def running(folder, *options):
    """A real process, and the URL that it printed; nobody reads its standard error."""
    pipe = subprocess.PIPE
    with python(folder, str(HERE / "tracker.py"), "--port", "0", *options, stdout=pipe, stderr=pipe) as process:
        try:
            process.printed = [process.stdout.readline() for _ in range(3)]
            process.url = re.search(r"http://\S+", process.printed[0]).group()
            process.server_address = process.url.removeprefix("http://").split(":")
            yield process
        finally:
            process.kill()


def get(url, body=None):
    with urllib.request.urlopen(url, body, timeout=5) as answer:
        return json.load(answer)


def test_a_process_says_how_to_use_it_logs_and_ends_however_many_signals_come(tmp_path):
    (tmp_path / "my.log").write_bytes(bytes(10_000_001))  # full
    options = "--duration 0 0 --error-rate 1 --faults 429 --retry-after 7 --seed 5 --latency 0.0001 --log-file my.log"
    with running(tmp_path, *options.split()) as process, contextlib.ExitStack() as stack:
        wait_until((tmp_path / "my.log.1").exists)
        with connected(process) as connection:
            job_id = create(connection)
            fault = ask(connection, "GET", f"/status/{job_id}")
            status = poll(connection, job_id)
            for _ in range(1000):  # more than a pipe holds, were they logged there
                ask(connection, "HEAD", "/")
        for _ in range(50):
            stack.enter_context(raw(process))
        if os.name != "nt":  # where terminate() is no signal
            for signum in signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM:
                process.send_signal(signum)
                time.sleep(0.001)
            assert process.wait(5) == 0
        process.kill()
        console = process.communicate(timeout=5)[1]

    log = (tmp_path / "my.log").read_text(encoding="utf-8")
    url = process.url
    assert process.printed[0].startswith(f"Listening on {url} ") and "my.log" in process.printed[0]
    assert process.printed[1:] == [f"  curl -X POST {url}/create_job\n", f"  curl {url}/status/JOB_ID\n"]
    assert job_id == tracker.TranslationService(seed=5).create_job().job_id
    assert (fault.status, fault.headers["Retry-After"], status["status"]) == (429, "7", "error")
    assert log.startswith(f"INFO - Job {job_id} created\n")
    assert re.search(r"metrics - Requests: 2, Status: error, Total time: 0\.\d\ds, Delay: 0\.\d\ds\n", log)
    assert console == ""
    assert {path.name for path in tmp_path.iterdir()} == {"my.log", "my.log.1"}


@pytest.mark.parametrize("options, words", [
    ("--port BUSY", "port BUSY: "), ("--port many", "argument --port: invalid int value: 'many'"),
    ("--port 70000", "port must be a number from 0, which picks a free one, to 65535, not 70000"),
    ("--host no..host", "no..host port 8000: "), ("--fault-rate 2", "fault_rate must be a number from 0 to 1"),
    ("--faults 503,x", "faults must be a list of HTTP statuses"), ("--duration 9 1", "duration must be a pair"),
    ("--speed 2", "unrecognized arguments: --speed 2"), ("--port 0 --log-file no/such.log", "such.log"),
])
def test_what_cannot_be_done_is_one_line_and_status_2(server, capsys, options, words):
    busy = str(server.server_port)
    with pytest.raises(SystemExit) as exit:
        tracker.main(options.replace("BUSY", busy).split())

    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert words.replace("BUSY", busy) in error.splitlines()[-1]
    assert "Traceback" not in error


# --- The documents --------------------------------------------------------------------------------------------


def translate(url, sleep=time.sleep):
    """The client of the README's reader: it doubles its waits."""
    job_id = get(url + "/create_job", b"")["job_id"]
    wait = 1
    while get(f"{url}/status/{job_id}")["status"] in ("pending", "in_progress"):
        sleep(wait)
        wait *= 2
    return job_id


def test_the_examples_work_and_print_what_the_documents_say(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "my_client", types.SimpleNamespace(translate=translate))
    monkeypatch.setattr(tracker.log, "disabled", True)  # or pytest's live log would stand among what is printed
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S):
            names = {}
            exec(block, names)
            for name in names:
                if name.startswith("test_"):
                    names[name]()
    with pytest.raises(SystemExit):
        tracker.main(["--help"])

    assert printed.getvalue() == "".join(re.findall(r"^```text\n(.*?)^```", readme, re.M | re.S))
    assert set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"} <= set(re.findall(r"--[a-z-]+", readme))
    assert doctest.testmod(tracker) == (0, 5)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
