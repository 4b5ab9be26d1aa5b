"""Small moves of a placement that make its step shorter: rounding to whole tiles upsets what the MILP balanced.

A pattern search (Hooke and Jeeves, 1961) over the shares of each kind of group.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from offload.plan.packing import TILE_COLUMNS
from offload.plan.placing import Shares, SharesOf
from offload.spec.linear import LinearSpec

_FIRST_TILES = 8  # the first moves; the last are of one tile
_MOST_PLACED = 10_000  # Linears in all trials together: a trial of a model of many takes longer

_Placed = dict[str, Shares]  # by Linear


def polish(
    shares: SharesOf,
    step_s: float,
    kinds: Collection[Sequence[LinearSpec]],
    faster: Callable[[SharesOf, float], float | None],
    fill: Callable[[SharesOf], SharesOf],
) -> SharesOf:
    """The shares after moves that each shorten the step.

    `step_s` is that of `shares`; `kinds` are the Linears of groups that are placed alike; `faster` gives the step of
    other shares where that is below a time and they fit. A kind may leave the device, and what that gives back is for
    the others to `fill`. Large models get fewer trials.
    """
    by_name = {linear.name: linear for linears in kinds for linear in linears}
    placed = {name: shares(linear) for name, linear in by_name.items()}
    trials, tiles = _MOST_PLACED // len(placed), _FIRST_TILES
    for linears in kinds:
        without = fill(_shares_of(_changed(placed, linears, Shares())))
        without_s = faster(without, step_s)
        if without_s is not None:
            placed = {name: without(linear) for name, linear in by_name.items()}
            step_s = without_s
    while tiles:
        improved = False
        for linears in kinds:
            for tried in _moves(placed, linears, tiles):
                if trials == 0:
                    return _shares_of(placed)
                trials -= 1
                tried_s = faster(_shares_of(tried), step_s)
                if tried_s is not None:
                    placed, step_s, improved = tried, tried_s, True
        if not improved:
            tiles //= 2
    return _shares_of(placed)


def _moves(placed: _Placed, linears: Sequence[LinearSpec], tiles: int) -> Iterator[_Placed]:
    """More or less of one kind resident or streamed."""
    part = tiles * TILE_COLUMNS / max(linear.out_features for linear in linears)
    now = placed[linears[0].name]
    others = [
        replace(now, resident=min(1.0 - now.streamed, now.resident + part)),
        replace(now, resident=max(0.0, now.resident - part)),
    ]
    if now.streamed:
        others.append(replace(now, streamed=min(1.0 - now.resident, now.streamed + part)))
        others.append(replace(now, streamed=max(0.0, now.streamed - part)))
        others.append(Shares(min(1.0, now.resident + part), max(0.0, now.streamed - part)))
    for other in others:
        if other != now:
            yield _changed(placed, linears, other)


def _changed(placed: _Placed, linears: Sequence[LinearSpec], shares: Shares) -> _Placed:
    return {**placed, **{linear.name: shares for linear in linears}}


def _shares_of(placed: _Placed) -> SharesOf:
    return lambda linear: placed.get(linear.name, Shares())
