# /// script
# requires-python = ">=3.10"
# dependencies = ["pytest"]
# ///
"""What tracker.py promises, in the order in which a user meets it.

Time is moved by hand: no test sleeps to let a job finish. Every server has a port of its own, so that the
suite may run beside itself. `python -m pytest` or `uv run test_tracker.py` runs it.
"""

import contextlib
import doctest
import fractions
import http.client
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
from unittest import mock

import pytest

import tracker

HERE = pathlib.Path(__file__).parent
os.environ["no_proxy"] = "*"  # or urllib would ask a proxy for 127.0.0.1

# --- Helpers ----------------------------------------------------------------------------------------------

POST, OLD, CHUNKED = "POST /create_job HTTP/1.1", "POST /create_job HTTP/1.0", "Transfer-Encoding: chunked"


def head(*lines, start=POST, host="Host: localhost"):
    return "\r\n".join(filter(None, (start, host, *lines, "\r\n"))).encode("latin-1")


# Its answer repeats the header: a few answers that nobody reads fill all buffers.
ECHO = head("Access-Control-Request-Headers: " + "x" * 60_000, start="OPTIONS * HTTP/1.1")


def raw(server):
    return socket.create_connection(server.server_address[:2], timeout=5)


def read_answers(client):
    """Read until the server closes, and return all answers."""
    answers = []
    with client.makefile("rb") as stream:
        while line := stream.readline():
            headers = http.client.parse_headers(stream)
            content = stream.read(int(headers.get("Content-Length", 0)))
            assert line.startswith(b"HTTP/1.1 ")
            assert headers["Content-Type"] == ("application/json" if "Content-Length" in headers else None)
            answer = {"status": int(line[9:12]), "headers": headers, "json": json.loads(content or "null")}
            answers.append(types.SimpleNamespace(**answer))
    return answers


def send(server, requests):
    """Send bytes on a new connection and return the answers to them."""
    with raw(server) as client:
        client.sendall(requests)
        client.shutdown(socket.SHUT_WR)
        return read_answers(client)


def ask(server, method, target, *lines):
    """Send a request on a new connection and return the answer to it."""
    (answer,) = send(server, head(*lines, start=f"{method} {target} HTTP/1.1"))
    return answer


def create(server, query=""):
    return ask(server, "POST", "/create_job" + query).json["job_id"]


def poll(server, job_id):
    return ask(server, "GET", f"/status/{job_id}").json


def wait_until(condition):
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
def lines(caplog, monkeypatch):
    """The log's lines, as main() would have them in server.log; each takes a moment, so that their order shows."""
    caplog.set_level(logging.INFO, "tracker")
    monkeypatch.setattr(tracker.log, "filters", [lambda record: time.sleep(0.002) is None])
    return lambda: [f"{record.levelname} - {record.getMessage()}" for record in caplog.records]


# --- A job's life: creating it, waiting for it, its end ---------------------------------------------------

def test_a_new_job_has_an_id_a_place_and_a_time_to_come_back_whatever_the_body(server):
    for body in b"{}", b'{"duration": 3}', b"GET / HTTP/1.1\r\n\r\n", bytes(1_000_000):
        chunks = b"1\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (body[:1], len(body) - 1, body[1:])
        with_length, chunked = head(f"Content-Length: {len(body)}") + body, head(CHUNKED) + chunks
        for created in send(server, with_length + chunked + with_length):
            assert (created.status, created.headers["Retry-After"]) == (200, "1")
            assert created.headers["Location"] == f"/status/{created.json['job_id']}"
            assert uuid.UUID(created.json["job_id"]).version == 4
            assert server.jobs[created.json["job_id"]].duration == 30


def test_only_the_newest_100_000_jobs_are_kept(server):
    server.jobs.update(dict.fromkeys(range(99_999)))
    created = [create(server), create(server)]
    assert list(server.jobs) == [*range(1, 99_999), *created]


@pytest.mark.parametrize("query, elapsed, status, retry_after", [
    ("", 0, "pending", "1"), ("", 5.99, "pending", "1"), ("", 6, "in_progress", "1"),
    ("", 29.99, "in_progress", "1"), ("", 30, "completed", None), ("", 3600, "completed", None),
    ("?outcome=error", 30, "error", None), ("?duration=0", 0, "completed", None),
    ("?duration=inf", 1e9, "pending", "1"), ("?duration=0.7", 0.14, "in_progress", "1"),
    ("?duration=1.1", 0.22, "in_progress", "1"), ("?duration=7.1234561234", 7.1234561234, "completed", None),
])
def test_status_is_a_function_of_time_and_never_goes_back(server, clock, query, elapsed, status, retry_after):
    job = server.jobs[create(server, query)]
    clock.advance(elapsed)
    polled = ask(server, "GET", f"/status/{job.job_id}")

    assert (polled.status, polled.json["status"], polled.headers["Retry-After"]) == (200, status, retry_after)
    assert job.error_message == polled.json.get("error_message")
    assert (status == "error") == (job.error_message in tracker.ERROR_MESSAGES)
    assert job.updated_at == (0 if status == "pending" else elapsed)
    clock.now = 0.0
    assert poll(server, job.job_id) == polled.json
    if retry_after is None:
        job.duration = clock.now = 1e10
        assert poll(server, job.job_id) == polled.json


def test_a_look_is_no_poll_and_a_poll_may_have_a_query_and_an_id_in_capitals(server, clock):
    job = server.jobs[create(server, "?faults=503")]
    paths = "/", f"/status/{job.job_id}", f"/status/{job.job_id.upper()}", "/status/none"
    clock.advance(32)
    assert [ask(server, "HEAD", path).status for path in paths] == [200, 200, 200, 404]
    assert (job.requests, job.polls, job.status, job.faults.pop()) == (0, [], "pending", 503)
    assert ask(server, "GET", "/").json == {"endpoints": ["POST /create_job", "GET /status/<job_id>"]}
    assert poll(server, job.job_id.upper() + "?_=1732") == {"status": "completed"}


# --- Measuring the poller ---------------------------------------------------------------------------------

@pytest.mark.parametrize("duration, waits, polls, total_time, delay", [
    (30, [0, 1, 2, 4, 8, 16, 32], [0, 1, 3, 7, 15, 31, 63], 31, 1),
    (1, [0] + [0.1] * 10, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 1, 0),
    (1.1, [0.2000004, 1], [0.2, 1.2], 1.2, 0.1),
])
def test_requests_polls_total_time_and_delay_are_data(server, clock, duration, waits, polls, total_time, delay):
    job = server.jobs[create(server, f"?duration={duration}")]
    assert (job.requests, job.polls, job.total_time, job.delay) == (0, [], None, None)
    for wait in waits:
        clock.sleep(wait)
        poll(server, job.job_id)
    assert (job.requests, job.polls, job.total_time, job.delay) == (len(waits), polls, total_time, delay)


def test_a_poll_is_recorded_before_its_answer_leaves_and_the_first_1000_with_their_times(server):
    job = server.jobs[create(server)]
    for count in range(1, 301):
        poll(server, job.job_id)
        assert job.requests == count
    for _ in range(701):
        server.service.query_status(job.job_id)
    assert (job.requests, len(job.polls)) == (1001, 1000)


def test_the_log_tells_the_life_of_a_job_and_the_metrics_once(server, clock, lines):
    job_id = create(server, "?faults=drop")
    assert send(server, head(start=f"GET /status/{job_id} HTTP/1.1")) == []
    for wait in 7, 35, 10:
        clock.advance(wait)
        get(f"{server.url}/status/{job_id}")
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


def test_threads_see_one_ending_and_each_metrics_line_stands_after_its_job(server, clock, lines):
    jobs = [server.service.create_job().job_id for _ in range(50)]
    clock.advance(30)
    with ThreadPoolExecutor(8) as pool:
        polls = pool.map(server.service.query_status, [job_id for job_id in jobs for _ in range(8)])
        assert {status for status, *_ in polls} == {"completed"}
    assert ["metrics" in line for line in lines()[50:]] == [False, True] * 50
    assert {job.requests for job in server.jobs.values()} == {8}


# --- Time as an argument ----------------------------------------------------------------------------------

def test_no_step_of_the_system_clock_moves_a_job(monkeypatch):
    service = tracker.TranslationService()
    job = service.create_job()
    assert job.created_at == pytest.approx(time.time(), abs=60)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 946684800.0)  # as freezegun does
    service.query_status(job.job_id)
    assert (job.status, job.polls) == ("pending", [pytest.approx(0, abs=5)])
    assert tracker.TranslationService().create_job().created_at == pytest.approx(job.created_at, abs=5)


def test_a_clock_is_read_once_per_job_and_once_per_query():
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
        job = server.jobs[create(server)]
        query = head(start=f"GET /status/{job.job_id} HTTP/1.1")
        answers = send(server, query * 2 + head() + head(start="GET / HTTP/1.1"))

    assert [answer.status for answer in answers] == [200, 500, 500, 200]  # the connection goes on
    assert "bug" in answers[1].json["error_message"]
    assert (job.requests, job.polls, len(server.jobs)) == (1, [3.0], 1)
    assert f"A bug met 'GET /status/{job.job_id} HTTP/1.1'" in caplog.text and "StopIteration" in caplog.text


# --- Choosing a fate --------------------------------------------------------------------------------------

def test_a_fate_may_be_chosen_in_any_mixture_and_faults_for_each_job(clock):
    with tracker.create_server(clock=clock, error_rate=0, faults=[503, "drop"]) as server:
        job = server.jobs[create(server, "?duration=3&outcome=error&faults=500,drop,429")]
        first, second, own = (server.jobs[create(server, query)] for query in ("", "", "?faults=503&faults=429"))
        assert ask(server, "GET", f"/status/{first.job_id}").status == 503

    assert (job.duration, job.outcome, job.faults) == (3, "error", [500, "drop", 429])
    assert (first.faults, second.faults, own.faults) == (["drop"], [503, "drop"], [503, 429])
    assert (first.outcome, server.service.create_job(faults=[]).faults) == ("completed", [])
    for wrong in -1, math.nan:
        with pytest.raises(ValueError, match="^duration must be 0 seconds or more, or inf, not"):
            server.service.create_job(duration=wrong)


@pytest.mark.parametrize("query, name, given, accepted", [
    ("duration=-1", "duration", "'-1'", "0 seconds or more"), ("duration=nan", "duration", "'nan'", "inf"),
    ("duration", "duration", "''", "seconds"), ("duration=1&duration=2", "duration", "'1,2'", "seconds"),
    ("outcome=fine", "outcome", "'fine'", "completed or error"), ("faults=600", "faults", "600", "400 to 599"),
    ("faults=5_03", "faults", "'5_03'", "or drop"), ("faults=", "faults", "''", "400 to 599"),
    ("faults=503,399", "faults", "399", "400 to 599"), ("_=1", "Parameter", "'_'", "duration, outcome or faults"),
])
def test_an_unusable_parameter_is_named_and_creates_no_job(server, query, name, given, accepted):
    refused = ask(server, "POST", "/create_job?" + query)
    assert (refused.status, server.jobs) == (400, {})
    assert all(words in refused.json["error_message"] for words in (name, given, accepted))


@pytest.mark.parametrize("status, header, value", [
    (400, "Retry-After", None), (401, "WWW-Authenticate", 'Bearer realm="tracker"'),
    (405, "Allow", "GET, HEAD, OPTIONS"), (407, "Proxy-Authenticate", 'Bearer realm="tracker"'),
    (426, "Upgrade", "HTTP/2.0"), (426, "Connection", "Upgrade"), (429, "Retry-After", "1"),
    (499, "Retry-After", None), (503, "Retry-After", "1"), (599, "Retry-After", None),
])
def test_a_fault_is_counted_does_not_move_the_status_and_has_its_header(server, clock, status, header, value):
    job = server.jobs[create(server, f"?faults={status},drop")]
    clock.advance(30)
    (fault,) = send(server, head(start=f"GET /status/{job.job_id} HTTP/1.1") * 3)  # the second is dropped
    assert (fault.status, fault.headers[header]) == (status, value)
    assert str(status) in fault.json["error_message"]
    assert (job.requests, job.polls, job.status, job.faults) == (2, [30, 30], "pending", [])
    assert poll(server, job.job_id) == {"status": "completed"}


def test_every_field_may_be_set_between_two_polls(server, clock):
    assert tracker.TranslationJob("x") == tracker.TranslationJob("x", "pending", 0, 0, None, 0, "completed", [])
    job = server.jobs[create(server)]
    job.faults.append(500)
    assert "500" in poll(server, job.job_id)["error_message"]
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
    ({"error_rate": math.nan}, "error_rate must be a number from 0 to 1, not nan"),
    ({"error_rate": 1.1}, "error_rate must be"), ({"fault_rate": -0.1}, "fault_rate must be"),
    ({"faults": [200]}, "faults must be a list of HTTP statuses from 400 to 599, or drop, not [200]"),
    ({"latency": -1}, "latency must be a number of seconds from 0"), ({"latency": 3601}, "latency must be"),
    ({"retry_after": 1.5}, "retry_after must be a whole number of seconds, 0 or more, or None, not 1.5"),
    ({"retry_after": -1}, "retry_after must be"), ({"port": -1}, "port must be"),
    ({"port": 65536}, "port must be a number from 0, which picks a free one, to 65535, not 65536"),
])
def test_an_option_out_of_range_is_refused_with_what_is_accepted(wrong, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        tracker.create_server(**wrong)


def test_rates_are_chances_and_durations_are_drawn_from_their_range(clock):
    service = tracker.TranslationService(error_rate=0.25, fault_rate=0.5, seed=7, clock=clock)
    jobs = [service.create_job() for _ in range(2000)]
    faults = [service.query_status(job.job_id)[2] for job in jobs]
    assert 400 < sum(job.outcome == "error" for job in jobs) < 600
    assert 900 < faults.count(503) < 1100 and set(faults) == {None, 503}
    assert 5 <= min(job.duration for job in jobs) < 5.1 < 14.9 < max(job.duration for job in jobs) <= 15
    assert tracker.TranslationService(duration=(math.inf, math.inf)).create_job().duration == math.inf


def test_the_same_seed_gives_the_same_jobs_however_they_are_polled():
    def lives(polls, seed=42, **fate):
        service = tracker.TranslationService(seed=seed, error_rate=0.5, fault_rate=0.5, clock=lambda: 0.0)
        for number in range(20):
            job = service.create_job(**(fate if number == 0 else {}))
            for _ in range(polls):
                service.query_status(job.job_id)
            job.update_status(60)
        return [(job.job_id, job.duration, job.outcome, job.error_message) for job in service.jobs.values()]
    assert lives(0) == lives(3)
    assert lives(0)[1:] == lives(0, duration=1, outcome="error", faults=[500])[1:]
    assert {message for *_, message in lives(0)} == {None, *tracker.ERROR_MESSAGES}
    assert lives(0, seed=None) != lives(0, seed=None)


# --- Going wrong ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method, target, status, allow, words", [
    ("GET", "/status/x", 404, None, "There is no '/status/x', or no more"),
    ("GET", "/x", 404, None, "the endpoints are POST /create_job and GET /status/<job_id>"),
    ("GET", "/status/", 404, None, "endpoints"), ("GET", "/status/a/b", 404, None, "endpoints"),
    ("POST", "//create_job", 404, None, "endpoints"), ("POST", "/create_job/", 404, None, "endpoints"),
    ("GET", "/create_job", 405, "POST, OPTIONS", "'/create_job' takes POST, OPTIONS, not GET"),
    ("DELETE", "/status/x", 405, "GET, HEAD, OPTIONS", "not DELETE"), ("POST", "/", 405, "GET, HEAD, OPTIONS", "POST"),
])
def test_a_wrong_path_or_method_is_told_the_right_one(server, method, target, status, allow, words):
    request = head("Content-Length: 6", start=f"{method} {target} HTTP/1.1") + b"a body"
    wrong, created = send(server, request + head())  # the connection goes on
    assert (wrong.status, wrong.headers["Allow"], list(wrong.json)) == (status, allow, ["error_message"])
    assert words in wrong.json["error_message"]
    assert created.json["job_id"] in server.jobs


def test_nothing_that_is_requested_reaches_the_log_raw(server, lines):
    for target in b"/\x1b[31m", b"/\x00", b"/a\rINFO - forged", b"/\xc2\x85\x9b", b"/\\x0a", b"/a\x0b":
        send(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [bool(re.fullmatch("[ -~]*", line)) for line in lines()] == [True] * 6
    assert sum(r"\\x0a" in line for line in lines()) == 1  # so a single backslash is always an escape


# --- Speaking HTTP ----------------------------------------------------------------------------------------

REQUESTS = {  # a rule: the statuses for a request and for the one after it, the request
    "two words": ([400], head(start="POST /create_job")),
    "space at the end": ([400], head(start=POST + " ")),
    "control character in the target": ([400], head(start="POST /create_job\x01 HTTP/1.1")),
    "target is no path": ([400], head(start="POST create_job HTTP/1.1")),
    "HTTP/2": ([505], head(start="PRI * HTTP/2.0")),
    "unknown method": ([501], head(start="BREW /create_job HTTP/1.1")),
    "long target": ([414], head(start=f"POST /{'x' * 65536} HTTP/1.1")),
    "a byte too long": ([431], head(f"X: {'x' * (65536 - 4)}")),
    "the longest line": ([200, 200], head(f"X: {'x' * (65536 - 5)}")),
    "no Host": ([400], head(host="")),
    "two Hosts": ([400], head("Host: localhost")),
    "Host with a slash": ([400], head(host="Host: a/b")),
    "space before the colon": ([400], head("Content-Length : 0")),
    "folded header": ([400], head("X: 1\r\n 2")),
    "NUL in a value": ([400], head("X: \0")),
    "bytes over 127 in a value, or no value": ([200, 200], head("X: caf\xe9\t\xff", "Y:")),
    "length with a sign": ([400], head("Content-Length: +5")),
    "two lengths": ([400], head("Content-Length: 5", "Content-Length: 5")),
    "long length": ([400], head("Content-Length: " + "1" * 5000)),
    "chunked with a length": ([400], head(CHUNKED, "Content-Length: 0")),
    "chunked on HTTP/1.0": ([400], head(CHUNKED, start=OLD)),
    "unknown coding": ([400], head("Transfer-Encoding: gzip, chunked")),
    "chunk longer than it says": ([400], head(CHUNKED) + b"5\r\nhello!\r\n\r\n0\r\n\r\n"),
    "no chunk at all": ([200, 200], head(CHUNKED) + b"0\r\n\r\n"),
    "extensions": ([200, 200], head(CHUNKED.upper()) + b"3;a=b\r\nabc\r\nA \r\n0123456789\r\n0\r\n\r\n"),
    "trailers": ([200, 200], head(CHUNKED) + b"1\r\n0\r\n00\r\nX: 1\r\nY: 1\r\n\r\n"),
    "trailer that is a request": ([400], head(CHUNKED) + b"0\r\nGET / HTTP/1.1\r\n\r\n"),
    "chunk with more than a size": ([400], head(CHUNKED) + b"0x\r\n\r\n"),
    "any case of names, spaces round values": ([200, 200], head("cOnTeNt-LeNgTh:2 \t", host="hOST: a \t") + b"{}"),
    "LF alone, empty lines first": ([200, 200], b"\r\n\n" + head().replace(b"\r", b"")),
    "an absolute target without a path": ([400], head(start="POST http://a?b=/create_job HTTP/1.1")),
    "an absolute target": ([200, 200], head(start="POST http://[::1]/create_job HTTP/1.1", host="Host: [::1]:80")),
    "an expectation on HTTP/1.0": ([200], head("Expect: 100-continue", "Content-Length: 2", start=OLD) + b"{}"),
    "HTTP/1.0 without Host": ([200], head(start=OLD, host="")),
}


@pytest.mark.parametrize("rule", REQUESTS)
def test_what_http_allows_works_and_after_what_it_forbids_nothing_is_read(server, rule):
    statuses, request = REQUESTS[rule]
    answers = send(server, request + head("Connection: Keep-Alive, Close") + head())
    assert [answer.status for answer in answers] == statuses
    assert len(server.jobs) == statuses.count(200)
    assert [answer.headers["Connection"] for answer in answers] == [None] * (len(answers) - 1) + ["close"]
    assert statuses[0] == 200 or re.fullmatch(r"[A-Z].{20,}\.", answers[0].json["error_message"])


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
    with raw(server) as client, client.makefile("rb") as stream:
        client.sendall(head(start="HEAD / HTTP/1.1") + head(start="HEAD /x HTTP/1.1") + b"nonsense\r\n\r\n")
        answers = stream.read()
    assert re.findall(rb"HTTP/1.1 (\d+) ", answers) == [b"200", b"404", b"400"]
    assert answers.count(b"\r\n\r\nHTTP/1.1 ") == 2 and answers.endswith(b'"}')


@pytest.mark.parametrize("method, target, status, allow", [
    ("OPTIONS", "/create_job", 204, "POST, OPTIONS"), ("OPTIONS", "/status/x", 204, "GET, HEAD, OPTIONS"),
    ("OPTIONS", "*", 204, "GET, HEAD, OPTIONS"), ("OPTIONS", "/nothing", 204, "GET, HEAD, OPTIONS"),
    ("POST", "/create_job", 200, None), ("GET", "/nothing", 404, None), ("HEAD", "/", 200, None),
])
def test_every_answer_has_what_a_page_on_another_port_needs(server, method, target, status, allow):
    origin = "http://localhost:3000"
    plain = ask(server, method, target).headers
    cross = ask(server, method, target, f"Origin: {origin}", "Access-Control-Request-Headers: X-Key")

    assert (plain["Access-Control-Allow-Origin"], plain["Access-Control-Allow-Credentials"]) == ("*", None)
    assert (cross.status, cross.headers["Access-Control-Allow-Origin"]) == (status, origin)
    assert cross.headers["Access-Control-Allow-Credentials"] == "true"
    assert cross.headers["Access-Control-Expose-Headers"] == "Location, Retry-After"
    assert cross.headers["Allow"] == cross.headers["Access-Control-Allow-Methods"] == allow
    assert cross.headers["Access-Control-Allow-Headers"] == ("X-Key" if allow else None)
    assert cross.headers["Cache-Control"] == "no-store" and cross.headers["Date"].endswith(" GMT")
    assert ("Content-Length" in cross.headers) == (status != 204)


def test_a_client_that_resets_or_stalls_is_no_error(monkeypatch, capfd, lines):
    settimeout = socket.socket.settimeout
    monkeypatch.setattr(socket.socket, "settimeout", lambda self, s: settimeout(self, 0.05 if s == 75 else s))
    reset = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # linger for 0 seconds: then closing resets
    with tracker.create_server() as server:
        for request in b"", b"POST", head("Content-Length: 9"), head() * 50, ECHO * 50:
            with raw(server) as client, contextlib.suppress(ConnectionError):  # as nobody reads ECHO's answers
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                client.sendall(request)
        with raw(server) as stalled:
            stalled.sendall(b"POST /create")
            assert stalled.recv(1) == b""  # after the time-out
        create(server)
    assert capfd.readouterr() == ("", "")
    assert all(line.startswith("INFO") for line in lines())


def test_a_burst_of_clients_waits_its_turn_and_silent_ones_slow_nobody(clock):
    with contextlib.ExitStack() as stack:
        server = tracker.create_server(clock=clock)
        clients = [stack.enter_context(raw(server)) for _ in range(80)]
        stack.enter_context(server)
        assert create(server) in server.jobs
        for client in clients:
            client.sendall(head("Connection: close"))
        assert [answer.status for client in clients for answer in read_answers(client)] == [200] * 80


# --- Living in a test suite -------------------------------------------------------------------------------

def test_a_server_is_bound_when_it_is_made_shares_nothing_and_looks_up_no_name(server, monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("it was looked up"))
    with pytest.raises(OSError):
        tracker.create_server(port=server.server_port)
    with tracker.create_server(seed=1) as other:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", other.url)
        assert create(server) == create(other)  # as they have the same seed
        create(other)
    assert (len(server.jobs), len(other.service.jobs)) == (1, 2)


@pytest.mark.parametrize("host, url", [
    ("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("::", "http://[::1]:"),
])
def test_other_hosts_have_a_url_that_works(host, url):
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with tracker.create_server(host) as server:
        assert server.url.startswith(url)
        assert get(server.url + "/create_job", b"")["job_id"] in server.jobs


def test_at_the_end_of_the_block_the_port_refuses_connections_are_closed_and_nothing_is_left(clock, monkeypatch):
    def left():
        descriptors = "/proc/self/fd"
        return threading.active_count(), os.path.exists(descriptors) and len(os.listdir(descriptors))
    monkeypatch.setattr(tracker.TrackerServer, "grace", 4)
    before = left()
    for number in range(10):
        with contextlib.ExitStack() as stack:
            with pytest.raises(ZeroDivisionError), tracker.create_server(clock=clock) as server:
                idle, halfway, silent = (stack.enter_context(raw(server)) for _ in range(3))
                halfway.sendall(head("Content-Length: 100") + b"half")
                idle.sendall(head())
                if number % 2:  # in the even rounds the end may come before they are accepted
                    wait_until(lambda: threading.active_count() == before[0] + 4)
                    idle.recv(1, socket.MSG_PEEK)
                deadline = time.monotonic() + 4
                1 / 0
            assert threading.active_count() == before[0] and time.monotonic() < deadline  # not after the grace
            if number % 2:
                assert [len(read_answers(client)) for client in (idle, halfway, silent)] == [1, 0, 0]
            with pytest.raises(ConnectionRefusedError):
                raw(server)
        assert left() == before
    with tracker.create_server(port=server.server_port) as second:  # the port is free again at once
        assert second.url == server.url


@pytest.mark.parametrize("retry_after, header", [(None, None), (0, "0"), (7, "7")])
def test_an_answer_waits_for_its_latency_but_no_stop_does(clock, lines, retry_after, header):
    with tracker.create_server(clock=clock, latency=3600, retry_after=retry_after) as server:
        client = raw(server)
        client.sendall(head() * 2)
        wait_until(lambda: server.jobs)
        client.settimeout(0.06)
        with pytest.raises(TimeoutError):
            client.recv(1)
    with client:
        client.settimeout(5)
        (created,) = read_answers(client)
    assert [created.json["job_id"]] == list(server.jobs)
    assert created.headers["Retry-After"] == header


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


def test_a_failed_accept_costs_one_connection_and_a_patched_socket_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(tracker.TrackerServer, "timeout", 0.05)
    before = threading.active_count()
    no_sockets = mock.Mock(side_effect=RuntimeError("no sockets in tests"))
    with tracker.create_server() as server:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "accept", no_sockets)
            lost = raw(server)
            wait_until(lambda: no_sockets.called)
        assert create(server) in server.jobs
        lost.close()
        monkeypatch.setattr(socket, "socket", no_sockets)
    monkeypatch.undo()
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        raw(server)


@pytest.mark.skipif(os.name == "nt", reason="a child inherits no socket there")
def test_a_child_that_has_the_socket_too_does_not_keep_the_port():
    with contextlib.ExitStack() as stack, tracker.create_server() as server:
        command = [sys.executable, "-c", "input()"]
        child = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[server.fileno()]))
        stack.callback(child.kill)
        server.server_close()
        with pytest.raises(ConnectionRefusedError):
            raw(server)
        tracker.create_server(port=server.server_port).server_close()


def test_serve_forever_and_shutdown_mean_what_they_always_meant_in_any_order():
    server, unserved = tracker.create_server(), tracker.create_server()
    with ThreadPoolExecutor() as pool:
        first, second = pool.submit(server.serve_forever), pool.submit(server.serve_forever)
        assert create(server) in server.jobs
        for step in (server.shutdown, unserved.shutdown, server.serve_forever, unserved.server_close,
                     unserved.server_close, server.server_close):
            pool.submit(step).result(5)
        assert (first.result(5), second.result(5)) == (None, None)
    with server, pytest.raises(ConnectionRefusedError):  # a stopped server stays stopped
        raw(server)


def start(folder, *arguments):
    """Start a Python in a folder; nobody reads its standard error until it has ended."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": ""}
    command, pipe = [sys.executable, "-W", "error", *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_importing_has_no_effect_and_no_server_keeps_a_program_from_its_end(tmp_path):
    code = """
import logging, os, socket, threading, tracker
assert os.listdir() == [] and threading.active_count() == 1
assert not logging.getLogger().handlers and not logging.getLogger("tracker").handlers
server = tracker.create_server().__enter__()
client = socket.create_connection(server.server_address)
while threading.active_count() < 3: pass
"""
    with start(tmp_path, "-W", "ignore::ResourceWarning", "-c", code) as process:
        assert (*process.communicate(timeout=5), process.returncode) == ("", "", 0)
    names = ["ManualClock", "TrackerServer", "TranslationJob", "TranslationService", "create_server"]
    assert tracker.__all__ == names


# --- Running from the command line ------------------------------------------------------------------------

def test_a_process_says_how_to_use_it_logs_and_ends_however_many_signals_come(tmp_path):
    (tmp_path / "my.log").write_bytes(bytes(10_000_001))  # full
    options = "--port 0 --duration 0 0 --error-rate 1 --faults 429 --retry-after 7 --seed 5 --log-file my.log"
    with start(tmp_path, str(HERE / "tracker.py"), *options.split()) as process, contextlib.ExitStack() as stack:
        stack.callback(process.kill)
        printed = [process.stdout.readline() for _ in range(3)]
        url = re.search(r"http://\S+", printed[0]).group()
        process.server_address = url.removeprefix("http://").split(":")
        wait_until((tmp_path / "my.log.1").exists)
        job_id = create(process)
        fault = ask(process, "GET", f"/status/{job_id}")
        status = poll(process, job_id)["status"]
        assert len(send(process, head(start="OPTIONS * HTTP/1.1") * 1000)) == 1000  # more log than a pipe holds
        for _ in range(50):
            stack.enter_context(raw(process))
        if os.name != "nt":  # where terminate() is no signal
            for signum in signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM:
                process.send_signal(signum)
                time.sleep(0.001)
            assert process.wait(5) == 0
        process.kill()
        assert process.communicate(timeout=5) == ("", "")

    log = (tmp_path / "my.log").read_text(encoding="utf-8")
    assert printed[0].startswith(f"Listening on {url} ") and "my.log" in printed[0]
    assert printed[1:] == [f"  curl -X POST {url}/create_job\n", f"  curl {url}/status/JOB_ID\n"]
    assert job_id == tracker.TranslationService(seed=5).create_job().job_id
    assert (fault.status, fault.headers["Retry-After"], status) == (429, "7", "error")
    assert log.startswith(f"INFO - Job {job_id} created\n")
    assert re.search(r"metrics - Requests: 2, Status: error, Total time: \d\.\d\ds, Delay: \d\.\d\ds\n", log)
    assert {path.name for path in tmp_path.iterdir()} == {"my.log", "my.log.1"}


@pytest.mark.parametrize("options, words", [
    ("--port BUSY", "port BUSY: "), ("--port many", "argument --port: invalid int value: 'many'"),
    ("--port 70000", "port must be a number from 0, which picks a free one, to 65535, not 70000"),
    ("--host no..host", "no..host port 8000: "), ("--fault-rate 2", "fault_rate must be a number from 0 to 1"),
    ("--faults 503,x", "faults must be a list of HTTP statuses"), ("--duration 9 1", "duration must be a pair"),
    ("--speed 2", "unrecognized arguments: --speed 2"), ("--port 0 --log-file no/such.log", "such.log"),
])
def test_what_cannot_be_done_is_one_line_and_status_2(server, capsys, options, words):
    options, words = (text.replace("BUSY", str(server.server_port)) for text in (options, words))
    with pytest.raises(SystemExit) as exit:
        tracker.main(options.split())
    *usage, sentence = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2
    assert words in sentence and "Traceback" not in "".join(usage)


# --- The documents ----------------------------------------------------------------------------------------

def get(url, body=None):
    with urllib.request.urlopen(url, body, timeout=5) as response:
        return json.load(response)


def translate(url, sleep):
    """The client of the README's reader: it doubles its waits."""
    job_id, wait = get(url + "/create_job", b"")["job_id"], 1
    while get(f"{url}/status/{job_id}")["status"] in ("pending", "in_progress"):
        sleep(wait)
        wait *= 2
    return job_id


def test_the_examples_work_and_print_what_the_documents_say(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "my_client", sys.modules[__name__])
    monkeypatch.setattr(tracker.log, "disabled", True)  # or pytest's live log would stand among what is printed
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S):
        exec(block, names := {})
        [names[name]() for name in list(names) if name.startswith("test_")]
    assert capsys.readouterr().out == "".join(re.findall(r"^```text\n(.*?)^```", readme, re.M | re.S))
    with pytest.raises(SystemExit):
        tracker.main(["--help"])
    options = r"--[a-z][a-z-]+"
    assert set(re.findall(options, capsys.readouterr().out)) == {"--help", *re.findall(options, readme)}
    assert doctest.testmod(tracker) == (0, 5)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
