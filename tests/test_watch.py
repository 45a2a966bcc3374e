import logging

from fastrcnn.train.watch import Watch


def test_training_that_goes_nowhere_is_warned_of(caplog):
    watch = Watch(0, 1000)
    for i in range(100):
        watch.check(i, ["a", "b"], {"loss": 0.1, "foreground": 0})
    assert "iteration 99: no foreground RoI for 100 iterations (last images a, b)" in caplog.text
    assert "ten times" not in caplog.text
    for i in range(100, 140):
        watch.check(i, ["a"], {"loss": 2.0, "foreground": 3})
    assert caplog.text.count("is over ten times its lowest, 0.100") == 1 and caplog.text.count("no foreground") == 1


def test_training_that_learns_is_not(caplog):
    watch = Watch(0, 1000)
    for i in range(300):
        watch.check(i, ["a"], {"loss": 3 / (1 + i), "foreground": i % 100 != 98})
    assert not caplog.text


def test_the_time_left_is_logged_once_where_a_resumed_run_starts(caplog):
    watch = Watch(500, 600)
    with caplog.at_level(logging.INFO):
        for i in range(500, 600):
            watch.check(i, ["a"], {"loss": 1.0, "foreground": 1})
    assert [m for m in caplog.messages if "s an iteration: about" in m and "to iteration 600" in m] == caplog.messages
