"""Schedules against the golden figures, and exactly where they restart."""

from __future__ import annotations

import numpy as np
import pytest

from kclf.schedules import (
    constant,
    cosine,
    cosine_restarts,
    cycle_at,
    cycle_ends,
    exponential,
    flat_cosine,
    join,
    linear,
    one_cycle,
    one_cycle_momentum,
    plot,
    simulate,
)

STEPS = 1000  # golden positions are shares of a run


def at_positions(schedule, table):
    return {position: schedule(float(position) * STEPS) for position in table}


@pytest.mark.parametrize(
    ("key", "schedule"),
    [
        ("one_cycle_lr(max=1e-2,div25,final1e5,pct.25)@pos", one_cycle(1e-2, STEPS)),
        ("one_cycle_mom@pos", one_cycle_momentum(STEPS)),
        ("fine_tune_freeze_lr(2e-3)@pos", one_cycle(2e-3, STEPS, pct_start=0.99)),
        ("flat_cos", flat_cosine(1e-2, STEPS)),
    ],
)
def test_golden_positions(golden, key, schedule):
    assert at_positions(schedule, golden[key]) == pytest.approx(golden[key], abs=1e-8)


def test_golden_restarts(golden):
    table = golden["sgdr n=3 len=1 mult=2 @epoch"]
    del table["3"]  # the source falls on the wrong side of its own restart there
    schedule = cosine_restarts(1e-2, 100, cycle_mult=2)
    assert {epoch: schedule(float(epoch) * 100) for epoch in table} == pytest.approx(table, abs=1e-8)


def test_restarts_of_fastai_0_7():
    schedule = cosine_restarts(1.0, 100, cycle_mult=2)
    expected = {25: 0.853553, 50: 0.5, 75: 0.146447, 99: 0.000247, 100: 1.0, 200: 0.5, 299: 6.2e-5, 300: 1.0}
    assert {step: schedule(step) for step in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cycle_mult", [1, 2, 3, 10])
@pytest.mark.parametrize("first", [1, 7])
def test_every_restart_is_exact(cycle_mult, first):
    schedule = cosine_restarts(1.0, first, cycle_mult=cycle_mult)
    ends = cycle_ends(first, cycle_mult, 8)
    assert [schedule(end) for end in ends] == [1.0] * 8
    assert [cycle_at(end - 1, first, cycle_mult)[0] for end in ends] == list(range(8))
    assert [cycle_at(end, first, cycle_mult)[0] for end in ends] == list(range(1, 9))


@pytest.mark.parametrize(
    ("cycle", "epochs"), [((1, 2, 3), 7), ((2, 1, 3), 6), ((2, 2, 3), 14), ((1, 1, 1), 1)]
)
def test_number_of_epochs(cycle, epochs):
    assert cycle_ends(*cycle)[-1] == epochs


def test_warmup_lasts_a_twentieth_of_the_first_cycle_only():
    schedule = cosine_restarts(1.0, 100, cycle_mult=2, warmup=True)
    assert simulate(schedule, 5).tolist() == [0.01] * 5
    assert schedule(5) == pytest.approx(0.993844, abs=1e-6)
    assert schedule(100) == 1.0


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (constant(0.3), 0.3, 0.3),
        (linear(1.0, 0.5, 10), 1.0, 0.5),
        (cosine(1.0, 0.1, 10), 1.0, 0.1),
        (exponential(1e-7, 10.0, 10), 1e-7, 10.0),
        (one_cycle(1.0, 10), 0.04, 1e-5),
        (one_cycle(1.0, 10, pct_start=0.0), 1.0, 1e-5),
        (one_cycle(1.0, 10, pct_start=1.0), 0.04, 1e-5),
        (flat_cosine(1.0, 10), 1.0, 1e-5),
    ],
)
def test_ends_hold(schedule, first, last):
    assert schedule(0) == pytest.approx(first)
    assert schedule(10) == pytest.approx(last)
    assert schedule(11) == schedule(10)


def test_join_starts_each_part_at_its_own_zero():
    schedule = join([linear(0.0, 1.0, 10), cosine(1.0, 0.0, 90), constant(0.0)], [10, 100])
    assert [schedule(step) for step in (0, 5, 10, 100, 1000)] == pytest.approx([0, 0.5, 1, 0, 0])
    assert schedule(55) == pytest.approx(0.5)


def test_simulate_is_the_schedule_at_whole_steps():
    schedule = one_cycle(1e-2, 50)
    np.testing.assert_array_equal(simulate(schedule, 50), [schedule(step) for step in range(50)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(0, 1, 0), "at least 1 step"),
        (lambda: exponential(0.0, 1.0, 5), "start=0.0"),
        (lambda: one_cycle(1.0, 5, pct_start=25), "pct_start=25"),
        (lambda: cosine_restarts(1.0, 5, cycle_mult=0), "cycle_mult=0"),
        (lambda: cosine_restarts(1.0, 5, cycle_mult=1.5), "cycle_mult=1.5"),
        (lambda: join([constant(1.0)], [3]), "need 0 boundaries"),
        (lambda: join([constant(1.0)] * 3, [5, 3]), "must ascend"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_plot_draws_on_the_given_axes():
    from matplotlib import pyplot

    figure, ax = pyplot.subplots()
    assert plot(one_cycle(1e-2, 20), 20, ax=ax, label="rate") is ax
    assert len(ax.lines[0].get_ydata()) == 20
    pyplot.close(figure)
