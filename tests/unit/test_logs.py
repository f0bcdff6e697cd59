"""Log records on their way: plain, bounded, and only where someone takes them."""

from __future__ import annotations

import logging
import marshal
import os

import pytest

from canobatch import logs
from canobatch.logs import BURST, Forwarder


class Text(str):
    """A string that marshal does not take."""

    __slots__ = ()


@pytest.fixture
def sent():
    """What a forwarder sent."""
    return []


@pytest.fixture
def forwarder(sent):
    """A forwarder in the midst of attempt 2 of branch 3, on a logger of its own."""
    one = Forwarder(lambda body: sent.append(marshal.loads(marshal.dumps(body))) or True, sent.append)
    one.attempt = (3, 2)
    return one


@pytest.fixture
def logger(forwarder):
    """A logger that only the forwarder hears."""
    logger = logging.getLogger("test.forwarded")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(forwarder)
    yield logger
    logger.removeHandler(forwarder)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def test_a_record_goes_as_plain_data(logger, sent):
    """Logger, level, text, place, traceback and plain extras travel; what cannot be plain does not."""
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception(Text("at %s"), object, extra={"user": 3, "tag": Text("t"), "live": object(), "name2": "n"})
    ((branch, attempt, facts),) = sent
    assert (branch, attempt) == (3, 2)
    assert facts["name"] == "test.forwarded"
    assert facts["levelname"] == "ERROR"
    assert facts["msg"] == "at <class 'object'>"
    assert facts["exc_text"].endswith("ValueError: no")
    assert facts["process"] == os.getpid()
    assert facts["user"] == 3
    assert facts["name2"] == "n"
    assert not {"live", "exc_info", "args", "tag"} & facts.keys()


def test_a_record_is_made_again_here(logger, sent, caplog):
    """What arrives is a record of its logger, with further facts; its traceback is shown as text."""
    try:
        raise ValueError("no")
    except ValueError:
        logger.warning("hm %d", 1, exc_info=True)
    ((_, _, facts),) = sent
    caplog.clear()
    logs.relay(facts | {"name": "test.relayed"}, run_id="r", state="S", branch=3, attempt=2)
    (record,) = caplog.records
    assert (record.run_id, record.state, record.branch, record.attempt) == ("r", "S", 3, 2)
    assert (record.name, record.levelno, record.getMessage()) == ("test.relayed", logging.WARNING, "hm 1")
    assert record.funcName == "test_a_record_is_made_again_here"
    assert "ValueError: no" in caplog.text


def test_a_record_below_the_level_here_is_dropped(logger, sent, caplog):
    """The level of the launcher's logger holds at the time of arrival."""
    logger.info("hm")
    caplog.clear()
    assert not logging.getLogger("test.relayed").isEnabledFor(logging.INFO)
    logs.relay(sent[0][2] | {"name": "test.relayed"}, run_id="r")
    assert caplog.records == []


def test_what_a_handler_raises_stays_with_it(logger, sent):
    """A filter that raises does not fail the run that relays."""
    logger.info("hm")

    def refuse(record):
        raise ValueError("no")

    logger.addFilter(refuse)
    logs.relay(sent[0][2], run_id="r")
    logger.removeFilter(refuse)


def test_long_texts_are_cut(logger, sent):
    """A message and a traceback have a largest size, and say what is missing."""
    logger.info("x" * 1_000_000)
    assert len(sent[0][2]["msg"]) < 10_000
    assert sent[0][2]["msg"].endswith("[and 992000 characters more]")


def test_too_many_are_dropped_and_counted(logger, forwarder, sent):
    """Past a burst records are dropped; the end of the attempt says how many."""
    for number in range(3 * BURST):
        logger.info("%d", number)
    assert BURST <= len(sent) < 2 * BURST
    dropped = 3 * BURST - len(sent)
    forwarder.end()
    branch, attempt, facts = sent[-1]
    assert (branch, attempt, facts["levelno"]) == (3, 2, logging.WARNING)
    assert facts["msg"].startswith(f"{dropped} log records of this attempt were dropped")


def test_what_cannot_be_sent_at_once_is_dropped(logger, forwarder, sent):
    """A full channel costs records, not time."""
    forwarder._try_send = lambda body: False
    logger.info("hm")
    forwarder.end()
    assert sent[-1][2]["msg"].startswith("1 log records")


def test_a_record_that_cannot_be_formatted_fails_nobody(forwarder, sent, capsys):
    """logging says so on stderr, as it always does."""
    forwarder.handle(logging.makeLogRecord({"msg": "%d", "args": ("no number",)}))
    assert sent == []
    assert "Logging error" in capsys.readouterr().err


def test_between_calls_nothing_is_sent(logger, forwarder, sent, capsys):
    """What belongs to no attempt goes where logging puts it by itself."""
    forwarder.end()
    logger.warning("hm")
    assert sent == []
    assert "hm" in capsys.readouterr().err


def test_a_forked_child_does_not_use_the_channel(logger, forwarder, sent, capsys):
    """Another process than the one it was made in sends nothing."""
    forwarder._pid = -1
    logger.warning("hm")
    assert sent == []
    assert "hm" in capsys.readouterr().err


def test_levels_are_those_of_this_process():
    """All levels that were set, the root's, and logging.disable."""
    logger = logging.getLogger("test.levels")
    logger.setLevel(logging.ERROR)
    try:
        disabled, root, others = logs.levels()
    finally:
        logger.setLevel(logging.NOTSET)
    assert disabled == 0
    assert root == logging.getLogger().level
    assert others["test.levels"] == logging.ERROR


def test_where_nothing_takes_records_there_are_no_levels(monkeypatch):
    """NullHandlers do not count."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    known = logging.getLogger().manager.loggerDict.values()
    for logger in known:
        if getattr(logger, "handlers", None):
            monkeypatch.setattr(logger, "handlers", [])
    logging.getLogger("test.null").handlers.append(logging.NullHandler())
    assert logs.levels() is None
    monkeypatch.setattr(logging.getLogger("test.some"), "handlers", [logging.StreamHandler()])
    assert logs.levels() is not None
    logging.getLogger("test.null").handlers.clear()


def test_levels_are_taken_and_given_back(forwarder):
    """A worker logs what its launcher does, and then as it did before."""
    root, one = logging.getLogger(), logging.getLogger("test.adopted")
    before = root.level
    one.setLevel(logging.INFO)
    forwarder.adopt((logging.DEBUG, logging.ERROR, {"test.adopted": logging.CRITICAL}))
    try:
        assert (root.level, one.level, root.manager.disable) == (logging.ERROR, logging.CRITICAL, logging.DEBUG)
        assert forwarder in root.handlers
    finally:
        forwarder.adopt(None)
    assert (root.level, one.level, root.manager.disable) == (before, logging.INFO, 0)
    assert forwarder not in root.handlers
    one.setLevel(logging.NOTSET)
