"""`mmserver keys` beside a running server of several processes: all of them follow, without a restart."""

from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.e2e
IN_A_ROW = 20
"""So many connections meet every process."""


def statuses(server: Any, key: str | None) -> set[int]:
    """What requests get over connections of their own."""
    headers = {} if key is None else {"X-API-Key": key}
    url = f"{server.url}/api/models"
    return {httpx.get(url, headers=headers, trust_env=False, timeout=60).status_code for _ in range(IN_A_ROW)}


def test_every_process_asks_after_the_first_key_and_refuses_it_when_it_is_revoked(
    servers: Any, mmserver: Any, until: Any, tmp_path: Path
) -> None:
    server = servers.start("--workers", "2", data_dir=tmp_path / "state")
    assert statuses(server, None) == {200}
    of_its_state = ("--data-dir", tmp_path / "state")
    key = mmserver("keys", "create", "--label", "bot", "--scope", "read", *of_its_state).stdout.strip()
    until(lambda: statuses(server, None) == {401}, "every process asks for a key")
    assert statuses(server, key) == {200}
    mmserver("keys", "revoke", key[3:13], *of_its_state)
    until(lambda: statuses(server, key) == {401}, "every process refuses it")
    assert httpx.get(f"{server.url}/livez", trust_env=False, timeout=60).status_code == 200
    assert key[14:57] not in server.log
