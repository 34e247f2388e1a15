"""Accuracy, precision, recall and F1, against scikit-learn."""

import math

import numpy as np
import pytest

from mmserver.experiments.classification import ClassScores, ConfusionCounts
from mmserver.experiments.rates import Rate

CLASSES = ("down", "flat", "up")


def test_the_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(71)
    actual, predicted = random.choice(CLASSES, 500, p=(0.3, 0.5, 0.2)), random.choice(CLASSES, 500)
    counts = ConfusionCounts.from_labels(actual.tolist(), predicted.tolist(), classes=CLASSES)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(actual, predicted, labels=CLASSES)
    assert [score.precision for score in counts.scores] == pytest.approx(precision)
    assert [score.recall for score in counts.scores] == pytest.approx(recall)
    assert [score.f1 for score in counts.scores] == pytest.approx(f1)
    assert [score.n_actual for score in counts.scores] == support.tolist()
    assert counts.accuracy == pytest.approx(metrics.accuracy_score(actual, predicted))
    assert (counts.macro.precision, counts.macro.recall, counts.macro.f1) == pytest.approx(
        metrics.precision_recall_fscore_support(actual, predicted, labels=CLASSES, average="macro")[:3]
    )


def test_what_was_never_predicted_has_no_precision_and_what_never_happened_no_recall() -> None:
    counts = ConfusionCounts.from_labels(["down", "down", "up"], ["down", "flat", "down"], classes=CLASSES)
    assert counts.scores == (
        ClassScores(precision=0.5, recall=0.5, f1=0.5, n_actual=2, n_predicted=2),
        ClassScores(precision=0.0, recall=None, f1=0.0, n_actual=0, n_predicted=1),
        ClassScores(precision=None, recall=0.0, f1=0.0, n_actual=1, n_predicted=0),
    )
    assert (counts.macro.precision, counts.macro.recall, counts.macro.f1) == pytest.approx((0.25, 0.25, 1 / 6))


def test_without_labels_nothing_is_defined() -> None:
    nothing = ConfusionCounts()
    assert nothing.accuracy is None
    assert nothing.right == Rate(0, 0)
    assert nothing.scores == (ClassScores(None, None, None, 0, 0),) * 3
    assert nothing.macro == ClassScores(None, None, None, 0, 0)


def test_parts_add_up_to_the_whole() -> None:
    random = np.random.default_rng(72)
    actual, predicted = random.integers(-1, 2, 90).tolist(), random.integers(-1, 2, 90).tolist()
    parts = [ConfusionCounts.from_labels(actual[i::3], predicted[i::3], classes=(-1, 0, 1)) for i in range(3)]
    whole = ConfusionCounts.from_labels(actual, predicted, classes=(-1, 0, 1))
    assert parts[0].merge(parts[1]).merge(parts[2]) == parts[0].merge(parts[1].merge(parts[2])) == whole
    assert whole.merge(ConfusionCounts()) == whole
    assert whole.right.count == sum(a == p for a, p in zip(actual, predicted, strict=True))


@pytest.mark.parametrize("label", ["sideways", None, math.nan, 1])
def test_a_label_that_is_no_class_is_refused_and_named(label: object) -> None:
    with pytest.raises(ValueError, match="is none of"):
        ConfusionCounts.from_labels(["up", label], ["up", "up"], classes=CLASSES)
    with pytest.raises(ValueError, match="is none of"):
        ConfusionCounts.from_labels(["up"], [label], classes=CLASSES)


def test_labels_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        ConfusionCounts.from_labels(["up", "up"], ["up"], classes=CLASSES)


@pytest.mark.parametrize("counts", [(), ((1, 2), (3,)), ((1, 2, 3), (1, 2, 3)), ((1, -1), (0, 0))])
def test_counts_that_are_none_are_refused(counts: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="counts of classes"):
        ConfusionCounts(counts)


def test_tables_of_other_sizes_are_not_added() -> None:
    with pytest.raises(ValueError, match="counted together"):
        ConfusionCounts().merge(ConfusionCounts(((1, 0), (0, 1))))
