# /// script
# requires-python = ">=3.10"
# dependencies = ["pytest"]
# ///
"""What tracker.py promises, in the order in which a user meets it.

Time is moved by hand, and every server has a port of its own. `uv run test_tracker.py` runs it, too.
"""

import contextlib
import doctest
import gc
import http.client
import inspect
import itertools
import json
import logging
import math
import os
import pathlib
import random
import re
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
from unittest import mock

import pytest

import tracker
from tracker import ManualClock, TrackerServer, TranslationJob, TranslationService, create_server

HERE = pathlib.Path(__file__).parent
README = (HERE / "README.md").read_text(encoding="utf-8")
os.environ["no_proxy"] = "*"  # or urllib would ask a proxy for 127.0.0.1
cases = pytest.mark.parametrize
not_on_windows = pytest.mark.skipif(os.name == "nt", reason="no such thing on Windows")


# --- Helpers ----------------------------------------------------------------------------------------------
POST, OLD, CHUNKED = "POST /create_job HTTP/1.1", "POST /create_job HTTP/1.0", "Transfer-Encoding: chunked"

def head(*lines, start=POST, host="Host: localhost"):
    """Return the head of a request; it is complete if there is no body."""
    return "\r\n".join(filter(None, (start, host, *lines, "\r\n"))).encode("latin-1")

def poll_of(job, *lines):
    return head(*lines, start=f"GET /status/{job.job_id} HTTP/1.1")

# Its answer repeats the header: 300 answers that nobody reads fill all buffers.
ECHO = head("Access-Control-Request-Headers: " + "x" * 60_000, start="OPTIONS * HTTP/1.1")

def raw(server):
    """Return a new connection to a server, or to a process that has its url."""
    url = urllib.parse.urlsplit(server.url)
    return socket.create_connection((url.hostname, url.port), timeout=5)

def read_answers(client):
    """Read until the server closes; return each answer's headers, with its status, body and json."""
    answers = []
    with client.makefile("rb") as stream:
        while line := stream.readline():
            assert line.startswith(b"HTTP/1.1 ")
            answer = http.client.parse_headers(stream)
            answer.status = int(line[9:12])
            answer.body = stream.read(int(answer.get("Content-Length", 0)))
            answer.json = json.loads(answer.body or "null")
            answers.append(answer)
    return answers

def send(server, requests):
    """Send bytes on a new connection and return the answers to them."""
    with raw(server) as client:
        client.sendall(requests)
        client.shutdown(socket.SHUT_WR)
        return read_answers(client)

def ask(server, start, *lines):
    """Send a request, which begins like "GET /path", and return the answer to it."""
    (answer,) = send(server, head(*lines, start=start + " HTTP/1.1"))
    return answer

def create(server, query=""):
    return server.jobs[ask(server, "POST /create_job" + query).json["job_id"]]

def poll(server, job):
    (answer,) = send(server, poll_of(job))
    return answer

def statuses(answers):
    return [answer.status for answer in answers]

def in_threads(function, arguments):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, arguments))

def refuses(server):
    with contextlib.suppress(ConnectionRefusedError), raw(server):
        return False
    return True

def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)

def threads_and_sockets():
    """Return how many threads run, and how many sockets and threads Python still knows."""
    gc.collect()
    kinds = [type(thing) for thing in gc.get_objects()]
    return threading.active_count(), kinds.count(socket.socket), kinds.count(threading.Thread)

@pytest.fixture
def clock():
    return ManualClock()

@pytest.fixture
def server(clock):
    with create_server(duration=(30, 30), error_rate=0, seed=1, clock=clock) as server:
        yield server

@pytest.fixture
def lines(caplog, monkeypatch):
    """The log as main() writes it; some lines take a moment, so that others overtake them if they can."""
    caplog.set_level(logging.INFO, "tracker")
    moments = itertools.cycle([0.003, 0, 0])
    monkeypatch.setattr(tracker.log, "filters", [lambda record: time.sleep(next(moments)) is None])
    return lambda: [f"{record.levelname} - {record.getMessage()}" for record in caplog.records]


# --- A job's life: creating it, waiting for it, its end ---------------------------------------------------
def test_a_new_job_has_an_id_a_place_and_a_time_to_come_back(server):
    created = ask(server, "POST /create_job")
    job_id = created.json["job_id"]

    assert created.status == 200
    assert created.body == b'{"job_id": "%b"}\n' % job_id.encode()
    assert created["Content-Type"] == "application/json"
    assert created["Location"] == f"/status/{job_id}"
    assert created["Retry-After"] == "1"
    assert uuid.UUID(job_id).version == 4
    assert server.jobs[job_id].duration == 30

@cases("duration, elapsed, status", [
    ("30", 0, "pending"), ("30", 5.99, "pending"),
    ("30", 6, "in_progress"), ("30", 29.99, "in_progress"),
    ("30", 30, "completed"), ("30", 3600, "completed"),
    ("0", 0, "completed"), ("inf", 1e9, "pending"),
    ("1.1", 0.22, "in_progress"), ("7.1234561234", 7.1234561234, "completed"),
])
def test_a_poll_sees_what_the_time_since_creation_says_and_it_never_goes_back(
        server, clock, duration, elapsed, status):
    job = create(server, "?duration=" + duration)
    clock.now = elapsed
    first = poll(server, job)
    clock.now = 0
    second = poll(server, job)

    assert first.json == second.json == {"status": status}
    assert (job.updated_at, job.error_message) == (0 if status == "pending" else elapsed, None)

@cases("option, header", [(0, "0"), (7.0, "7"), (None, None)])
def test_retry_after_stands_in_each_answer_that_asks_for_patience(clock, option, header):
    with pytest.raises(ValueError, match="^retry_after must be a whole number"):
        create_server(retry_after=1.5)
    with create_server(duration=30, faults=[429, 503], clock=clock, retry_after=option) as server:
        answers = [ask(server, "POST /create_job")]
        (job,) = server.jobs.values()
        for clock.now in 0, 0, 0, 6, 30:
            answers.append(poll(server, job))

    assert [answer["Retry-After"] for answer in answers] == [header] * 5 + [None]
    with pytest.raises(ValueError, match="^retry_after must be a whole number of seconds"):
        create_server(retry_after=1.5)

def test_an_id_is_found_in_capitals_percent_encoded_and_with_a_query(server):
    job_id = create(server).job_id
    for way in job_id.upper(), job_id.replace("-", "%2D"), job_id + "?_=123":
        assert ask(server, "GET /status/" + way).json == {"status": "pending"}

    assert ask(server, "GET /status%2F" + job_id).status == 404

def test_a_look_is_no_poll_and_has_no_body(server, clock):
    job = create(server, "?faults=503")
    clock.now = 32
    paths = "/", f"/status/{job.job_id.upper()}", "/status/none"
    answers = [ask(server, "HEAD " + path) for path in paths]

    assert statuses(answers) == [200, 200, 404]
    assert {answer.body for answer in answers} == {b""}
    assert (job.requests, job.polls) == (0, [])
    assert (job.status, job.faults) == ("pending", [503])

def test_only_the_newest_100_000_jobs_are_kept(server):
    server.jobs.update(dict.fromkeys(range(99_999)))
    created = [create(server).job_id, create(server).job_id]

    assert list(server.jobs) == [*range(1, 99_999), *created]


# --- Measuring the poller ---------------------------------------------------------------------------------
TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]

@cases("duration, wait, polls, delay", [
    (30, 15.5, [15.5, 31], 1),
    (1, 0.1, TENTHS, 0),
    (0.95, 0.5000004, [0.5, 1.000001], 0.050001),
])
def test_requests_polls_total_time_and_delay_are_data(server, clock, duration, wait, polls, delay):
    job = server.service.create_job(duration=duration)
    assert (job.requests, job.polls) == (0, [])
    assert (job.total_time, job.delay) == (None, None)
    while job.delay is None:
        clock.sleep(wait)
        poll(server, job)
    assert (job.requests, job.polls) == (len(polls), polls)
    job.duration = clock.now = 100
    poll(server, job)

    assert (job.status, job.requests) == ("completed", len(polls) + 1)  # an end stays
    assert (job.total_time, job.delay) == (polls[-1], delay)

def test_a_poll_is_recorded_before_its_answer_leaves_in_one_packet_and_1000_with_their_times(server):
    job = create(server)
    with raw(server) as client:
        for count in range(1, 1002):
            client.sendall(poll_of(job))
            assert client.recv(65536).endswith(b'{"status": "pending"}\n')
            assert (job.requests, len(job.polls)) == (count, min(count, 1000))

def test_the_log_tells_the_life_of_a_job_and_the_metrics_once(server, clock, lines):
    job = create(server, "?faults=drop")
    dropped = send(server, poll_of(job) + head())
    for clock.now in 7, 42, 52:
        poll(server, job)
    job_id = job.job_id
    access = f'INFO - 127.0.0.1 - - [TIME] "GET /status/{job_id} HTTP/1.1"'

    assert dropped == []  # and the connection is closed
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

def test_polls_of_many_threads_are_recorded_and_logged_one_after_another(lines):
    readings, moments = itertools.count(), itertools.cycle([0.002, 0, 0])
    def slow_clock():
        reading = next(readings)
        time.sleep(next(moments))
        return reading
    service = TranslationService(duration=0, clock=slow_clock)
    jobs = [service.create_job() for _ in range(20)]
    polls = in_threads(service.query_status, [job.job_id for job in jobs] * 8)
    ends = lines()[20:]

    assert polls == polls[:20] * 8  # all see the same end
    assert [": pending -> " in line for line in ends] == [True, False] * 20
    assert [" - Requests: 1, " in line for line in ends] == [False, True] * 20
    assert all(job.polls == sorted(job.polls) for job in jobs)
    assert next(readings) == 20 + 160  # the clock is read once per job and once per poll

def test_jobs_of_many_threads_are_drawn_and_logged_one_after_another(lines, monkeypatch):
    alone, together = (TranslationService(seed=1, error_rate=0.5, clock=itertools.count().__next__)
                       for _ in range(2))
    jobs = [alone.create_job() for _ in range(40)]
    draw = random.Random.random
    monkeypatch.setattr(random.Random, "random", lambda dice: time.sleep(0.0005) or draw(dice))
    in_threads(lambda _: together.create_job(), jobs)

    assert list(together.jobs.values()) == jobs
    assert lines()[40:] == lines()[:40] == [f"INFO - Job {job.job_id} created" for job in jobs]


# --- Time as an argument ----------------------------------------------------------------------------------
@mock.patch.object(tracker.log, "disabled", True)  # or a log that somebody reads would use it up
def test_nothing_that_a_test_does_to_the_time_moves_a_job_or_is_used_up_by_the_server():
    before = TranslationService().create_job()
    listed = mock.Mock(side_effect=[946684800.0])  # by a test, or for ever by freezegun
    with mock.patch("time.time", listed), mock.patch("time.monotonic", listed):
        with create_server() as server:
            job = create(server)
            poll(server, job)
    assert not listed.called
    assert job.created_at == pytest.approx(before.created_at, abs=4)
    assert (job.status, job.polls) == ("pending", [pytest.approx(0, abs=4)])

def test_a_manual_clock_moves_only_forward_and_by_any_number():
    clock = ManualClock()
    for wrong in -1, math.nan, math.inf:
        with pytest.raises(ValueError, match="^seconds must be .*, not"):
            clock.sleep(wrong)
    clock.advance(2)
    clock.sleep(0.5)

    assert clock() == clock.now == 2.5

@cases("error", [OSError, KeyError, StopIteration])
def test_a_clock_that_fails_costs_one_answer_and_says_why(server, monkeypatch, caplog, error):
    job = create(server)
    monkeypatch.setattr(server.service, "clock", mock.Mock(side_effect=[error("no time"), 3.0]))
    failed, polled = send(server, poll_of(job) * 2)

    assert failed.status == 500
    assert polled.status == 200  # the connection goes on
    assert job.polls == [3.0]
    assert "Traceback" in caplog.text and error.__name__ in caplog.text

def test_a_tick_ages_a_job_at_each_of_its_own_polls():
    with create_server(duration=0.3, tick=0.1, error_rate=0, clock=itertools.count(9).__next__) as server:
        job, other = create(server, "?faults=503"), create(server)
        seen = [poll(server, job).json.get("status") for _ in range(3)]
        poll(server, other)
    assert seen == [None, "in_progress", "completed"]
    assert (job.polls, job.total_time, job.delay) == ([0.1, 0.2, 0.3], 0.3, 0)
    assert other.polls == [0.1]


# --- Choosing a fate --------------------------------------------------------------------------------------
def test_a_fate_may_be_chosen_in_the_query(clock):
    with create_server(error_rate=1, clock=clock) as server:
        chosen = create(server, "?duration=3&outcome=completed&faults=500,drop,hang&faults=429")
        drawn = create(server)

    assert (chosen.duration, chosen.outcome) == (3, "completed")
    assert drawn.outcome == "error"
    assert chosen.faults == [500, "drop", "hang", 429]

def test_scripted_faults_are_for_each_job_afresh_and_shared_with_nobody():
    faults = [503, "drop"]
    service = TranslationService(faults=faults)
    jobs = [service.create_job(faults=own) for own in (None, faults, "503,drop", [])]
    faults.clear()
    service.query_status(jobs[0].job_id)
    service.query_status(jobs[1].job_id)

    assert [job.faults for job in jobs] == [["drop"], ["drop"], [503, "drop"], []]
    assert service.create_job().faults == [503, "drop"]

@cases("query", [
    "duration=-1", "duration=nan", "duration=1_0", "duration=", "duration=1&duration=2", "outcome=fine",
    "outcome=", "faults=600", "faults=503,399", "faults=5_03", "faults=", "durations=3", "=3",
])
def test_an_unusable_parameter_is_named_and_creates_no_job(server, query):
    name, *_, given = re.split("[=,]", query)
    refused = ask(server, "POST /create_job?" + query)

    assert (refused.status, server.jobs) == (400, {})
    assert re.fullmatch(f"({name} must be .*, not '.*{given}'.|Parameter must be .*, not '(durations)?'.)",
                        refused.json["error_message"])

@cases("status, header, value", [
    (401, "WWW-Authenticate", 'Bearer realm="tracker"'),
    (407, "Proxy-Authenticate", 'Bearer realm="tracker"'),
    (405, "Allow", "GET, HEAD, OPTIONS"),
    (426, "Upgrade", "HTTP/2.0"), (426, "Connection", "Upgrade"),
    (429, "Retry-After", "1"), (400, "Retry-After", None),
])
def test_a_fault_is_a_poll_that_moves_nothing_and_has_the_header_of_its_status(
        server, clock, status, header, value):
    job = create(server, f"?faults={status},{status}")
    clock.now = 30
    fault, last = send(server, poll_of(job) + poll_of(job, "Connection: close"))

    assert (fault.status, fault[header]) == (status, value)
    assert last.get_all("Connection") == ["close"]
    assert (job.requests, job.polls) == (2, [30, 30])
    assert (job.status, job.faults) == ("pending", [])

def test_a_hang_gives_no_answer_and_ends_when_the_client_gives_up(server):
    job = create(server, "?faults=hang")
    before = threading.active_count()
    with raw(server) as client:
        client.sendall(poll_of(job))
        client.settimeout(0.03)
        with pytest.raises(TimeoutError):
            client.recv(1)
    wait_until(lambda: threading.active_count() == before)

    assert (job.requests, job.polls) == (1, [0])
    assert job.status == "pending"

def test_every_field_may_be_set_between_two_polls_and_an_error_has_a_message(server):
    assert TranslationJob("x") == TranslationJob("x", "pending", 0, 0, None, 0, "completed", [])
    job = create(server)
    job.faults, job.duration, job.outcome = [500], 0, "error"
    fault, first, second = (poll(server, job) for _ in range(3))
    drawn, job.error_message = job.error_message, "The disk is full."

    assert (fault.status, first["Retry-After"]) == (500, None)
    assert first.json == second.json == {"status": "error", "error_message": drawn}
    assert drawn in tracker.ERROR_MESSAGES
    assert poll(server, job).json["error_message"] == "The disk is full."


# --- The options, and what is drawn -----------------------------------------------------------------------
OF_SERVICE = {
    "duration": (5.0, 15.0), "error_rate": 0.1,
    "faults": (), "fault_rate": 0.0,
    "seed": None, "clock": time.monotonic, "tick": None,
}
OF_SERVER = {"host": "127.0.0.1", "port": 0, **OF_SERVICE, "latency": 0.0, "retry_after": 1}

@cases("function, options", [(TranslationService, OF_SERVICE), (create_server, OF_SERVER)])
def test_editors_and_type_checkers_see_each_option_with_its_type_and_default(function, options):
    parameters = inspect.signature(function).parameters.values()

    assert {parameter.name: parameter.default for parameter in parameters} == options
    assert inspect.Parameter.empty not in [parameter.annotation for parameter in parameters]

@cases("duration", [30, (30, 30), [30, 30]])
def test_a_duration_is_one_number_or_two(duration):
    assert TranslationService(duration=duration).create_job().duration == 30

def test_rates_are_chances_and_durations_are_drawn_from_their_range(clock):
    service = TranslationService(error_rate=0.25, fault_rate=0.5, seed=7, clock=clock)
    jobs = [service.create_job() for _ in range(2000)]
    faults = [service.query_status(job.job_id)[2] for job in jobs]

    assert 400 < [job.outcome for job in jobs].count("error") < 600
    assert 900 < faults.count(503) < 1100
    assert {(job.requests, *job.polls) for job in jobs} == {(1, 0)}  # a fault is a poll too
    assert {int(job.duration) for job in jobs} == set(range(5, 15))

def lives(polls=0, first={}, seed=42, **options):
    """Let 100 jobs live; return ids, outcomes, messages, durations, and the faults of their polls."""
    service = TranslationService(seed=seed, error_rate=0.5, fault_rate=0.5, **options)
    jobs, faults = [], []
    for number in range(100):
        job = service.create_job(**first if number == 0 else {})
        faults += [service.query_status(job.job_id)[2] for _ in range(polls)]
        job.update_status(math.inf)
        jobs.append((job.job_id, job.outcome, job.error_message, job.duration))
    return *zip(*jobs), faults

def test_the_same_seed_gives_the_same_jobs_and_faults_whatever_happens_to_other_jobs():
    assert lives(polls=1) == lives(polls=1)
    assert lives(seed=None) != lives(seed=None)
    assert set(lives()[2]) == {None, *tracker.ERROR_MESSAGES}
    assert lives(polls=3)[:4] == lives()[:4]
    later = [values[1:] for values in lives()]
    for fate in {"duration": 1}, {"outcome": "error"}, {"faults": [500]}:
        assert [values[1:] for values in lives(first=fate)] == later
    for duration in 0, 30, (0, 1), math.inf:
        assert lives(duration=duration)[:3] == lives()[:3]

def test_faults_are_drawn_with_other_dice_than_outcomes():
    for polls in range(1, 6):
        _, outcomes, _, _, faults = lives(polls)
        for number in range(polls):
            both = list(zip(outcomes, faults[number::polls])).count(("error", 503))
            assert 10 < both < 40  # of 100, where 50 fail and 50 are faulted


# --- Going wrong ------------------------------------------------------------------------------------------
@cases("status, allow, start", [
    (200, None, "GET /"),
    (200, None, "GET http://localhost"), (200, None, "GET http://localhost?x=/y"),
    (404, None, "GET /status/x"), (404, None, "POST //create_job"), (404, None, "CONNECT a:443"),
    (405, "POST, OPTIONS", "GET /create_job"), (405, "POST, OPTIONS", "BREW /create_job?x"),
    (405, "GET, HEAD, OPTIONS", "DELETE /status/x"),
])
def test_who_asks_for_no_job_is_told_what_there_is_and_the_connection_goes_on(server, status, allow, start):
    told, created = send(server, head("Content-Length: 6", start=start + " HTTP/1.1") + b"a body" + head())

    assert (told.status, told["Allow"], created.status) == (status, allow, 200)
    assert (f"takes {allow}, not " if allow else "GET /status/<job_id>").encode() in told.body

def test_a_job_that_is_forgotten_while_its_poll_waits_for_its_turn_is_unknown(server, monkeypatch):
    first, last, reading = create(server), create(server), threading.Event()

    def slow_clock():
        reading.set()
        time.sleep(0.01)
        server.jobs.pop(last.job_id, None)
        return 0

    monkeypatch.setattr(server.service, "clock", slow_clock)
    with ThreadPoolExecutor() as pool:
        pool.submit(poll, server, first)
        reading.wait(5)
        assert poll(server, last).status == 404

def test_nothing_that_is_requested_reaches_the_log_raw(server, lines):
    for target in b"/\x1b[31m", b"/\x00", b"/a\rINFO - forged", b"/\xc2\x85\x9b", b"/\\x0a":
        send(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    assert [bool(re.fullmatch("[ -~]*", line)) for line in lines()] == [True] * 5
    assert sum(r"\\x0a" in line for line in lines()) == 1  # so a single backslash is always an escape


# --- Speaking HTTP ----------------------------------------------------------------------------------------
def assert_taken(server, first):
    answers = send(server, first + head("Connection: Keep-Alive, Close") + head())
    assert statuses(answers) == [200, 200]
    assert [answer["Connection"] for answer in answers] == [None, "close"]
    assert len(server.jobs) == 2  # what comes after a close is not read

def assert_refused(server, malformed, status=400):
    (refused,) = send(server, malformed + head())
    assert (refused.status, refused["Connection"]) == (status, "close")
    assert server.jobs == {}  # what comes after it is not read
    assert refused["Access-Control-Allow-Origin"] == "*"
    assert re.fullmatch(r"[A-Z].{20,}\.", refused.json["error_message"])

@cases("whole", [
    b"\r\n\n" + head().replace(b"\r", b""),  # a lone LF, as of netcat
    head("Content-Length: 18") + b"GET / HTTP/1.1\r\n\r\n",
    head("cOnTeNt-LeNgTh:2 \t", "Y:", "X: caf\xe9\t\xff", host="hOST: a \t") + b"{}",
    head(start="POST http://[::1]/create_job HTTP/1.1", host="Host: [::1]:80"),
    *(head(CHUNKED.upper()) + body for body in [
        b"0\r\n\r\n", b"3\r\nabc\r\nA\r\n0123456\r\n9\r\n0\r\n\r\n", b"1;a=b\r\na\r\n1 \r\n0\r\n0\r\n\r\n",
        b"1\r\n0\r\n00\r\nX: 1\r\nY: 1\r\n\r\n"]),
])
def test_what_http_allows_works_and_the_connection_goes_on(server, whole):
    assert_taken(server, whole)

@cases("malformed", [
    *(head(start=start) for start in [
        "POST /create_job", POST + " ", "POST /\x01 HTTP/1.1", "POST /\rX HTTP/1.1", "POST x HTTP/1.1"]),
    *(head(line) for line in [
        "Content-Length : 0", "X: 1\r\n 2", "X: \0", "X: 1\rY: 2", "Host: a", "Content-Length: +5",
        "Content-Length: 5\r\nContent-Length: 5", "Content-Length: 1234567890123456789",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0"]),
    *(head(host=host) for host in ["", "Host:", "Host: a/b"]),
    *(head(CHUNKED) + body for body in [
        b"5\r\nhello!\r\n\r\n0\r\n\r\n", b"5\r\nhell\r\n0\r\n\r\n", b"0x\r\n\r\n", b"1\r\n0XX0\r\n\r\n",
        b"1\n0\r\n0\r\n\r\n", b"1\r\n0\n0\r\n\r\n", b"0\n\r\n", b"0\r\n\n", b"0\r\nX: 1\n\r\n",
        b"0\r\nGET / HTTP/1.1\r\n\r\n"]),
    head(CHUNKED, start=OLD) + b"0\r\n\r\n", head("Host: a", start=OLD),
])
def test_what_http_forbids_is_refused_with_the_reason_and_nothing_after_it_is_read(server, malformed):
    assert_refused(server, malformed)

def test_versions_lines_and_their_number_have_limits(server):
    assert_refused(server, head(start="PRI * HTTP/2.0"), 505)
    assert statuses(send(server, b"x" * 65536)) == [414]
    assert_refused(server, head(f"X: {'x' * 65532}"), 431)
    assert_refused(server, head(*["X: 1"] * 100), 431)
    assert_taken(server, head(f"X: {'x' * 65531}", *["X: 1"] * 98))

@cases("cut", [
    b"", b"POST /cre", head()[:-2], head("Content-Length: 9") + b"short",
    head(CHUNKED) + b"9\r\nshort", head(CHUNKED) + b"0\r\n",
])
def test_a_client_that_hangs_up_in_a_request_gets_no_answer_and_no_job(server, lines, cut):
    assert send(server, cut) == []
    assert server.jobs == {}
    assert lines() == []

def test_a_client_that_waits_for_100_continue_is_told_to_go_on_unless_it_is_refused_or_old(server):
    with raw(server) as client:
        client.sendall(head("Expect: 100-Continue", "Content-Length: 2", "Connection: close"))
        interim = client.recv(65536)
        client.sendall(b"{}")
        taken = read_answers(client)
    refused = send(server, head("Expect: 100-continue", host="Host: a/b"))
    old = send(server, head("Expect: 100-continue", "Connection: keep-alive", start=OLD, host="") + head())

    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert statuses(taken + refused + old) == [200, 400, 200]  # of HTTP/1.0, only the first is read

@cases("start", [
    "POST /create_job", "POST /create_job?x", "GET /x", "GET /create_job", "GET /status/bug",
    "GET /status/fault", "HEAD /x", "OPTIONS *",
])
def test_every_answer_has_what_a_page_on_another_port_needs(server, start):
    server.jobs.update(fault=TranslationJob("fault", faults=[503] * 3), bug=None)
    plain = head(start=start + " HTTP/1.1")
    cross = head("Origin: http://a:3000", start=start + " HTTP/1.1")
    with raw(server) as client, client.makefile() as stream:
        client.sendall(plain + cross + plain + cross + b"nonsense\r\n")
        client.shutdown(socket.SHUT_WR)
        _, *answers = stream.read().split("HTTP/1.1 ")

    assert len(answers) == 5
    for answer in answers:
        assert "\nAccess-Control-Expose-Headers: Location, Retry-After\n" in answer
        assert "\nCache-Control: no-store\n" in answer
        assert " GMT\n" in answer
    for answer in answers[1], answers[3]:
        assert "\nAccess-Control-Allow-Origin: http://a:3000\n" in answer
        assert "\nAccess-Control-Allow-Credentials: true\n" in answer
    for answer in answers[::2]:  # which do not have the Origin of the request before them
        assert "\nAccess-Control-Allow-Origin: *\n" in answer
        assert "Access-Control-Allow-Credentials" not in answer

def test_a_preflight_is_allowed_what_it_asks_for(server):
    plain = ask(server, "OPTIONS /create_job")
    asking = ask(server, "OPTIONS *", "Access-Control-Request-Headers: X-Key")

    assert plain.status == 204
    assert plain["Allow"] == plain["Access-Control-Allow-Methods"] == "POST, OPTIONS"
    assert plain["Access-Control-Allow-Headers"] == "*"
    assert asking["Access-Control-Allow-Headers"] == "X-Key"

@cases("header, begin, end", [
    ("Content-Length: 20000000", b"", b""), (CHUNKED, b"1312d00\r\n", b"\r\n0\r\n\r\n"),
])
def test_a_body_is_thrown_away_in_small_pieces(server, header, begin, end):
    body = bytes(20_000_000)
    with raw(server) as client:
        tracemalloc = pytest.importorskip("tracemalloc")  # PyPy has none
        tracemalloc.start()
        client.sendall(head(header, "Connection: close") + begin)
        client.sendall(body)
        client.sendall(end)
        (answer,) = read_answers(client)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert answer.status == 200
    assert peak < 2_000_000

def test_answers_that_do_not_fit_into_one_packet_arrive_whole(server):
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # inherited by its connections
    with raw(server) as client, ThreadPoolExecutor() as pool:
        pool.submit(client.sendall, ECHO * 30 + head("Connection: close"))
        answers = read_answers(client)
    assert {len(answer["Access-Control-Allow-Headers"]) for answer in answers[:30]} == {60_000}
    assert statuses(answers) == [204] * 30 + [200]

@cases("body", [bytes(10_000_000), [bytes(100_000)] * 100], ids=["length", "chunks"])
def test_a_refused_client_reads_the_reason_even_if_it_goes_on_writing(server, body):
    with contextlib.closing(http.client.HTTPConnection(*server.server_address, timeout=5)) as client:
        client.request("POST", "/create_job", body, {"Bad Header": "x"})
        assert client.getresponse().status == 400

def test_a_refused_client_that_writes_for_ever_is_cut(server, monkeypatch):
    monkeypatch.setattr(TrackerServer, "grace", 0.05)
    with raw(server) as client, pytest.raises(ConnectionError):
        client.sendall(b"nonsense\r\n")
        for _ in range(1_000_000):
            client.sendall(bytes(100_000))

@cases("sent", [
    b"", b"POST /cre", head("Content-Length: 9") + b"half", ECHO, poll_of(TranslationJob("x"))])
def test_a_connection_may_be_silent_and_a_hang_may_last_for_75_seconds(monkeypatch, sent):
    waits, wait = [], TrackerServer.wait
    monkeypatch.setattr(TrackerServer, "wait", lambda self, seconds, *sockets:
                        waits.append(seconds) or wait(self, min(seconds, 0.01), *sockets))
    with create_server() as server, raw(server) as client:
        server.jobs["x"] = TranslationJob("x", faults=["hang"])
        client.sendall(sent)
        read_answers(client)

    assert set(waits) - {0.5} == {75}  # 0.5 is the accepting thread's

def test_clients_that_reset_their_connection_are_no_error(capfd, lines):
    reset = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # linger for 0 seconds: then closing resets
    with create_server() as server:
        for sent in b"POST", head("Content-Length: 9"), ECHO * 50:
            with raw(server) as client, contextlib.suppress(ConnectionError):  # nobody reads ECHO's answers
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                client.sendall(sent)
        create(server)
    assert capfd.readouterr() == ("", "")
    assert all(line.startswith("INFO") for line in lines())

@pytest.mark.skipif(sys.implementation.name != "cpython", reason="only CPython forgets at once")
def test_a_burst_of_clients_waits_its_turn_and_is_forgotten_afterwards(clock):
    server = create_server(clock=clock)
    before = threads_and_sockets()
    clients = [raw(server) for _ in range(80)]
    with server:
        for client in reversed(clients):
            client.sendall(head("Connection: close"))
            with client:
                assert statuses(read_answers(client)) == [200]
        del client, clients
        wait_until(lambda: threads_and_sockets() == (before[0] + 1, before[1], before[2] + 1))


# --- Living in a test suite -------------------------------------------------------------------------------
def test_a_server_is_bound_when_it_is_made_looks_up_no_name_and_shares_nothing(server, monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("it was looked up"))
    with create_server() as other:
        job = create(other)
    with pytest.raises(OSError):
        create_server(port=server.server_port)
    with contextlib.suppress(OSError):  # somebody has it
        create_server(port=65535, fault_rate=1).server_close()

    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", other.url)
    assert (other.service.jobs, server.jobs) == ({job.job_id: job}, {})

@cases("host, called", [("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")])
def test_other_hosts_have_a_url_that_works(host, called):
    try:
        socket.create_server((called, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with create_server(host) as server:
        assert create(server)

    assert urllib.parse.urlsplit(server.url).hostname == called

def test_at_the_end_of_the_block_all_connections_are_closed_and_nothing_is_left(clock, monkeypatch):
    before = threads_and_sockets()
    with contextlib.ExitStack() as stack:
        with pytest.raises(ZeroDivisionError), create_server(clock=clock, faults=["hang"]) as server:
            clients = [stack.enter_context(raw(server)) for _ in range(4)]
            for client, sent in zip(clients, [head(), head("Content-Length: 9"), poll_of(create(server))]):
                client.sendall(sent)
            wait_until(lambda: threading.active_count() == before[0] + 5 and len(server.jobs) == 2)
            monkeypatch.setattr(socket, "socket", mock.Mock(side_effect=RuntimeError))  # by pytest-socket
            1 / 0
        monkeypatch.undo()

        assert threading.active_count() == before[0]
        assert [len(read_answers(client)) for client in clients] == [1, 0, 0, 0]
        assert refuses(server)
        create_server(port=server.server_port).server_close()  # it is free again at once
    del client, clients, stack, server
    assert threads_and_sockets() <= before  # PyPy may have forgotten more

def test_a_latency_holds_up_no_other_and_no_stop_and_what_was_sent_after_it_gets_no_answer(clock):
    with create_server(clock=clock, latency=3600) as server:
        with mock.patch.object(TrackerServer, "wait", autospec=True, side_effect=TrackerServer.wait) as wait:
            clients = [raw(server), raw(server)]
            for client in clients:
                client.sendall(head() * 2)
            wait_until(lambda: wait.call_args_list.count(mock.call(server, 3600)) == 2)
    for client in clients:
        with client:
            assert [answer["Connection"] for answer in read_answers(client)] == ["close"]

def test_a_stop_resets_clients_in_the_midst_of_an_upload():
    def upload(client):
        client.sendall(head("Content-Length: 999999999999"))
        while True:
            client.sendall(bytes(100_000))

    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        with create_server() as server:
            clients = [stack.enter_context(raw(server)) for _ in range(6)]
            uploads = [pool.submit(upload, client) for client in clients]
            time.sleep(0.01)
        assert {isinstance(upload.exception(), ConnectionError) for upload in uploads} == {True}

def test_a_client_that_reads_nothing_does_not_hold_up_the_end(clock, monkeypatch):
    assert TrackerServer.grace == 1
    monkeypatch.setattr(TrackerServer, "grace", 0.2)
    before = threading.active_count()
    with create_server(clock=clock) as server, raw(server) as client:
        client.settimeout(0.05)
        with contextlib.suppress(OSError):
            while True:
                client.sendall(ECHO)
        server.server_close()
        assert threading.active_count() == before

@cases("kind, name", [(socket.socket, "accept"), (threading.Thread, "start")])
def test_a_failed_accept_or_thread_costs_one_connection_and_prints_nothing(
        server, monkeypatch, capfd, kind, name):
    failing = mock.Mock(side_effect=RuntimeError("none in this test"))
    with monkeypatch.context() as patch, raw(server):  # whose thread may have been started by now
        patch.setattr(kind, name, failing)
        with raw(server):
            wait_until(lambda: failing.called)

    assert create(server)
    assert capfd.readouterr() == ("", "")

def test_an_exception_while_an_answer_is_written_goes_to_the_log_alone(server, caplog, capfd):
    job = create(server, "?outcome=error&duration=0")
    job.error_message = b"no JSON"
    answers = send(server, poll_of(job))
    wait_until(lambda: "Traceback" in caplog.text)
    assert answers == []
    assert capfd.readouterr() == ("", "")

@not_on_windows
@pytest.mark.filterwarnings("ignore:.*fork")
def test_forked_children_that_stay_in_the_block_or_leave_it_keep_neither_port_nor_clients():
    leaving = None
    try:
        with create_server() as server, raw(server) as client:
            client.sendall(head())
            client.recv(65536)
            staying = os.fork() or signal.pause()
            leaving = os.fork()
            if leaving == 0:
                server.shutdown()
                raise InterruptedError
            wait_until(lambda: os.waitpid(leaving, os.WNOHANG)[0])
            client.sendall(head("Connection: close"))
            assert len(read_answers(client)) == 1
            assert create(server)
        assert refuses(server)
    finally:
        if leaving == 0:
            os._exit(0)
        os.kill(staying, signal.SIGKILL)
        os.waitpid(staying, 0)

def test_serve_forever_and_shutdown_mean_what_they_always_meant_in_any_order():
    server, unserved = create_server(), create_server()
    with ThreadPoolExecutor() as pool:
        serving = [pool.submit(server.serve_forever) for _ in range(2)]
        waiting = pool.submit(server.wait, 5)
        create(server)
        for step in (*[server.shutdown] * 500, unserved.shutdown, server.serve_forever, unserved.server_close,
                     unserved.server_close, server.server_close):
            pool.submit(step).result(5)
        assert [future.result(5) for future in (*serving, waiting)] == [None, None, False]
    with server:
        assert refuses(server) and not server.wait(5)  # a stopped server stays stopped

def test_shutdown_waits_for_the_connection_that_is_being_accepted(server, monkeypatch):
    begun, done, process_request = threading.Event(), threading.Event(), server.process_request
    def slowly(*connection):
        begun.set()
        time.sleep(0.01)
        process_request(*connection)
        done.set()
    monkeypatch.setattr(server, "process_request", slowly)
    with raw(server):
        begun.wait(5)
        server.shutdown()

    assert done.is_set()

def start(folder, *arguments, stderr=subprocess.PIPE):
    """Start a Python in a folder; nobody reads its standard error until it has ended, if it is a pipe."""
    paths = str(HERE) + os.pathsep + os.environ.get("PYTHONPATH", "")
    own = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": ""}
    return subprocess.Popen([sys.executable, "-W", "error", *arguments], cwd=folder, text=True,
                            env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=stderr)

def test_importing_has_no_effect_and_an_unclosed_server_keeps_no_program(tmp_path):
    code = """
import logging, os, socket, threading, tracker
assert "ManualClock TrackerServer TranslationJob TranslationService create_server".split() == tracker.__all__
assert os.listdir() == [] and threading.active_count() == 1
assert not logging.getLogger().handlers and not tracker.log.handlers and not tracker.log.level
server = tracker.create_server().__enter__()
client = socket.create_connection(server.server_address)
while threading.active_count() < 3: pass
"""
    with start(tmp_path, "-W", "ignore::ResourceWarning", "-c", code) as process:
        assert (*process.communicate(timeout=5), process.returncode) == ("", "", 0)


# --- Running from the command line ------------------------------------------------------------------------
@contextlib.contextmanager
def serving(folder, *options, program=(str(HERE / "tracker.py"),), **streams):
    """Run tracker.py with a free port; yield its process, with what it printed and its url."""
    with start(folder, *program, "--port", "0", *options, **streams) as process:
        with contextlib.ExitStack() as stack:
            stack.callback(process.kill)
            process.printed = [process.stdout.readline() for _ in range(3)]
            process.url = re.search(r"http://[\w.:]+", process.printed[0]).group()
            yield process

def test_a_process_says_how_to_use_it_and_logs_whoever_reads_or_has_configured_what(tmp_path):
    log = tmp_path / "my.log"
    log.write_bytes(b" " * 10_000_001)  # there is no rotation
    code = "import logging, sys, tracker; logging.basicConfig(); sys.exit(tracker.main())"
    with serving(tmp_path, "--log-file", "my.log", "--seed", "5", program=("-c", code)) as process:
        send(process, head() + head(start="OPTIONS * HTTP/1.1") * 1000)  # more log than a pipe holds
    url = process.url
    job = TranslationService(seed=5).create_job()
    logged = log.read_text(encoding="utf-8")

    assert process.printed[0].startswith(f"Listening on {url} ")
    assert process.printed[1:] == [f"  curl -X POST {url}/create_job\n", f"  curl {url}/status/JOB_ID\n"]
    assert logged.startswith(" " * 10_000_001 + f"INFO - Job {job.job_id} created\n")

FULL = "/dev/full" if os.path.exists("/dev/full") else "server.log"  # only Linux has a disk without space

@not_on_windows
@cases("signum, log", [(signal.SIGINT, "server.log"), (signal.SIGTERM, FULL)])
def test_a_signal_ends_it_cleanly_however_often_it_comes_and_even_if_the_disk_is_full(tmp_path, signum, log):
    with serving(tmp_path, "--log-file", log) as process, raw(process) as client:
        client.sendall(head())
        client.recv(1)
        wait_until(lambda: process.poll() is not None or process.send_signal(signum))
        assert (process.returncode, *process.communicate()) == (0, "", "")

def test_a_signal_that_comes_as_the_url_is_printed_ends_it_cleanly_too(tmp_path):
    code = """
import io, signal, sys, tracker
class Reader(io.StringIO):
    def write(self, text):
        signal.raise_signal(signal.SIGTERM)
sys.stdout = Reader()
sys.exit(tracker.main(["--port", "0"]))
"""
    with start(tmp_path, "-c", code) as process:
        assert (*process.communicate(timeout=5), process.returncode) == ("", "", 0)

@not_on_windows
def test_the_log_is_shown_on_a_terminal_too(tmp_path):
    try:
        terminal, its_end = os.openpty()
    except OSError:
        pytest.skip("this machine has no terminals")
    os.set_blocking(terminal, False)
    with serving(tmp_path, stderr=its_end) as process:
        send(process, head())
        assert re.match(rb"INFO - Job \S+ created", os.read(terminal, 999))
        assert (tmp_path / "server.log").exists()
    os.close(terminal)
    os.close(its_end)

def made_with(monkeypatch, options):
    """Return the arguments with which `main` would make its server."""
    create_server = mock.Mock(side_effect=OSError("not now"))
    monkeypatch.setattr(tracker, "create_server", create_server)
    with pytest.raises(SystemExit):
        tracker.main(options.split())
    return {**OF_SERVER, **create_server.call_args.kwargs}

def test_each_option_of_the_command_line_reaches_the_server_or_has_the_default_of_python(monkeypatch):
    options = ("--host ::1 --port 5 --duration 5 9 --error-rate 0.5 --faults 503,drop --fault-rate 0.25 "
               "--tick 2.5 --latency 0.75 --retry-after 9 --seed 7")

    assert made_with(monkeypatch, "") == {**OF_SERVER, "port": 8000}
    assert made_with(monkeypatch, "--duration 30")["duration"] == [30]
    assert made_with(monkeypatch, options) == {
        "host": "::1", "port": 5, "duration": [5, 9], "error_rate": 0.5, "faults": "503,drop",
        "fault_rate": 0.25, "tick": 2.5, "latency": 0.75, "retry_after": 9, "seed": 7,
        "clock": time.monotonic}

@cases("options, sentence", [
    ("--port BUSY", "serve on 127.0.0.1 port BUSY: "), ("--host no..host", "serve on no..host port 8000: "),
    ("--port many", "argument --port: invalid int value: 'many'"), ("--speed 2", "arguments: --speed 2"),
    ("--port 0 --log-file no/such.log", "cannot log: "),
])
def test_what_cannot_be_done_is_one_line_and_status_2(server, capsys, options, sentence):
    options, sentence = (text.replace("BUSY", str(server.server_port)) for text in (options, sentence))
    with pytest.raises(SystemExit) as exit:
        tracker.main(options.split())
    *_, last = capsys.readouterr().err.splitlines()

    assert exit.value.code == 2
    assert sentence in last

@cases("option", [
    "--duration 9 1", "--duration -1", "--duration nan", "--duration 0 nan", "--duration 1 2 3",
    "--error-rate -0.1", "--error-rate 1.1", "--error-rate nan",
    "--faults 200", "--faults 399", "--faults 600", "--faults 503,x",
    "--fault-rate -0.1", "--fault-rate 1.1", "--fault-rate nan", "--tick 0", "--tick -1", "--tick nan",
    "--latency -1", "--latency 3601", "--latency nan", "--retry-after -1", "--port -1", "--port 65536",
])
def test_a_value_out_of_range_is_named_and_not_blamed_on_the_port(capsys, option):
    with pytest.raises(SystemExit):
        tracker.main(option.split())
    name, *_, given = re.split("[ ,]", option.removeprefix("--"))
    sentence = capsys.readouterr().err.splitlines()[-1]

    assert re.search(f"error: {name.replace('-', '_')} must be .*, not .*{given}", sentence)

def test_help_says_what_it_is_and_its_defaults_and_names_the_options_of_the_readme(capsys):
    with pytest.raises(SystemExit):
        tracker.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    option = r"--[a-z][a-z-]+"

    assert "A fake video-translation service that measures how well its clients poll." in shown
    assert set(re.findall(r"\(default: (.*?)\)", shown)) == {
        "127.0.0.1", "8000", "5 15", "0.1", "0", "1", "none", "server.log"}
    assert set(re.findall(option, shown)) == {"--help", *re.findall(option, README)}


# --- The documents ----------------------------------------------------------------------------------------
@mock.patch.object(tracker.log, "disabled", True)  # or pytest's live log would be printed, too
def test_the_examples_of_docstring_and_readme_work_and_print_what_they_say(tmp_path):
    blocks = re.findall(r"^```python\n(# (\w+\.py).*?)^```", README, re.M | re.S)
    for block, name in blocks:
        with open(tmp_path / name, "a", encoding="utf-8") as file:
            file.write(block)
    suite = start(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    with start(tmp_path, "strategies.py") as strategies, suite:
        printed = strategies.communicate(timeout=30)
        report = suite.communicate(timeout=30)
    if sys.flags.optimize < 2:  # or docstrings are gone
        assert doctest.testmod(tracker) == (0, 5)
    assert len(blocks) == README.count("```python\n")
    assert suite.returncode == 0, report
    assert printed == ("".join(re.findall(r"^```text\n(.*?)^```", README, re.M | re.S)), "")

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
