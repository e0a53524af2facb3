"""Grammars that are meant to take for ever: each ends soon, and the streams beside them hardly notice."""

import os
import signal
import threading
import time

import httpx
import pytest

from support.hostile_grammars import HOSTILE, UNBOUNDED
from support.live import LiveServer, descendants, is_running, until

ALL = HOSTILE | UNBOUNDED
BODY = {"prompt": "Once upon a time", "max_tokens": 20}


@pytest.fixture(scope="module")
def own(tiny):
    with LiveServer(tiny, "--disable-access-log") as server:
        assert ask(server, {"regex": "[ab]+"}).status_code == 200  # from now on the checking process is there
        yield server


def ask(server, form):
    return httpx.post(server.url + "/v1/completions", json=BODY | {"structured_outputs": form}, timeout=60)


class Neighbour(threading.Thread):
    """Streams one after the other, and the longest pause in one of them."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.texts, self.longest, self.stop = server, [], 0.0, threading.Event()
        self.start()

    def run(self):
        while not self.stop.is_set():
            self.texts.append(self.stream())

    def stream(self) -> str:
        text = ""
        body = BODY | {"max_tokens": 800, "stream": True, "ignore_eos": True, "temperature": 0}
        with httpx.stream("POST", self.server.url + "/v1/completions", json=body, timeout=60) as response:
            last = time.perf_counter()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    self.longest, last = max(self.longest, now - last), now
                    text += line
        return text

    def end(self) -> float:
        self.stop.set()
        self.join(60)
        assert self.texts and all('"finish_reason":"length"' in text for text in self.texts)
        return self.longest


@pytest.mark.parametrize("name", ALL)
def test_a_hostile_form_is_stopped_and_disturbs_nobody(own, name):
    neighbour = Neighbour(own)
    start = time.perf_counter()
    response = ask(own, ALL[name])
    seconds = time.perf_counter() - start
    if response.status_code == 200:
        outcome = response.json()["choices"][0]["finish_reason"]
    else:
        assert response.status_code == 400
        outcome = response.json()["error"]["message"][:60]
    print(f"{name}: {seconds:.2f} s, {outcome}; longest pause of a stream beside {1000 * neighbour.end():.0f} ms")
    assert seconds < 20  # a machine that does something else besides; the figure is printed
    if name in UNBOUNDED:
        assert outcome.startswith(("the grammar takes ", "[schema] found more than "))


def test_good_forms_go_on_after_bad_ones(own):
    threads = [threading.Thread(target=ask, args=(own, UNBOUNDED["optional properties"])) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert ask(own, {"regex": "[ab]+"}).status_code == 200  # known
    assert ask(own, {"regex": "[abc]{2,4}"}).status_code == 200  # not yet
    for thread in threads:
        thread.join()


def test_a_process_that_somebody_ended_is_replaced(own):
    ended = descendants(own.process.pid)
    for process in ended:
        os.kill(process, signal.SIGKILL)
    until(lambda: not any(map(is_running, ended)))
    assert ask(own, {"regex": "[abcd]{2,4}"}).status_code == 200


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_no_process_outlives_the_server(tiny, how):
    with LiveServer(tiny) as server:
        assert ask(server, {"regex": "[ab]+"}).status_code == 200
        until(lambda: len(descendants(server.process.pid)) >= 6)  # workers for grammars and for large bodies
        started = descendants(server.process.pid)
        getattr(server.process, how)()
        server.process.wait(30)
        until(lambda: not any(map(is_running, started)))
