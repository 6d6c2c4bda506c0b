"""Which frame stands for which row, and what becomes of odd timestamps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextvlad.video.timeline import Clock, RowPicker, middle_of, rows_of


def pick(times: list[float], end: float, rate_hz: float) -> list[tuple[float, int]]:
    picker: RowPicker[int] = RowPicker(rate_hz)
    rows = [row for number, time in enumerate(times) for row in picker.offer(time, number)]
    return rows + list(picker.finish(end))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4000), min_size=1, max_size=30).map(sorted),
    st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    st.integers(1, 500),
)
def test_each_row_has_the_last_frame_not_after_its_middle(
    stamps: list[int], rate_hz: float, last: int
) -> None:
    times = [stamp / 100 + 0.0013 for stamp in stamps]  # never exactly at a middle
    end = times[-1] + last / 100
    rows = pick(times, end, rate_hz)
    assert len(rows) == rows_of(end, rate_hz)
    for row, (seconds, number) in enumerate(rows):
        before = [n for n, time in enumerate(times) if time <= middle_of(row, rate_hz)]
        assert number == (before[-1] if before else 0)
        assert seconds == times[number]


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [(0.01, 1), (0.5, 1), (1.0, 1), (1.5, 1), (1.51, 2), (9.96, 10), (10.0, 10), (10.6, 11)],
)
def test_rows_of_a_duration(seconds: float, rows: int) -> None:
    assert rows_of(seconds, 1.0) == rows


def test_a_cut_has_no_more_rows_than_it_has_time_for() -> None:
    picker: RowPicker[int] = RowPicker(1.0, num_rows=2)
    rows = [row for time in range(9) for row in picker.offer(float(time), time)]
    assert rows == [(0.0, 0), (1.0, 1)]
    assert picker.is_done


def test_a_clock_counts_on_where_timestamps_are_missing() -> None:
    clock = Clock(10.0, 60.0, 0.04)
    assert [clock.place(stamp, None) for stamp in (10.0, None, None, 10.5)] == pytest.approx(
        [0, 0.04, 0.08, 0.5]
    )
    assert clock.num_missing == 2
    assert clock.end_seconds == pytest.approx(0.54)


@pytest.mark.parametrize("jump", [-1e5, 1e9, 5000.0])
def test_a_clock_mends_jumps(jump: float) -> None:
    clock = Clock(0.0, 10.0, 0.5)
    times = [clock.place(stamp, 0.5) for stamp in (0.0, 0.5, 1.0 + jump, 1.5 + jump, 2.0 + jump)]
    assert times == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert clock.num_jumps == 1


def test_a_clock_believes_gaps_of_the_film_and_holds_still_at_jitter() -> None:
    clock = Clock(0.0, 4000.0, 0.5)
    assert [clock.place(stamp, None) for stamp in (0.0, 3000.0, 2999.9, 3000.2)] == [
        0.0,
        3000.0,
        3000.0,
        3000.2,
    ]
    assert clock.num_jumps == 0
