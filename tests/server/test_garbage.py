"""Full garbage collections wait for a moment in which no request is open."""

import gc

import pytest
from longcat.server import garbage


@pytest.fixture
def collections(monkeypatch):
    before = gc.get_threshold()
    made = garbage.FullCollections()
    calls = []
    monkeypatch.setattr(garbage.gc, "collect", lambda: calls.append(True))
    yield made, calls
    gc.unfreeze()
    gc.set_threshold(*before)


def test_they_wait_until_no_request_is_open(collections, monkeypatch):
    made, calls = collections
    monkeypatch.setattr(garbage.gc, "get_count", lambda: (0, 0, 1))
    for is_idle in (True, True, True, False, True, True, True):
        made.consider(is_idle)
    assert not calls
    made.consider(True)
    assert calls == [True]


def test_an_idle_server_without_garbage_makes_none(collections, monkeypatch):
    made, calls = collections
    monkeypatch.setattr(garbage.gc, "get_count", lambda: (0, 0, 0))
    for _ in range(10):
        made.consider(True)
    assert not calls


def test_memory_that_grew_much_is_looked_at_in_any_case(collections, monkeypatch):
    made, calls = collections
    resident = garbage._resident_bytes() + (513 << 20)
    monkeypatch.setattr(garbage, "_resident_bytes", lambda: resident)
    made.consider(False)
    made.consider(False)
    assert calls == [True]


def test_python_itself_makes_no_more_of_them(collections):
    assert gc.get_threshold()[2] > 10**6
