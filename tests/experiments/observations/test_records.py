"""Records of a journal: whole, torn, damaged."""

import random

from mmserver.experiments.observations.records import read_records, record_from_observation
from mmserver.experiments.observations.values import Observation, ShadowAnswer


def _observations(n: int) -> list[Observation]:
    return [
        Observation(
            prediction_id=f"p{number}",
            at_us=1_790_000_000_000_000 + number,
            experiment_key=3,
            arm="treatment",
            unit="A|1",
            direction=number % 3,
            features=bytes(range(number % 50)),
            shadow=ShadowAnswer(1, 0.5, 200, None) if number % 2 else None,
        )
        for number in range(n)
    ]


def test_what_was_written_is_read() -> None:
    observations = _observations(20)
    data = b"".join(map(record_from_observation, observations))
    found = read_records(data)
    assert (found.observations, found.end, found.n_skipped_bytes) == (observations, len(data), 0)


def test_a_journal_cut_anywhere_gives_every_record_before_the_cut() -> None:
    observations = _observations(4)
    records = [record_from_observation(observation) for observation in observations]
    data = b"".join(records)
    for cut in range(len(data)):
        found = read_records(data[:cut])
        n_whole = sum(cut >= sum(map(len, records[: number + 1])) for number in range(4))
        assert found.observations == observations[:n_whole]
        assert found.end == sum(map(len, records[:n_whole]))


def test_damage_costs_no_record_that_it_did_not_hit() -> None:
    observations = _observations(30)
    records = [record_from_observation(observation) for observation in observations]
    starts = [sum(map(len, records[:number])) for number in range(30)]
    random_numbers = random.Random(5)
    for _ in range(300):
        hit = random_numbers.randrange(29)
        data = bytearray(b"".join(records))
        data[starts[hit] + random_numbers.randrange(len(records[hit]))] ^= 1 << random_numbers.randrange(8)
        found = read_records(bytes(data))
        assert found.observations == observations[:hit] + observations[hit + 1 :]
        assert (found.end, found.n_skipped_bytes) == (len(data), len(records[hit]))


def test_rubbish_is_no_record() -> None:
    rubbish = random.Random(6).randbytes(100_000)
    assert read_records(rubbish).observations == []
    observation = _observations(1)[0]
    found = read_records(rubbish + record_from_observation(observation))
    assert found.observations == [observation]
    assert found.n_skipped_bytes == len(rubbish)


def test_numbers_that_no_database_holds_are_left_out() -> None:
    wrong = [
        Observation(prediction_id="a", at_us=1 << 63),
        Observation(prediction_id="a", at_us=-1),
        Observation(prediction_id="a", at_us=1, direction=3),
        Observation(prediction_id="a", at_us=1, shadow=ShadowAnswer(-1, None, 1)),
    ]
    right = _observations(1)[0]
    found = read_records(b"".join(map(record_from_observation, [*wrong, right])))
    assert found.observations == [right]
