"""Sums of waits as series: what they stand for are the same waits one by one."""

import math
import random

import numpy as np
import pytest

from trimtab.planning.waits import Line, Waits

QUANTILES = [0.5, 0.95, 0.99]


def _row(draw, *, width, count, ratio):
    """Return waits of a table and of a line, as (probability, certain time, use, tail) and as a series."""
    table = [
        (draw.random(), draw.random() * 1e6, draw.choice([0.0, 0.99 * draw.random()]), 1e4)
        for _ in range(width)
    ]
    sure, step = draw.random() * 2e6, 1e3 + draw.random() * 2e5
    use, tail = 0.9 * draw.random(), 1 + draw.random() * 1e6
    share = draw.random()
    line = [(share * ratio**n, sure + n * step, use, tail) for n in range(count)]
    whole = sum(wait[0] for wait in (*table, *line))
    return (
        [(p / whole, *rest) for p, *rest in table],
        [(p / whole, *rest) for p, *rest in line],
        (count, share / whole, math.log(ratio), sure, step, use, tail),
    )


@pytest.fixture(scope="module")
def rows():
    """Rows of all kinds: without a line, without a table, series that fall, are level, and rise."""
    draw = random.Random(11)
    kinds = [
        (width, count, ratio)
        for width in (0, 1, 6)
        for count, ratio in ((0, 0.5), (1, 0.5), (7, 0.98), (300, 0.999), (300, 1.0), (90, 1.05))
        if width + count
    ]
    return [_row(draw, width=w, count=c, ratio=r) for w, c, r in kinds]


def _table(found, *, width):
    filled = [row + [(0.0, 5e3, 0.5, 1e3)] * (width - len(row)) for row in found]
    shares, sure, use, tail = np.moveaxis(np.array(filled), 2, 0)
    return {"shares": shares, "sure": sure, "use": use, "tail": tail}


def _series(rows):
    names = ("count", "share", "log_ratio", "sure", "step", "use", "tail")
    columns = np.array([line for _, _, line in rows], dtype=float).T
    return Line(**dict(zip(names, columns, strict=True)))


def test_a_line_is_all_its_waits_one_by_one(rows):
    """Means and quantiles are those of a table that lists every wait, whatever a row has of both."""
    short = Waits(**_table([table for table, _, _ in rows], width=6), line=_series(rows))
    long = Waits(**_table([table + line for table, line, _ in rows], width=306))
    shares = [1 - quantile for quantile in QUANTILES]
    assert short.mean() == pytest.approx(long.mean(), rel=1e-9)
    assert short.exceeded(shares) == pytest.approx(long.exceeded(shares), rel=1e-8)
    # Some quantiles lie on the line and some before it, else nothing was put to the test.
    begins = np.array([line[3] for _, _, line in rows])[:, None]
    within = [bool(line[0]) for _, _, line in rows]
    assert {*(short.exceeded(shares)[within] > begins[within]).ravel().tolist()} == {True, False}


def test_a_line_does_not_hang_on_the_lines_beside_it(rows):
    """A row alone has bit by bit the quantiles and the mean that it has among others."""
    shares = [1 - quantile for quantile in QUANTILES]
    together = Waits(**_table([table for table, _, _ in rows], width=6), line=_series(rows))
    for number, row in enumerate(rows):
        alone = Waits(**_table([row[0]], width=6), line=_series([row]))
        assert (alone.exceeded(shares)[0] == together.exceeded(shares)[number]).all()
        assert alone.mean()[0] == together.mean()[number]
