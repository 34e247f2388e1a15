"""Many p-values at once: what each is worth, given how many were looked at."""

from collections.abc import Sequence


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: rejecting those at or below q keeps the share of false rejections below q.

    Raises:
        ValueError: a p-value is not within 0 and 1.

    Source:
        Benjamini and Hochberg (1995); independent or positively dependent tests.
    """
    order = _descending(p_values)
    n = len(order)
    adjusted = [1.0] * n
    least = 1.0
    for n_above, index in enumerate(order):
        least = min(least, p_values[index] * n / (n - n_above))
        adjusted[index] = least
    return adjusted


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: rejecting those at or below q makes any false rejection rarer than q.

    Raises:
        ValueError: a p-value is not within 0 and 1.

    Source:
        Holm (1979); no assumption on dependence, never weaker than Bonferroni's.
    """
    order = _descending(p_values)[::-1]
    adjusted = [1.0] * len(order)
    greatest = 0.0
    for n_below, index in enumerate(order):
        greatest = max(greatest, min(1.0, p_values[index] * (len(order) - n_below)))
        adjusted[index] = greatest
    return adjusted


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: each by how many there are.

    Raises:
        ValueError: a p-value is not within 0 and 1.
    """
    _descending(p_values)
    return [min(1.0, p_value * len(p_values)) for p_value in p_values]


def _descending(p_values: Sequence[float]) -> list[int]:
    for index, p_value in enumerate(p_values):
        if not 0.0 <= p_value <= 1.0:
            raise ValueError(f"p-value {index} is {p_value}; it must lie within 0 and 1")
    return sorted(range(len(p_values)), key=p_values.__getitem__, reverse=True)
