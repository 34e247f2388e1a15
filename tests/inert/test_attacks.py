"""Hostile pickles are refused for the right reason, in little time, and nothing they name is imported or called."""

import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mmserver.errors import Undecodable
from mmserver.inert import decode
from mmserver.inert.limits import Limits


def test_an_attack_is_refused_with_its_reason(attack: tuple[bytes, str, str]) -> None:
    data, reason, detail = attack
    modules = set(sys.modules)
    with pytest.raises(Undecodable) as refused:
        decode(data, Limits(deadline_s=600.0))  # it is refused for what it does, not for how long that takes
    assert refused.value.reason == reason
    assert detail in refused.value.detail
    assert len(refused.value.detail) < 400
    assert set(sys.modules) - modules <= {"lz4", "lz4.frame"}


AUDITED = """
    import pickle, sys
    import numpy
    from mmserver.errors import Undecodable
    from mmserver.inert import decode, to_jsonable
    with open(sys.argv[1], "rb") as file:
        datas = pickle.load(file)
    seen = []
    watching = False
    QUIET = ("object.__getattr__", "builtins.id", "code.__new__", "gc.", "sys._getframe")
    def watch(event, args):
        if watching and not event.startswith(QUIET):
            seen.append((event, repr(args)[:80]))
    # Once without the hook: lazily compiled patterns and codecs of our own are loaded then.
    for data in datas[:1]:
        decode(data)
    sys.addaudithook(watch)
    modules = set(sys.modules)
    n_decoded = n_refused = 0
    for data in datas:
        watching = True
        try:
            to_jsonable(decode(data))
            n_decoded += 1
        except Undecodable:
            n_refused += 1
        watching = False
    print(n_decoded, n_refused, sorted(set(sys.modules) - modules), seen)
"""


def test_decoding_imports_opens_and_executes_nothing(
    tmp_path: Path, all_attacks: dict[str, tuple[bytes, str, str]], seeds: list[bytes]
) -> None:
    corpus = [path.read_bytes() for path in sorted((Path(__file__).parent / "corpus").glob("*protocol*.pickle"))]
    hostile = [data for data, _, _ in all_attacks.values() if len(data) < 100_000]
    bundle = tmp_path / "datas"
    bundle.write_bytes(pickle.dumps([*seeds, *corpus, *hostile]))
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AUDITED), str(bundle)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{len(seeds) + len(corpus)} {len(hostile)} [] []"


def test_the_canary_of_a_real_exploit_is_not_touched(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Exploit:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, (str(canary),))

    for protocol in (2, 3, 4, 5):
        with pytest.raises(Undecodable, match=r"forbidden_global: posix\.mkdir"):
            decode(pickle.dumps([Exploit()], protocol))
    assert not canary.exists()
    pickle.loads(pickle.dumps(Exploit()))
    assert canary.exists()


def test_an_injected_attribute_stays_data() -> None:
    xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed (the extra test)")
    model = xgboost.XGBRegressor()
    model.predict = "not a method"
    assert decode(pickle.dumps(model)).state["predict"] == "not a method"
