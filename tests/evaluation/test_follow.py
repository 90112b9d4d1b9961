"""Evaluation of each checkpoint of a run as it comes."""

import shutil
import threading
import time

import pytest

from evaluation import follow, job
from tests.evaluation import toy_run
from tests.evaluation.toy_run import make_config, rows, save, start
from training.components import ConfigError
from training.config import freeze


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    toy_run.install(monkeypatch)


def steps(path):
    return [row["info"]["checkpoint"] for row in rows(path)]


def config(**evaluate):
    return freeze(make_config(count=8, poll=0.05, **evaluate))


def test_new_checkpoints_are_evaluated_until_the_last(tmp_path):
    start(tmp_path, make_config(), 5)

    def train():
        for step in (10, 20):
            time.sleep(0.5)
            save(tmp_path, step)

    training = threading.Thread(target=train)
    training.start()
    follow.follow(config(), tmp_path)
    training.join()
    assert steps(tmp_path) == [5, 10, 20]
    follow.follow(config(), tmp_path)
    assert steps(tmp_path) == [5, 10, 20]


def test_a_checkpoint_deleted_under_the_evaluation_is_passed_over(tmp_path, monkeypatch, caplog):
    start(tmp_path, make_config(), 5, 10, 20)
    evaluate = job.evaluate

    def deleting(config, directory):
        if config.sample.checkpoint == 10:
            shutil.rmtree(tmp_path / "checkpoints" / "10")
        evaluate(config, directory)

    monkeypatch.setattr(follow, "evaluate", deleting)
    follow.follow(config(), tmp_path)
    assert steps(tmp_path) == [5, 20]
    assert "step 10 was deleted under its evaluation" in caplog.text


def test_errors_of_a_checkpoint_that_is_there_stop_it(tmp_path):
    start(tmp_path, make_config(), 5)
    with pytest.raises(ConfigError, match="'slow' is not in"):
        follow.follow(config(emas=("slow",)), tmp_path)


def test_it_gives_up_where_nothing_comes(tmp_path):
    start(tmp_path, make_config(), 5)
    with pytest.raises(ConfigError, match=r"no checkpoint after step 5 .*to have 20 steps"):
        follow.follow(config(patience=0.2), tmp_path)
    assert steps(tmp_path) == [5]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"count": 0}, "draws samples of each checkpoint"),
        ({"checkpoints": (5,)}, "takes each checkpoint as it comes"),
        ({"images": "a.npz"}, "takes each checkpoint as it comes"),
    ],
)
def test_mistakes(tmp_path, evaluate, message):
    start(tmp_path, make_config())
    with pytest.raises(ConfigError, match=message):
        follow.follow(freeze(make_config(**evaluate)), tmp_path)
