# /// script
# requires-python = ">=3.10"
# dependencies = ["pytest"]
# ///
"""What tracker.py promises, in the order in which a user meets it.

Time is moved by hand: no test sleeps to let a job finish. Every server has a port of its own, so that the suite may
run beside itself. `python -m pytest` or `uv run test_tracker.py` runs it.
"""

import contextlib
import doctest
import email.utils
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
import textwrap
import threading
import time
import types
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

import tracker

HERE = pathlib.Path(__file__).parent
README = (HERE / "README.md").read_text(encoding="utf-8")


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


@contextlib.contextmanager
def connected(server):
    """A keep-alive connection of the standard library's client."""
    with contextlib.closing(http.client.HTTPConnection(*server.server_address[:2], timeout=5)) as connection:
        yield connection


def ask(place, method, target, body=None, headers={}):
    """Send one request, over a connection or to a server, and return the answer."""
    if isinstance(place, tracker.TrackerServer):
        with connected(place) as connection:
            return ask(connection, method, target, body, headers)
    place.request(method, target, body, headers)
    response = place.getresponse()
    return Answer(response.status, response.headers, response.read())


def create(place, query=""):
    return ask(place, "POST", "/create_job" + query).json["job_id"]


def poll(place, job_id):
    return ask(place, "GET", f"/status/{job_id}").json


@contextlib.contextmanager
def raw(server):
    with socket.create_connection(server.server_address[:2], timeout=5) as client:
        yield client


def send(server, request):
    """Send raw bytes and return the answers to them, read until the server closes."""
    with raw(server) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return read_answers(client)


def read_answers(client):
    stream, answers = client.makefile("rb"), []
    with stream:
        while line := stream.readline():
            version, status, _ = line.decode().split(" ", 2)
            headers = http.client.parse_headers(stream)
            content = stream.read(int(headers.get("Content-Length", 0)))
            assert version == "HTTP/1.1"
            answers.append(Answer(int(status), headers, content))
    return answers


def wait_until(condition):
    """Wait, for a few seconds at most, for another thread to get there."""
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    pytest.fail("it did not happen")


def started(function, *args):
    """A thread that has begun; a daemon, as what it calls might hang."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    return thread


def ends(thread):
    thread.join(5)
    return not thread.is_alive()


def fail(*_):
    raise OSError


@pytest.fixture
def clock():
    return tracker.ManualClock()


@pytest.fixture
def service(clock):
    return tracker.TranslationService(duration=(30, 30), error_rate=0, clock=clock)


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

    assert answer.status == 200
    assert list(answer.json) == ["job_id"]
    assert uuid.UUID(answer.json["job_id"]).version == 4
    assert answer.headers["Location"] == f"/status/{answer.json['job_id']}"
    assert answer.headers["Retry-After"] == "1"


def test_every_answer_has_the_headers_that_a_page_on_another_port_needs(server):
    for method, target in ("POST", "/create_job"), ("GET", "/nothing"), ("PUT", "/create_job"):
        headers = ask(server, method, target).headers

        assert headers["Cache-Control"] == "no-store"
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert headers["Access-Control-Expose-Headers"] == "Location, Retry-After"
        assert email.utils.parsedate_to_datetime(headers["Date"])


def test_whatever_the_body_is_it_is_read_and_thrown_away(server):
    with connected(server) as connection:
        for body in b"", b'{"video": "a.mp4"}', b"GET / HTTP/1.1\r\n\r\n", bytes(1_000_000):
            assert ask(connection, "POST", "/create_job", body).json["job_id"] in server.jobs


def test_only_the_newest_jobs_are_kept(service, monkeypatch):
    monkeypatch.setattr(tracker, "JOBS_KEPT", 3)

    created = [service.create_job().job_id for _ in range(5)]

    assert list(service.jobs) == created[2:]


# --- Waiting for it, to its end -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "elapsed, status",
    [(0, "pending"), (5.99, "pending"), (6, "in_progress"), (29.99, "in_progress"), (30, "completed"), (3600, "completed")],
)  # fmt: skip
def test_status_is_a_function_of_time(server, clock, elapsed, status):
    job_id = create(server)
    clock.advance(elapsed)

    assert poll(server, job_id) == {"status": status}


def test_retry_after_is_sent_only_while_the_job_is_unfinished(server, clock):
    job_id = create(server)
    assert ask(server, "GET", f"/status/{job_id}").headers["Retry-After"] == "1"

    clock.advance(30)
    assert "Retry-After" not in ask(server, "GET", f"/status/{job_id}").headers


@pytest.mark.parametrize("retry_after, header", [(None, None), (0, "0"), (7, "7")])
def test_retry_after_is_an_option(retry_after, header):
    with tracker.create_server(retry_after=retry_after) as server:
        assert ask(server, "POST", "/create_job").headers["Retry-After"] == header


def test_a_failed_translation_says_why_and_is_still_http_200(server, clock):
    job_id = create(server, "?outcome=error")
    assert poll(server, job_id) == {"status": "pending"}
    assert server.jobs[job_id].error_message is None
    clock.advance(30)

    answer = ask(server, "GET", f"/status/{job_id}")

    assert answer.status == 200
    assert answer.json == {"status": "error", "error_message": server.jobs[job_id].error_message}
    assert answer.json["error_message"] in tracker.ERROR_MESSAGES


def test_no_later_reading_of_the_clock_moves_a_status_back():
    job = tracker.TranslationJob("x", created_at=100.0, duration=10.0)
    seen = []
    for now in 101, 103, 100, 110, 100:
        job.update_status(now)
        seen.append(job.status)

    job.duration = 5000.0
    job.update_status(2000)

    assert seen == ["pending", "in_progress", "in_progress", "completed", "completed"]
    assert job.status == "completed"
    assert job.updated_at == 110


def test_a_duration_of_zero_has_ended_at_the_first_poll_and_inf_never_ends(service, clock):
    short, endless = service.create_job(duration=0), service.create_job(duration=math.inf)
    clock.advance(1e9)

    assert service.query_status(short.job_id)[0] == "completed"
    assert service.query_status(endless.job_id)[0] == "pending"


def test_head_has_the_headers_of_get_and_no_body(server):
    job_id = create(server)
    expected = ask(server, "GET", f"/status/{job_id}").headers

    answer = ask(server, "HEAD", f"/status/{job_id}")

    assert set(answer.headers) == set(expected)
    assert answer.headers["Content-Length"] == expected["Content-Length"]
    assert answer.content == b""


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


def test_polls_are_kept_up_to_a_limit_and_counted_beyond_it(service, monkeypatch):
    monkeypatch.setattr(tracker, "POLLS_KEPT", 3)
    job = service.create_job()
    for _ in range(5):
        service.query_status(job.job_id)

    assert (len(job.polls), job.requests) == (3, 5)


def test_a_query_is_recorded_before_its_answer_leaves(server):
    with connected(server) as connection:
        job = server.jobs[create(connection)]
        for count in range(1, 1001):
            poll(connection, job.job_id)
            assert job.requests == count


def test_the_log_tells_the_life_of_a_job_and_the_metrics_once(server, clock, lines):
    job_id = create(server)
    for wait in 7, 35, 10:
        clock.advance(wait)
        poll(server, job_id)
    query = f'"GET /status/{job_id} HTTP/1.1" 200 -'

    log = [re.sub(r"\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d", "TIME", line) for line in lines()]

    assert log == [
        f"INFO - Job {job_id} created",
        'INFO - 127.0.0.1 - - [TIME] "POST /create_job HTTP/1.1" 200 -',
        f"INFO - Job {job_id}: pending -> in_progress",
        f"INFO - 127.0.0.1 - - [TIME] {query}",
        f"INFO - Job {job_id}: in_progress -> completed",
        "INFO - Translation metrics - Requests: 2, Status: completed, Total time: 42.00s, Delay: 12.00s",
        f"INFO - 127.0.0.1 - - [TIME] {query}",
        f"INFO - 127.0.0.1 - - [TIME] {query}",
    ]


def test_eight_threads_see_one_ending(server, clock, lines):
    job_id = create(server)
    clock.advance(30)
    together = threading.Barrier(8)

    def client(_):
        with connected(server) as connection:
            connection.connect()
            together.wait()
            return poll(connection, job_id)["status"]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(client, range(8))) == {"completed"}

    assert server.jobs[job_id].requests == 8
    assert sum("Translation metrics" in line for line in lines()) == 1


def test_log_lines_are_written_outside_the_lock(service, clock, lines):
    locked = []
    tracker.log.addFilter(watch := lambda record: locked.append(service._lock.locked()) or True)
    try:
        job = service.create_job()
        clock.advance(30)
        service.query_status(job.job_id)
    finally:
        tracker.log.removeFilter(watch)

    assert locked == [False] * 3


def test_jobs_are_created_and_queried_one_at_a_time(service):
    inside, most = [], []

    def slow_clock():
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.001)
        inside.pop()
        return 0.0

    service._clock = slow_clock
    job = service.create_job()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(service.create_job)
            pool.submit(service.query_status, job.job_id)

    assert most == [1] * 17


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

    assert job.polls == [5, 10, 15, 20, 25, 30]
    assert job.status == "completed"


def test_a_faster_clock():
    real = itertools.count().__next__
    service = tracker.TranslationService(duration=(60, 60), error_rate=0, clock=lambda: real() * 60)
    job = service.create_job()

    assert service.query_status(job.job_id)[0] == "completed"


def test_a_manual_clock_moves_only_forward():
    clock = tracker.ManualClock(100.0)
    clock.advance(2)
    clock.sleep(0.5)

    assert clock() == clock.now == 102.5
    for wrong in -1, math.nan, math.inf, "1":
        with pytest.raises(ValueError, match="seconds must be a finite number, 0 or more, not"):
            clock.sleep(wrong)


@pytest.mark.parametrize("mistake", [ZeroDivisionError, KeyError, ValueError, OSError, StopIteration])
def test_a_clock_that_fails_costs_one_answer_and_nothing_else(server, lines, mistake):
    def broken():
        raise mistake

    with connected(server) as connection:
        job_id = create(connection)
        server.service._clock = broken
        answers = ask(connection, "GET", f"/status/{job_id}"), ask(connection, "POST", "/create_job")
        server.service._clock = lambda: 3.0

        assert [answer.status for answer in answers] == [500, 500]
        assert "bug" in answers[0].json["error_message"]
        assert poll(connection, job_id) == {"status": "pending"}
    assert (server.jobs[job_id].polls, len(server.jobs)) == ([3.0], 1)
    assert [line for line in lines() if line.startswith("ERROR")] == [
        f"ERROR - A bug met 'GET /status/{job_id} HTTP/1.1'", "ERROR - A bug met 'POST /create_job HTTP/1.1'"
    ]  # fmt: skip


# --- Choosing a fate ------------------------------------------------------------------------------------------


def test_a_fate_may_be_chosen_in_any_mixture(server):
    job = server.jobs[create(server, "?duration=3&outcome=error&faults=503,drop,429")]

    assert (job.duration, job.outcome, job.faults) == (3, "error", [503, "drop", 429])
    assert server.jobs[create(server)].outcome == "completed"
    assert server.jobs[create(server, "?duration=inf")].duration == math.inf


@pytest.mark.parametrize(
    "query, sentence",
    [
        ("?duration=-1", "duration must be a number of seconds, 0 or more, or inf for a job that never ends, not -1.0."),
        ("?duration=nan", "duration must be a number of seconds, 0 or more, or inf for a job that never ends, not nan."),
        ("?duration=soon", "duration must be a number of seconds, 0 or more, or inf for a job that never ends, not 'soon'."),
        ("?duration", "duration must be a number of seconds, 0 or more, or inf for a job that never ends, not ''."),
        ("?duration=1_0", "duration must be a number of seconds, 0 or more, or inf for a job that never ends, not '1_0'."),
        ("?faults=5_03", "faults must be HTTP statuses from 400 to 599, or drop, not '5_03'."),
        ("?outcome=fine", "outcome must be completed or error, not 'fine'."),
        ("?faults=503,200", "faults must be HTTP statuses from 400 to 599, or drop, not 200."),
        ("?faults=600", "faults must be HTTP statuses from 400 to 599, or drop, not 600."),
        ("?faults=", "faults must be HTTP statuses from 400 to 599, or drop, not ''."),
        ("?duration=1&duration=2", "duration must be given once, not again as '2'."),
        ("?speed=2", "There is no parameter 'speed' here: accepted are duration, outcome, faults."),
    ],
)  # fmt: skip
def test_an_unusable_parameter_is_named_and_creates_no_job(server, query, sentence):
    answer = ask(server, "POST", "/create_job" + query)

    assert (answer.status, answer.json) == (400, {"error_message": sentence})
    assert server.jobs == {}


def test_a_status_query_takes_no_parameter_and_a_refused_one_does_not_count(server):
    job_id = create(server)

    assert ask(server, "GET", f"/status/{job_id}?x=1").status == 400
    assert server.jobs[job_id].requests == 0


def test_faults_come_first_are_counted_and_do_not_move_the_status(server, clock):
    job_id = create(server, "?faults=503,429,418,drop")
    clock.advance(30)

    for status, retry_after in (503, "1"), (429, "1"), (418, None):
        answer = ask(server, "GET", f"/status/{job_id}")
        assert (answer.status, answer.headers["Retry-After"]) == (status, retry_after)
        assert str(status) in answer.json["error_message"]
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "GET", f"/status/{job_id}")

    job = server.jobs[job_id]
    assert (job.requests, job.polls, job.status) == (4, [30, 30, 30, 30], "pending")
    assert poll(server, job_id) == {"status": "completed"}


@pytest.mark.parametrize("status", [400, 499, 599])
def test_any_error_status_may_be_a_fault_known_or_not(server, status):
    assert ask(server, "GET", f"/status/{create(server, f'?faults={status}')}").status == status


def test_faults_may_be_added_to_the_list_that_a_test_holds(service):
    job = service.create_job(faults=[503])
    faults = job.faults
    service.query_status(job.job_id)
    faults.append(429)

    assert service.query_status(job.job_id)[2] == 429


def test_every_field_may_be_set_between_two_polls(server, clock):
    job_id = create(server)
    job = server.jobs[job_id]
    job.faults = (500,)
    assert ask(server, "GET", f"/status/{job_id}").status == 500
    job.duration, job.outcome, job.error_message = 10, "error", "The disk is full."
    clock.advance(9)
    assert poll(server, job_id) == {"status": "in_progress"}
    job.created_at -= 1
    assert poll(server, job_id) == {"status": "error", "error_message": "The disk is full."}
    job.status, job.error_message = "error", None
    assert poll(server, job_id)["error_message"] in tracker.ERROR_MESSAGES


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"duration": 5}, "duration must be a pair of seconds, (low, high), with 0 <= low <= high, not 5"),
        ({"duration": (2, 1)}, "duration must be a pair"),
        ({"duration": (-1, 1)}, "duration must be a pair"),
        ({"duration": (0, math.nan)}, "duration must be a pair"),
        ({"duration": ("a", "b")}, "duration must be a pair"),
        ({"error_rate": 1.1}, "error_rate must be a number from 0 to 1, not 1.1"),
        ({"error_rate": "0"}, "error_rate must be a number from 0 to 1, not '0'"),
        ({"fault_rate": -0.1}, "fault_rate must be a number from 0 to 1, not -0.1"),
        ({"latency": -1}, "latency must be a number of seconds from 0"),
        ({"latency": math.inf}, "latency must be a number of seconds from 0"),
        ({"retry_after": 1.5}, "retry_after must be a whole number of seconds, 0 or more, or None, not 1.5"),
        ({"retry_after": -1}, "retry_after must be a whole number"),
        ({"retry_after": True}, "retry_after must be a whole number"),
        ({"duration": (0, 10**400)}, "duration must be a pair"),
        ({"clock": 3}, "clock must be a callable that returns seconds, not 3"),
        ({"port": 65536}, "port must be a whole number from 0, which picks a free one, to 65535, not 65536"),
    ],
)
def test_an_option_out_of_range_is_refused_with_what_is_accepted(wrong, sentence):
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        tracker.create_server(**wrong)


def test_from_python_a_fate_is_checked_too(service):
    for wrong in {"duration": -1}, {"duration": "3"}, {"outcome": "pending"}, {"faults": [200]}, {"faults": "503"}:
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
            service.create_job(**wrong)
    assert service.jobs == {}
    assert [service.create_job(faults=fault).faults for fault in ("drop", 503)] == [["drop"], [503]]


def test_rates_are_chances():
    service = tracker.TranslationService(error_rate=0.25, fault_rate=0.5, seed=7, clock=tracker.ManualClock())
    jobs = [service.create_job() for _ in range(2000)]
    faults = [service.query_status(job.job_id)[2] for job in jobs]

    assert 400 < sum(job.outcome == "error" for job in jobs) < 600
    assert 900 < faults.count(503) < 1100
    assert faults.count(503) + faults.count(None) == 2000
    assert 5 <= min(job.duration for job in jobs) < 5.1 < 14.9 < max(job.duration for job in jobs) <= 15


def test_a_range_without_an_end_gives_jobs_without_an_end():
    service = tracker.TranslationService(duration=(math.inf, math.inf))

    assert service.create_job().duration == math.inf


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
    assert len(set(message for *_, message in lives(0))) > 2


def test_without_a_seed_no_two_services_are_alike():
    assert tracker.TranslationService().create_job().job_id != tracker.TranslationService().create_job().job_id


# --- Going wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, target, status, allow, words",
    [
        ("GET", "/status/unknown", 404, None, "There is no job 'unknown'"),
        ("GET", "/", 404, None, "POST /create_job and GET /status/<job_id>"),
        ("GET", "/status/", 404, None, "POST /create_job and GET /status/<job_id>"),
        ("GET", "/status/a/b", 404, None, "POST /create_job and GET /status/<job_id>"),
        ("POST", "/create_job/", 404, None, "POST /create_job and GET /status/<job_id>"),
        ("POST", "//create_job", 404, None, "POST /create_job and GET /status/<job_id>"),
        ("GET", "//host/status/x", 404, None, "POST /create_job and GET /status/<job_id>"),
        ("GET", "/create_job", 405, "POST, OPTIONS", "takes POST, OPTIONS, not GET"),
        ("DELETE", "/status/x", 405, "GET, HEAD, OPTIONS", "takes GET, HEAD, OPTIONS, not DELETE"),
        ("POST", "/status/x", 405, "GET, HEAD, OPTIONS", "not POST"),
        ("TRACE", "/create_job", 405, "POST, OPTIONS", "not TRACE"),
    ],
)
def test_a_wrong_path_or_method_is_told_the_right_one(server, method, target, status, allow, words):
    with connected(server) as connection:
        answer = ask(connection, method, target, b"a body")

        assert (answer.status, answer.headers["Allow"]) == (status, allow)
        assert list(answer.json) == ["error_message"]
        assert words in answer.json["error_message"]
        assert create(connection) in server.jobs  # the same connection goes on


def test_nothing_that_is_requested_reaches_the_log_raw(server, lines):
    for target in b"/\x1b[31m", b"/\x00", b"/a\rINFO - forged", b"/\xc2\x85\x9b", b"/\\x0a", b"/a\x0b":
        send(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    assert len(lines()) == 6
    assert all(re.fullmatch(r"[ -~\xa0-\xff]*", line) for line in lines())
    assert sum(r"\x5cx0a" in line for line in lines()) == 1  # so \x0a is always a control character


# --- Speaking HTTP --------------------------------------------------------------------------------------------


def head(*lines, start="POST /create_job HTTP/1.1", host="Host: localhost"):
    """A request's head from its lines."""
    return "\r\n".join(filter(None, (start, host, *lines, "\r\n"))).encode("latin-1")


REFUSED = {
    "two words": (400, head(start="POST /create_job")),
    "HTTP/0.9": (400, b"GET /create_job\r\n"),
    "one word": (400, head(start="POST")),
    "four words": (400, head(start="POST /create_job x HTTP/1.1")),
    "two spaces": (400, head(start="POST  /create_job HTTP/1.1")),
    "a tab for a space": (400, head(start="POST\t/create_job HTTP/1.1")),
    "space at the end": (400, head(start="POST /create_job HTTP/1.1 ")),
    "space at the start": (400, head(start=" POST /create_job HTTP/1.1")),
    "control character in the target": (400, head(start="POST /create_job\x01 HTTP/1.1")),
    "carriage return in the line": (400, head(start="POST /create_job\r HTTP/1.1")),
    "method is no token": (400, head(start="PO(ST /create_job HTTP/1.1")),
    "lower-case version": (400, head(start="POST /create_job http/1.1")),
    "version without a number": (400, head(start="POST /create_job HTTP/x")),
    "no end of line": (400, b"POST /create_job HTTP/1.1"),
    "target is no path": (400, head(start="POST create_job HTTP/1.1")),
    "target of another scheme": (400, head(start="POST ftp://localhost/create_job HTTP/1.1")),
    "target with a broken host": (400, head(start="POST http://[::1/create_job HTTP/1.1")),
    "target with a user": (400, head(start="POST http://me@localhost/create_job HTTP/1.1")),
    "HTTP/1.2": (505, head(start="POST /create_job HTTP/1.2")),
    "HTTP/2": (505, head(start="PRI * HTTP/2.0")),
    "HTTP/0.9 by name": (505, head(start="POST /create_job HTTP/0.9")),
    "unknown method": (501, head(start="BREW /create_job HTTP/1.1")),
    "method in lower case": (501, head(start="post /create_job HTTP/1.1")),
    "long target": (414, head(start=f"POST /{'x' * 65536} HTTP/1.1")),
    "long header": (431, head(f"X: {'x' * 65536}")),
    "100 headers": (431, head(*["X: x"] * 99)),
    "no Host": (400, head(host="")),
    "two Hosts": (400, head("Host: localhost")),
    "empty Host": (400, head(host="Host:")),
    "Host with a space": (400, head(host="Host: local host")),
    "Host with a comma": (400, head(host="Host: a,b")),
    "Host with a slash": (400, head(host="Host: a/b")),
    "Host with a user": (400, head(host="Host: me@a")),
    "Host with a bad port": (400, head(host="Host: a:http")),
    "header name is no token": (400, head("X(: 1")),
    "header name has a high byte": (400, head("X\xe9: 1")),
    "header without a name": (400, head(": 1")),
    "header without a colon": (400, head("X")),
    "space before the colon": (400, head("Content-Length : 0")),
    "folded header": (400, head("X: 1\r\n 2")),
    "header folded at once": (400, head("X:\r\n 2")),
    "folded first header": (400, head(host=" Host: localhost")),
    "mailbox line": (400, head(host="From me\r\nHost: localhost")),
    "NUL in a value": (400, head("X: \0")),
    "escape in a value": (400, head("X: \x1b[0m")),
    "DEL in a value": (400, head("X: \x7f")),
    "bare carriage return in a value": (400, head("X: 1\rContent-Length: 5")),
    "carriage return at the end": (400, head("X: 1\r")),
    "head without an end": (400, b"POST /create_job HTTP/1.1\r\nHost: localhost\r\n"),
    "negative length": (400, head("Content-Length: -1")),
    "length with a sign": (400, head("Content-Length: +5")),
    "length with an underscore": (400, head("Content-Length: 1_0")),
    "length in superscript": (400, head("Content-Length: \xb2")),
    "length in words": (400, head("Content-Length: five")),
    "empty length": (400, head("Content-Length:")),
    "list of lengths": (400, head("Content-Length: 5, 5")),
    "two lengths": (400, head("Content-Length: 5", "Content-Length: 5")),
    "long length": (400, head("Content-Length: " + "1" * 5000)),
    "shorter body": (400, head("Content-Length: 50") + b"short"),
    "chunked": (411, head("Transfer-Encoding: chunked")),
    "chunked in capitals": (411, head("Transfer-Encoding: CHUNKED")),
    "chunked with a length": (400, head("Transfer-Encoding: chunked", "Content-Length: 5")),
    "chunked on HTTP/1.0": (400, head("Transfer-Encoding: chunked", start="POST /create_job HTTP/1.0")),
    "chunked twice": (400, head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
    "chunked not last": (400, head("Transfer-Encoding: chunked, identity")),
    "unknown coding": (400, head("Transfer-Encoding: gzip, chunked")),
    "empty coding": (400, head("Transfer-Encoding:")),
}


@pytest.mark.parametrize("rule", REFUSED)
def test_what_http_forbids_is_refused_and_nothing_after_it_is_read_as_a_request(server, rule):
    status, request = REFUSED[rule]
    ends = request.endswith(b"\n") and rule != "head without an end"

    (answer,) = send(server, request + (head("Connection: close") if ends else b""))

    assert answer.status == status
    assert answer.headers["Connection"] == "close"
    assert re.fullmatch(r"[A-Z].{20,}\.", answer.json["error_message"])
    assert server.jobs == {}


ALLOWED = {
    "HTTP/1.0 without Host": head(start="POST /create_job HTTP/1.0", host=""),
    "any case of header names": head("cOnTeNt-LeNgTh: 2", host="hOST: localhost") + b"{}",
    "no space after the colon": head(host="Host:localhost"),
    "space after a value": head("Content-Length: 2 \t", host="Host: localhost \t") + b"{}",
    "bytes over 127 and tabs in a value": head("X: caf\xe9\t\xff"),
    "an empty value": head("X:"),
    "lines that end in LF alone": b"POST /create_job HTTP/1.1\nHost: localhost\n\n",
    "empty lines first": b"\r\n\n\r\n" + head(),
    "an IPv6 Host": head(host="Host: [::1]:8000"),
    "an absolute target": head(start="POST http://localhost:8000/create_job HTTP/1.1"),
    "99 headers": head(*["X: x"] * 98),
    "a length with zeros": head("Content-Length: 0002") + b"{}",
    "form data with a strange boundary": head("Content-Type: multipart/form-data; boundary*=idna''a", "Content-Length: 2") + b"--",
    "a mail in mail": head("Content-Type: message/rfc822", "Content-Length: 2") + b"--",
    "an expectation that nobody knows": head("Expect: wonders"),
    "an expectation that HTTP/1.0 does not know": head("Expect: 100-continue", "Content-Length: 2", start="POST /create_job HTTP/1.0") + b"{}",
}  # fmt: skip


@pytest.mark.parametrize("rule", ALLOWED)
def test_what_http_allows_works(server, rule):
    (answer,) = send(server, ALLOWED[rule])

    assert answer.status == 200
    assert answer.json["job_id"] in server.jobs


def test_requests_may_be_pipelined(server):
    requests = head("Content-Length: 5") + b"GET /" + head(start="GET /nothing HTTP/1.1") + head()

    assert [answer.status for answer in send(server, requests * 10)] == [200, 404, 200] * 10


def test_an_answer_is_one_packet_and_waits_for_no_other(server):
    with raw(server) as client:
        client.sendall(head())
        first = client.recv(65536)
        wait_until(lambda: server._connections)
        (connection,) = server._connections.values()

        assert first.endswith(b"}")
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("head_line", ["Connection: close", "Connection: Keep-Alive, Close"])
def test_a_client_may_ask_for_the_connection_to_close(server, head_line):
    answers = send(server, head(head_line) + head())

    assert [answer.headers["Connection"] for answer in answers] == ["close"]


def test_an_http_1_0_client_gets_one_answer_and_a_close(server):
    answers = send(server, head("Connection: keep-alive", start="POST /create_job HTTP/1.0") + head())

    assert [answer.status for answer in answers] == [200]


@pytest.mark.parametrize("expectation", ["100-continue", "100-Continue"])
def test_a_client_that_waits_for_100_continue_is_told_to_go_on(server, expectation):
    with raw(server) as client:
        client.sendall(head(f"Expect: {expectation}", "Content-Length: 2", "Connection: close"))
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"{}")
        (answer,) = read_answers(client)

    assert answer.status == 200


def test_a_refused_client_is_not_told_to_go_on(server):
    (answer,) = send(server, head("Expect: 100-continue", "Content-Length: 2", "Bad Header: x"))

    assert answer.status == 400


@pytest.mark.parametrize("start, status", [
    ("HEAD /nothing HTTP/1.1", 404), ("HEAD /create_job HTTP/1.1", 405), ("HEAD / HTTP/3.0", 505), ("HEAD /status/x? HTTP/1.1", 404),
])  # fmt: skip
def test_an_answer_to_head_never_has_a_body(server, start, status):
    with raw(server) as client:
        client.sendall(head("Connection: close", start=start))
        with client.makefile("rb") as stream:
            answer = stream.read()

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.endswith(b"\r\n\r\n")


def test_a_refusal_after_a_head_request_has_its_body(server):
    with raw(server) as client:
        client.sendall(head(start="HEAD /nothing HTTP/1.1") + b"nonsense\r\n\r\n")
        with client.makefile("rb") as stream:
            answers = stream.read()

    assert answers.startswith(b"HTTP/1.1 404 ")
    assert b"\r\n\r\nHTTP/1.1 400 " in answers
    assert answers.endswith(b'"}')


@pytest.mark.parametrize("target, allow", [("/create_job", "POST, OPTIONS"), ("/status/x", "GET, HEAD, OPTIONS"), ("*", "OPTIONS")])
def test_options_answers_what_a_browser_asks_first(server, target, allow):
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Headers": "authorization, x-key"}
    answer = ask(server, "OPTIONS", target, headers=asked)

    assert (answer.status, answer.content) == (204, b"")
    assert answer.headers["Allow"] == answer.headers["Access-Control-Allow-Methods"] == allow
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization, x-key"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Content-Length" not in answer.headers


def test_a_refusal_arrives_although_the_client_is_still_sending(server):
    with raw(server) as client:
        client.sendall(head("Content-Length: +1"))
        for _ in range(20):
            client.sendall(bytes(65536))
        client.shutdown(socket.SHUT_WR)
        (answer,) = read_answers(client)

    assert answer.status == 400


def test_the_last_answer_is_followed_by_the_end_at_once(server, monkeypatch):
    monkeypatch.setattr(tracker, "GRACE", 3600)
    with raw(server) as client:
        client.sendall(head("Connection: close"))
        (answer,) = read_answers(client)

    assert answer.status == 200


def test_a_refused_client_that_stays_is_let_go(clock, monkeypatch):
    monkeypatch.setattr(tracker, "GRACE", 0.05)
    with tracker.create_server(clock=clock) as server, raw(server) as client:
        wait_until(lambda: server._connections)
        (thread,) = server._connections
        client.sendall(b"nonsense\r\n")

        wait_until(lambda: not thread.is_alive())


def test_a_refused_client_that_never_stops_sending_is_cut_off(clock, monkeypatch):
    monkeypatch.setattr(tracker, "GRACE", 0.05)
    with tracker.create_server(clock=clock) as server, raw(server) as client:
        client.sendall(b"nonsense\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                client.sendall(b"x")
                time.sleep(0.001)


def test_a_client_that_hangs_up_resets_or_stalls_is_no_error(clock, monkeypatch, capfd, lines):
    monkeypatch.setattr(tracker._Handler, "timeout", 0.05)
    with tracker.create_server(clock=clock) as server:
        job_id = create(server, "?faults=drop")
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # on, 0 seconds: closing sends a reset
        echo = "Access-Control-Request-Headers: " + "x" * 60_000  # the answer says it again, and fills all buffers
        preflight = head(echo, start="OPTIONS * HTTP/1.1")
        for request in b"", b"POST", head(), head("Content-Length: 9"), head() * 50, preflight * 50:
            with raw(server) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.sendall(request)
        with raw(server) as stalled:
            stalled.sendall(b"POST /create")
            assert stalled.recv(1) == b""  # after the time-out
        with pytest.raises(http.client.RemoteDisconnected):
            poll(server, job_id)
        assert poll(server, job_id) == {"status": "pending"}

    assert capfd.readouterr() == ("", "")
    assert not [line for line in lines() if not line.startswith("INFO") or "timed out" in line]
    assert sum(line.endswith(f'"GET /status/{job_id} HTTP/1.1" - -') for line in lines()) == 1  # what was dropped


def test_a_silent_client_is_let_go_after_30_seconds():
    assert tracker._Handler.timeout == 30


def test_a_bug_that_meets_a_connection_is_logged(server, monkeypatch, lines):
    monkeypatch.setattr(tracker._Handler, "setup", lambda self: 1 / 0)
    with raw(server) as client:
        assert client.recv(1) == b""

    assert lines() == ["ERROR - A bug met a connection from 127.0.0.1"]


def test_connections_that_have_ended_are_forgotten(server):
    for _ in range(20):
        create(server)

    wait_until(lambda: create(server) and len(server._connections) < 5)


def test_a_burst_is_answered_and_silent_clients_slow_nobody(server):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(raw(server)) for _ in range(300)]
        assert create(server) in server.jobs
        for client in clients:
            client.sendall(head("Connection: close"))
        assert [answer.status for client in clients for answer in read_answers(client)] == [200] * 300


# --- Living in a test suite -----------------------------------------------------------------------------------


def test_a_server_is_made_without_a_look_up_of_its_name(monkeypatch):
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("it was looked up"))

    tracker.create_server().server_close()


def test_a_program_that_forgets_to_close_a_server_can_still_end():
    server = tracker.create_server()
    loop = threading.Thread(target=server.serve_forever, daemon=False)
    loop.start()
    with raw(server):
        wait_until(lambda: server._connections)
        daemons = [thread.daemon for thread in server._connections]
    server.shutdown()
    server.server_close()
    loop.join(5)
    with tracker.create_server() as server:
        daemons.append(server._thread.daemon)

    assert daemons == [True, True]


def test_a_server_is_bound_when_it_is_made_and_says_where(server):
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", server.url)
    assert repr(server) == f"<TrackerServer {server.url}>"
    assert server.jobs is server.service.jobs


def test_a_busy_port_raises(server):
    with pytest.raises(OSError):
        tracker.create_server(port=server.server_address[1])


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    "host, url",
    [
        ("0.0.0.0", "http://127.0.0.1:"),
        pytest.param("::1", "http://[::1]:", marks=NEEDS_IPV6),
        pytest.param("::", "http://[::1]:", marks=NEEDS_IPV6),
    ],
)
def test_other_hosts_have_a_url_that_works(host, url):
    with tracker.create_server(host) as server, urllib.request.urlopen(server.url + "/create_job", b"") as answer:
        assert answer.status == 200
        assert server.url.startswith(url)


def test_two_servers_share_nothing(server):
    with tracker.create_server(seed=1) as other:
        assert create(server) == create(other)
        create(other)
        assert (len(server.jobs), len(other.jobs)) == (1, 2)


def test_after_the_block_the_port_refuses_and_every_connection_is_closed(clock):
    with contextlib.ExitStack() as stack:
        with pytest.raises(ZeroDivisionError), tracker.create_server(clock=clock) as server:
            silent = stack.enter_context(raw(server))
            halfway = stack.enter_context(raw(server))
            halfway.sendall(head("Content-Length: 100") + b"half")
            idle = stack.enter_context(connected(server))
            create(idle)
            1 / 0

        assert silent.recv(1) == b""
        assert read_answers(halfway) == []
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            create(idle)
        with pytest.raises(ConnectionRefusedError), raw(server):
            pass


def test_a_reply_in_flight_arrives_whole(clock):
    """Latency keeps a reply in flight; the end of the block sends it at once."""
    with tracker.create_server(clock=clock, latency=3600) as server:
        client = socket.create_connection(server.server_address)
        client.sendall(head())
        wait_until(lambda: server.jobs)

    with client:
        (answer,) = read_answers(client)
    assert answer.json["job_id"] in server.jobs


def test_latency_is_waited_for_before_each_answer(monkeypatch):
    with tracker.create_server(latency=2.5) as server:
        waited = []
        monkeypatch.setattr(server.closing, "wait", waited.append)
        ask(server, "GET", "/nothing")
        create(server)

    assert waited == [2.5, 2.5]


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(clock, monkeypatch):
    monkeypatch.setattr(tracker, "GRACE", 0.05)
    before = threading.active_count()
    with tracker.create_server(clock=clock) as server:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.server_address)
        client.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while True:
                client.sendall(head() * 100)

    assert threading.active_count() == before
    client.close()


def open_descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


def test_a_hundred_servers_leave_no_thread_and_no_descriptor(clock):
    before = threading.active_count(), open_descriptors()
    for _ in range(100):
        with tracker.create_server(clock=clock) as server, connected(server) as connection:
            create(connection)
            idle = socket.create_connection(server.server_address)
        assert threading.active_count() == before[0]
        idle.close()

    assert open_descriptors() == before[1]


def stop(server):
    assert ends(started(server.shutdown))


def test_serve_forever_and_shutdown_mean_what_they_always_meant():
    server = tracker.create_server()
    for _ in range(3):
        thread = started(server.serve_forever)
        assert create(server) in server.jobs
        stop(server)
        assert ends(thread)
    server.server_close()


def test_a_shutdown_waits_until_the_loop_has_ended_and_two_stop_one_loop(monkeypatch):
    server = tracker.create_server()
    reached, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(server, "verify_request", lambda *_: reached.set() or go_on.wait(5))
    started(server.serve_forever)
    with raw(server):
        assert reached.wait(5)
        stops = [started(server.shutdown) for _ in range(2)]
        stops[0].join(0.05)
        assert [thread.is_alive() for thread in stops] == [True, True]
        go_on.set()
        assert [ends(thread) for thread in stops] == [True, True]

    started(server.serve_forever)
    assert create(server) in server.jobs
    stop(server)
    server.server_close()


def test_serving_in_a_block_that_serves_waits_for_its_end():
    """As in the examples of the socketserver documentation."""
    with tracker.create_server() as server:
        thread = started(server.serve_forever)
        assert create(server) in server.jobs
        thread.join(0.05)
        assert thread.is_alive()
        stop(server)

        assert ends(thread)


def test_a_block_ends_although_its_own_thread_comes_late():
    server = tracker.create_server()
    serve, ended = server.serve_forever, threading.Event()
    server.serve_forever = lambda: ended.wait(5) and serve()
    with server:
        other = started(serve)
        create(server)
        started(lambda: other.join(5) or ended.set())

    assert ends(other)


def test_a_closed_server_serves_no_more():
    server = tracker.create_server()
    server.server_close()

    assert ends(started(server.serve_forever))


def test_a_loop_that_is_begun_again_and_again_can_be_stopped():
    server = tracker.create_server()
    more = [True] * 100

    def serve():
        while more:
            more.pop()
            server.serve_forever()

    thread = started(serve)
    while more:
        stop(server)
    stop(server)
    server.server_close()

    assert ends(thread)


def test_a_stop_does_not_hang_however_early_it_comes():
    for _ in range(50):
        with tracker.create_server():
            pass


def test_closing_a_server_that_never_served_does_not_hang():
    server = tracker.create_server()
    server.shutdown()
    server.handle_request()  # takes the connection that was to wake the loop
    assert ends(started(server.serve_forever, 3600))  # asked to stop before it began
    server.server_close()
    server.server_close()


def test_a_stop_does_not_wait_for_the_poll_interval():
    server = tracker.create_server()
    started(server.serve_forever, 3600)
    create(server)

    stop(server)
    server.server_close()


def test_a_stop_comes_although_no_connection_can_be_made_to_ask_for_it(monkeypatch):
    server = tracker.create_server()
    started(server.serve_forever, 0.01)
    create(server)
    monkeypatch.setattr(socket, "socket", fail)

    stop(server)
    server.server_close()


def test_a_stop_is_asked_for_once_however_many_signals_come(monkeypatch):
    server = tracker.create_server()
    server._ask_to_stop()
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it was asked for again"))
    server._ask_to_stop()
    server.server_close()


def test_a_request_that_the_stop_cuts_off_is_not_called_wrong(server):
    with raw(server) as client:
        client.sendall(head())
        assert client.recv(65536)
        server.closing.set()
        client.sendall(head("Bad Header: x") + head())

        assert read_answers(client) == []
    assert len(server.jobs) == 1


def test_a_body_that_was_sent_before_the_server_closes_is_read(server):
    server.closing.set()

    (answer,) = send(server, head("Content-Length: 1000000") + bytes(1_000_000))

    assert answer.status == 200


def test_a_connection_that_goes_on_gets_one_more_answer_when_the_server_closes(server):
    server.closing.set()

    (answer,) = send(server, head() * 2)

    assert (answer.status, answer.headers["Connection"]) == (200, "close")


def test_without_descriptors_the_loop_does_not_spin(server, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    server.socket.settimeout(0)  # so that accepting fails

    with pytest.raises(OSError):
        server.get_request()
    assert waits == [0.05]


def test_a_port_is_free_again_at_once():
    with tracker.create_server() as first:
        create(first)
        client = socket.create_connection(first.server_address)
    with tracker.create_server(port=first.server_address[1]) as second:
        assert second.url == first.url
    client.close()


def test_a_closed_server_says_that_it_is_closed(server):
    server.server_close()

    with pytest.raises(RuntimeError, match="create another"), server:
        pass


def test_importing_has_no_effect(tmp_path):
    code = """
        import logging, os, threading, tracker
        assert os.listdir() == [] and threading.active_count() == 1
        assert not logging.getLogger().handlers and not logging.getLogger("tracker").handlers
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


def test_a_strategy_is_simulated_over_ten_thousand_jobs_without_a_server(service, clock):
    for _ in range(10_000):
        job = service.create_job()
        while job.delay is None:
            clock.sleep(10)
            service.query_status(job.job_id)

    assert {(job.requests, job.delay) for job in service.jobs.values()} == {(3, 0)}


def test_the_public_names_are_few():
    assert tracker.__all__ == ["ManualClock", "TrackerServer", "TranslationJob", "TranslationService", "create_server"]


# --- Running from the command line ----------------------------------------------------------------------------


@contextlib.contextmanager
def running(folder, *options):
    """A real process, and the URL that it printed."""
    command = [sys.executable, "-W", "error", str(HERE / "tracker.py"), "--port", "0", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # so that what is printed must have been flushed
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            process.url = re.search(r"http://\S+", process.stdout.readline()).group()
            process.address = process.url.removeprefix("http://").split(":")
            yield process
        finally:
            process.kill()


def get(url, body=None):
    with urllib.request.urlopen(url, body, timeout=5) as answer:
        return json.load(answer)


def test_a_process_tells_how_to_use_it_serves_and_logs(tmp_path):
    with running(tmp_path, "--duration", "0", "0", "--error-rate", "0") as process:
        usage = process.stdout.readline(), process.stdout.readline()
        job_id = get(process.url + "/create_job", b"")["job_id"]
        status = get(f"{process.url}/status/{job_id}")
        log = (tmp_path / "server.log").read_text(encoding="utf-8")
        process.terminate()
        console = process.communicate(timeout=5)[1]

    assert usage == (f"  curl -X POST {process.url}/create_job\n", f"  curl {process.url}/status/JOB_ID\n")
    assert status == {"status": "completed"}
    assert f"INFO - Job {job_id} created\n" in log
    assert re.search(r"\nINFO - Translation metrics - Requests: 1, Status: completed, Total time: 0\.\d\ds, Delay: 0\.\d\ds\n", log)
    assert console == log
    assert process.returncode == 0 or os.name == "nt"  # where terminate() is no signal


@pytest.mark.skipif(os.name == "nt", reason="a signal cannot be sent to one process there")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_whoever_is_connected(tmp_path, signum):
    with running(tmp_path) as process, contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(process.address))
        get(process.url + "/create_job", b"")
        for number in signum, signal.SIGINT, signal.SIGTERM, signum:
            process.send_signal(number)
        console = process.communicate(timeout=5)[1]

    assert process.returncode == 0
    assert len(console.splitlines()) == 2  # a job, and the request for it


@pytest.mark.skipif(os.name == "nt", reason="a signal cannot be sent to one process there")
def test_a_signal_lets_a_reply_in_flight_arrive(tmp_path):
    with running(tmp_path, "--latency", "3600") as process:
        with socket.create_connection(process.address, timeout=5) as client:
            client.sendall(head())
            wait_until(lambda: " created" in (tmp_path / "server.log").read_text(encoding="utf-8"))
            process.terminate()
            (answer,) = read_answers(client)

    assert answer.status == 200


@pytest.mark.parametrize(
    "options, words",
    [
        (["--port", "BUSY"], "cannot listen on 127.0.0.1 port BUSY: "),
        (["--port", "many"], "argument --port: invalid int value: 'many'"),
        (["--port", "70000"], "port must be a whole number from 0, which picks a free one, to 65535, not 70000"),
        (["--host", "no such host"], "cannot listen on no such host port 8000: "),
        (["--host", "\xe9..b"], "host must be a host name or an address, not '\xe9..b'"),
        (["--error-rate", "2"], "error_rate must be a number from 0 to 1, not 2.0"),
        (["--duration", "9", "1"], "duration must be a pair of seconds, (low, high), with 0 <= low <= high, not [9.0, 1.0]"),
        (["--retry-after", "soon"], "argument --retry-after: invalid int value: 'soon'"),
        (["--a\nb", "1"], r"unrecognized arguments: --a\x0ab 1"),
        (["--se", "1"], "unrecognized arguments: --se 1"),
        (["--speed", "2"], "unrecognized arguments: --speed 2"),
        (["--port", "0", "--log-file", "missing/server.log"], "cannot write the log missing/server.log: "),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_status_2(server, capsys, options, words):
    busy = str(server.server_address[1])
    with pytest.raises(SystemExit) as exit:
        tracker.main([option.replace("BUSY", busy) for option in options])

    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert error.startswith("tracker.py: " + words.replace("BUSY", busy))
    assert error.count("\n") == 1
    assert error.endswith("\n")


def log_a_hundred_lines(folder, monkeypatch):
    monkeypatch.setattr(tracker, "LOG_SIZE", 1000)
    with contextlib.closing(tracker._LogFile(folder / "server.log")) as log_file:
        for number in range(100):
            log_file.handle(logging.makeLogRecord({"msg": f"{number:099}"}))


def test_the_log_is_kept_from_growing_without_bound(tmp_path, monkeypatch):
    log_a_hundred_lines(tmp_path, monkeypatch)

    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {"server.log", "server.log.1"}
    assert max(sizes.values()) <= 1100


def test_a_log_that_cannot_be_renamed_goes_on_and_keeps_the_old_one(tmp_path, monkeypatch):
    (tmp_path / "server.log.1").write_text("older lines")
    monkeypatch.setattr(os, "replace", fail)
    log_a_hundred_lines(tmp_path, monkeypatch)

    assert (tmp_path / "server.log").stat().st_size == 100 * 100
    assert (tmp_path / "server.log.1").read_text() == "older lines"


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_a_log_whose_folder_is_gone_disturbs_nobody(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tracker, "LOG_SIZE", 0)
    folder = tmp_path / "logs"
    folder.mkdir()
    with contextlib.closing(tracker._LogFile(folder / "server.log")) as log_file:
        log_file.handle(logging.makeLogRecord({"msg": "first"}))
        (folder / "server.log").unlink()
        folder.rmdir()
        log_file.handle(logging.makeLogRecord({"msg": "lost"}))
        folder.mkdir()
        log_file.handle(logging.makeLogRecord({"msg": "last"}))

    assert (folder / "server.log").read_text() == "last\n"
    assert "FileNotFoundError" in capfd.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it has no disk that is always full")
def test_a_full_disk_does_not_change_how_it_ends(tmp_path):
    with running(tmp_path, "--log-file", "/dev/full") as process:
        get(process.url + "/create_job", b"")
        process.terminate()
        process.communicate(timeout=5)

    assert process.returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="it has no /dev/stdout")
def test_a_log_that_is_no_file_is_only_written(tmp_path):
    with running(tmp_path, "--log-file", "/dev/stdout") as process:
        get(process.url + "/create_job", b"")
        process.terminate()
        printed, console = process.communicate(timeout=5)

    assert printed.endswith(console)
    assert "Traceback" not in console


# --- The documents --------------------------------------------------------------------------------------------


def readme_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_example_in_the_module_works():
    result = doctest.testmod(tracker)

    assert result.failed == 0
    assert result.attempted > 5


def translate(url, sleep=time.sleep):
    """The reader's client: it doubles its waits."""
    job_id = get(url + "/create_job", b"")["job_id"]
    wait = 1
    while get(f"{url}/status/{job_id}")["status"] in ("pending", "in_progress"):
        sleep(wait)
        wait *= 2
    return job_id


def test_the_python_in_the_readme_works_and_prints_what_it_says(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_client", types.SimpleNamespace(translate=translate))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in readme_blocks("python"):
            names = {}
            exec(block, names)
            for name, value in names.items():
                if name.startswith("test_"):
                    value()

    assert printed.getvalue() == "".join(readme_blocks("text"))


def test_the_readme_shows_the_command_line_as_it_is(capsys):
    with pytest.raises(SystemExit):
        tracker.main(["--help"])
    documented = set(re.findall(r"--[a-z-]+", README))

    assert set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"} <= documented


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
