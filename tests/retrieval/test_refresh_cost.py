"""The cost of refreshing, by hand and by a walk over the steps."""

import pytest

from rlm_jax.retrieval import refresh_cost
from rlm_jax.retrieval.refresh_cost import Collection


def walked(encoding, every, step, lag, periods=50):
    """Seconds of a run whose worker begins at each refresh, over one without any."""
    clock, whole = 0.0, None
    for number in range(periods * every):
        if number % every == 0 and number:
            whole = (number + lag, clock + encoding)
        if whole is not None and number == whole[0]:
            clock, whole = max(clock, whole[1]), None
        clock += step
    return clock / (periods * every * step) - 1


@pytest.mark.parametrize(
    ("encoding", "every", "lag"), [(30.0, 40, 30), (30.0, 40, 10), (8.0, 20, 20)]
)
def test_a_walk_over_the_steps(encoding, every, lag):
    step = 0.5
    told = refresh_cost.overlapped(encoding, every, step, lag)
    # The walk has one refresh less than periods.
    assert walked(encoding, every, step, lag) == pytest.approx(told * 49 / 50, abs=1e-9)
    stopped = refresh_cost.synchronous(encoding, every, step)
    assert walked(encoding, every, step, 0) == pytest.approx(stopped * 49 / 50)


def test_what_keeps_the_overhead_small():
    encoding = Collection(1000, 0.02, devices=4, fixed=3.0).encoding()
    assert encoding == 8.0
    every = refresh_cost.smallest_every(encoding, 0.5, 0.1)
    assert every == 160
    assert refresh_cost.synchronous(encoding, every, 0.5) <= 0.1
    assert refresh_cost.synchronous(encoding, every - 1, 0.5) > 0.1
    lag = refresh_cost.smallest_lag(encoding, 0.5)
    assert refresh_cost.overlapped(encoding, lag, 0.5, lag) == 0
    assert refresh_cost.overlapped(encoding, lag, 0.5, lag - 1) > 0
    assert Collection(1000, 1.0).vectors(768) == 1_536_000


def test_flops_of_bert_base():
    """85 million parameters, 2 operations each for a token; and attention."""
    found = refresh_cost.flops(layers=12, width=768, feed_forward=3072, tokens=100)
    parameters = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert found == 2 * 100 * parameters + 4 * 100**2 * 768 * 12
    assert parameters == 84_934_656
