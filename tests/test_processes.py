import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fastrcnn.processes import cores, ctrl_c_ignored, workers


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    assert 1 <= cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()


def test_a_pool_works_and_is_left_at_once():
    with workers(2) as pool:
        assert sorted(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
        busy = pool.submit(time.sleep, 600)
    assert busy.cancelled() or busy.exception() is not None


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_process_started_deaf_ignores_ctrl_c_while_it_imports():
    """Its own Ctrl-C is received when the block ends."""
    code = "print(1, flush=True); import time; time.sleep(1); print(2)"
    received = []
    before = signal.signal(signal.SIGINT, lambda *_: received.append(1))
    try:
        with ctrl_c_ignored():
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            assert child.stdout.readline() == b"1\n"
            child.send_signal(signal.SIGINT)
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # others, of libraries, do not block it
            assert not received
        assert received
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.communicate()[0] == b"2\n" and child.returncode == 0


def test_a_system_without_signal_masks(monkeypatch):
    monkeypatch.delattr(signal, "pthread_sigmask", raising=False)
    with ctrl_c_ignored():
        pass
