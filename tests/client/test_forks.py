"""A client of a process that forks: parent and child never share a connection, and neither waits for the other."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.client.conftest import Misbehaving, answer

Make = Callable[..., Misbehaving]
READY = b'{"status":"ok"}'

COMMON = """
import asyncio, json, os, sys, threading
from mmserver.client import ClientClosed, ModelClient, SyncModelClient

url = sys.argv[1]

def in_child(work):
    # what it gives, from a forked process that ends without tidying up, as those of multiprocessing do
    end, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(begin, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(begin)
    with os.fdopen(end) as read:
        found = read.read()
    os.waitpid(pid, 0)
    return json.loads(found)

def refused(work):
    try:
        return work()
    except ClientClosed as error:
        return str(error)
"""

SYNC = (
    COMMON
    + """
client = SyncModelClient(url, health_timeout_s=60, health_interval_s=3600)
client.initialize()
before = client.list_models()[0].name
watch = client.watch("m", "X")
next(watch)

def both_threads():
    found = []
    threads = [threading.Thread(target=lambda: found.append(client.list_models()[0].name)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    watching = [thread.name for thread in threading.enumerate() if thread.name == "mmserver-health"]
    return [client.available, client.is_initialized, found, watching, refused(lambda: next(watch))]

available, initialized, names, watching, inherited_watch = in_child(both_threads)
after = client.list_models()[0].name
client.cleanup()
closed = in_child(lambda: refused(client.list_models))
print(json.dumps(locals(), default=str))
"""
)

ASYNC = (
    COMMON
    + """
client = ModelClient(url, health_timeout_s=60, health_interval_s=3600)

async def ask():
    return (await client.list_models())[0].name

async def child():
    found = [await ask(), await ask()]
    watching = [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "mmserver-health"]
    return [client.available, client.is_initialized, found, watching]

async def parent():
    global before, available, initialized, names, watching, after, closed
    await client.initialize()
    before = await ask()
    available, initialized, names, watching = in_child(lambda: asyncio.run(child()))
    after = await ask()
    await client.cleanup()
    closed = in_child(lambda: refused(lambda: asyncio.run(ask())))

asyncio.run(parent())
print(json.dumps(globals(), default=str))
"""
)


@pytest.fixture
def told(misbehaving: Make) -> Callable[[str], dict[str, Any]]:
    """What a script tells that asks a server, whose only model is named for the connection that it is asked on."""

    def behave(connection: Any, request: bytes) -> None:
        name = str(connection.getpeername()[1])
        headers = {"ETag": 'W/"1"', "X_Model_Version": "1", "X_Group_Key": "X_r"}
        payload = {"model_json": "{}", "metadata": {}, "dim_factors": []}
        document = {"model_name": "m", "symbol": "X", "group_key": "X_r", "version": "1", "payload": payload}
        if b"/readyz" in request:
            connection.sendall(answer("200 OK", READY))
        elif b"/model/" in request:
            connection.sendall(answer("200 OK", json.dumps(document).encode(), **headers))
        else:
            connection.sendall(answer("200 OK", json.dumps([{"name": name, "version": "1"}]).encode()))

    server = misbehaving(behave)

    def run(script: str) -> dict[str, Any]:
        ask = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, server.url]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=120, check=False, env={**os.environ})
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    return run


@pytest.mark.parametrize("script", [pytest.param(SYNC, id="sync"), pytest.param(ASYNC, id="async")])
def test_a_forked_process_gets_connections_and_a_watch_of_its_own_and_leaves_the_parent_s_alone(
    script: str, told: Callable[[str], dict[str, Any]]
) -> None:
    found = told(script)
    assert found["before"] == found["after"], "the parent's connection was ended"
    assert found["before"] not in found["names"]
    assert (found["available"], found["initialized"]) == (True, True)
    assert found["watching"] == ["mmserver-health"]
    assert "closed by cleanup()" in found["closed"]
    if script is SYNC:
        assert "goes on in the parent only" in found["inherited_watch"]
