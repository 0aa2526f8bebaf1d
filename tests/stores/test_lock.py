"""One driver a folder, however the other one ends."""

import os
import signal
import threading

import pytest

from steerkit.errors import OutputError
from steerkit.stores.lock import driver_lock


def test_a_second_driver_loses_and_a_dead_ones_lock_is_free(tmp_path):
    """The holder is another process, ended by SIGKILL: it cannot tidy up."""
    ready, told = os.pipe()
    holder = os.fork()
    if not holder:
        with driver_lock(tmp_path):
            os.write(told, b"x")
            signal.pause()
    try:
        assert os.read(ready, 1) == b"x"
        with pytest.raises(OutputError, match=rf"another capture .* \(process {holder} on .*wait"):
            with driver_lock(tmp_path):
                pass
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(ready)
        os.close(told)
    with driver_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_second_thread_loses_too_and_other_folders_are_free(tmp_path):
    said = []

    def second():
        try:
            with driver_lock(tmp_path):
                said.append("in")
        except OutputError as error:
            said.append(str(error))

    with driver_lock(tmp_path), driver_lock(tmp_path / "other"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "(this process)" in said[0]
    second()
    assert said[1:] == ["in"]


def test_children_that_outlive_a_driver_do_not_hold_its_lock(tmp_path):
    ready, told = os.pipe()
    with driver_lock(tmp_path):
        child = os.fork()
        if not child:
            os.read(ready, 1)
            os._exit(0)
    try:
        with driver_lock(tmp_path):
            pass
    finally:
        os.write(told, b"x")
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
