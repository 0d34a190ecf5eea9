"""Which ids of a dataset a small synthetic set takes."""

from __future__ import annotations

from collections.abc import Sequence


def numbers(first: Sequence[int], count: int) -> list[int]:
    """Return `count` numbers: the first ones with gaps as the dataset has them, then consecutive ones."""
    return [*first, *range(first[-1] + 1, first[-1] + 1 + count - len(first))][:count]


def unused(taken: Sequence[int], count: int) -> list[int]:
    """Return the smallest numbers from the first one taken that are not taken: ids without labels."""
    free = (number for number in range(taken[0], taken[-1] + count + 1) if number not in taken)
    return [number for number, _ in zip(free, range(count), strict=False)]


def check_count(num_cases: int, most: int, layout: str) -> None:
    """Raise ValueError unless a dataset can have so many labelled cases, one of them for validation."""
    if not 2 <= num_cases <= most:
        raise ValueError(f"num_cases must be 2 to {most} for layout {layout!r}, got {num_cases=}.")


def choose(training: Sequence[str], validation: Sequence[str], num_cases: int) -> list[str]:
    """Choose the first ids of both parts of a listed split, about one in five for validation, at least one of each.

    Args:
        training: ids that train, in order.
        validation: ids that validate, in order.
        num_cases: 2 to the number of all ids.

    Returns:
        The ids in ascending order.

    Example:
        >>> choose(["03", "04", "05", "06", "07", "08", "09", "10"], ["01", "02"], 6)
        ['01', '02', '03', '04', '05', '06']
        >>> choose(["01", "02", "03", "04"], ["08", "09"], 5)
        ['01', '02', '03', '04', '08']
    """
    for_validation = min(-(-num_cases // 5), len(validation))
    for_training = min(num_cases - for_validation, len(training))
    return sorted([*training[:for_training], *validation[: num_cases - for_training]])
