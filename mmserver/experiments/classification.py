"""How right labels are: accuracy, precision, recall and F1 from counts; what is undefined is None, never zero.

Shown, never a reason to promote: predictions of one hour resemble each other, and these say nothing of how much.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from mmserver.experiments.rates import Rate

N_CLASSES = 3


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Of one class against all others.

    precision is None where it was never predicted, recall where it never happened, f1 where neither.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    n_actual: int
    n_predicted: int


@dataclass(frozen=True, slots=True)
class ConfusionCounts:
    """How often each class happened (rows) when each was predicted (columns); one more such table is added by `merge`.

    Raises:
        ValueError: it is not square, or a count is negative.
    """

    counts: tuple[tuple[int, ...], ...] = ((0,) * N_CLASSES,) * N_CLASSES

    def __post_init__(self) -> None:
        if not self.counts or any(len(row) != len(self.counts) for row in self.counts):
            raise ValueError(
                "counts of classes must be square: a row for what happened, a column for what was predicted"
            )
        if any(count < 0 for row in self.counts for count in row):
            raise ValueError(f"counts of classes must not be negative: {self.counts}")

    @classmethod
    def from_labels(
        cls, actual: Iterable[Hashable], predicted: Iterable[Hashable], *, classes: Sequence[Hashable]
    ) -> Self:
        """The counts of labels that pair up.

        Raises:
            ValueError: a label is no class, or there are more of one side than of the other.
        """
        places = {name: place for place, name in enumerate(classes)}
        table = [[0] * len(classes) for _ in classes]
        for happened, said in zip(actual, predicted, strict=True):
            for label in (happened, said):
                if label not in places:
                    raise ValueError(f"the label {label!r} is none of {list(classes)}")
            table[places[happened]][places[said]] += 1
        return cls(tuple(map(tuple, table)))

    def merge(self, other: "ConfusionCounts") -> "ConfusionCounts":
        """Both parts' labels together.

        Raises:
            ValueError: they do not have as many classes.
        """
        if len(self.counts) != len(other.counts):
            raise ValueError(f"{len(self.counts)} and {len(other.counts)} classes cannot be counted together")
        rows = zip(self.counts, other.counts, strict=True)
        return ConfusionCounts(tuple(tuple(map(sum, zip(ours, theirs, strict=True))) for ours, theirs in rows))

    @property
    def n(self) -> int:
        """How many labels there are."""
        return sum(map(sum, self.counts))

    @property
    def right(self) -> Rate:
        """How many of them were predicted right."""
        return Rate(sum(row[place] for place, row in enumerate(self.counts)), self.n)

    @property
    def accuracy(self) -> float | None:
        """The share that was predicted right; None without labels."""
        return self.right.value

    @property
    def scores(self) -> tuple[ClassScores, ...]:
        """Of each class, in their order."""
        return tuple(self._scores(place) for place in range(len(self.counts)))

    @property
    def macro(self) -> ClassScores:
        """The plain mean over the classes for which each is defined (scikit-learn's macro, `zero_division=nan`)."""
        scores = self.scores
        return ClassScores(
            _mean(score.precision for score in scores),
            _mean(score.recall for score in scores),
            _mean(score.f1 for score in scores),
            self.n,
            self.n,
        )

    def _scores(self, place: int) -> ClassScores:
        hits = self.counts[place][place]
        n_actual, n_predicted = sum(self.counts[place]), sum(row[place] for row in self.counts)
        return ClassScores(
            precision=hits / n_predicted if n_predicted else None,
            recall=hits / n_actual if n_actual else None,
            f1=2 * hits / (n_actual + n_predicted) if n_actual + n_predicted else None,
            n_actual=n_actual,
            n_predicted=n_predicted,
        )


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return math.fsum(defined) / len(defined) if defined else None
