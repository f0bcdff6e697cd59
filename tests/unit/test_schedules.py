"""When flows are due: intervals, cron fields, zones, and the days on which clocks are changed."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from canobatch.errors import ConfigurationError
from canobatch.scheduler import Cron, Interval, Manual

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def at(text: str) -> datetime:
    """An instant in UTC from "2026-03-08 07:00" or with seconds."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ticks(schedule, after: str, count: int) -> list[str]:
    """The next ticks as text, day left out where it is that of ``after``."""
    return [f"{tick:%Y-%m-%d %H:%M:%S}".replace(after[:11], "") for tick in schedule.preview(at(after), count)]


# -- intervals


def test_a_fixed_rate_is_the_anchor_and_its_multiples():
    """Ticks are at anchor + k × interval, whatever instant is asked about."""
    schedule = Interval(90, anchor=NOON)
    assert ticks(schedule, "2026-01-01 12:00:00", 3) == ["12:01:30", "12:03:00", "12:04:30"]
    assert schedule.next_after(NOON + timedelta(seconds=89, microseconds=999_999)) == NOON + 90 * SECOND
    assert schedule.next_after(NOON + timedelta(days=3650, seconds=1)) == NOON + timedelta(days=3650, seconds=90)


def test_the_first_tick_is_at_the_anchor_or_one_interval_later():
    """With start="now" the anchor itself is a tick; with "after_interval" it is not."""
    before = NOON - timedelta(hours=1)
    for mode in ("fixed_rate", "fixed_delay"):
        assert Interval(60, mode=mode, anchor=NOON).next_after(before) == NOON
        assert Interval(60, mode=mode, start="after_interval", anchor=NOON).next_after(before) == NOON + 60 * SECOND


def test_a_fixed_delay_counts_from_the_end_of_a_run():
    """After a run that ended at an odd time the next tick is a whole interval later."""
    ended = NOON + timedelta(seconds=7.25)
    assert Interval(10, mode="fixed_delay", anchor=NOON).next_after(ended) == ended + 10 * SECOND


def test_an_interval_is_exact_after_years():
    """Thirty million ticks of 0.1 s later the grid is where it was: no rounding adds up."""
    schedule = Interval(0.1, anchor=NOON)
    assert schedule.next_after(NOON + 30_000_000 * timedelta(seconds=0.1)) == NOON + timedelta(seconds=3_000_000.1)


def test_an_anchor_is_kept_once_it_is_set():
    """What was started once keeps its grid when it is started again."""
    once = Interval(60).anchored(NOON)
    assert once.anchored(NOON + 7 * SECOND) == once
    assert once.next_after(NOON + SECOND) == NOON + 60 * SECOND


def test_without_an_anchor_the_epoch_is_the_anchor():
    """An interval that was never started has its ticks at whole multiples since 1970."""
    assert Interval(3600).next_after(NOON + SECOND) == NOON + timedelta(hours=1)


def test_intervals_are_seconds_or_timedeltas():
    """The same interval, given either way, has the same ticks."""
    assert Interval(1.5).preview(NOON, 3) == Interval(timedelta(seconds=1.5)).preview(NOON, 3)
    assert Interval(1.5).seconds == 1.5


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf"), 1e18, 0.0001, True, "5", None])
def test_an_interval_that_cannot_be_is_refused(every):
    """Nothing, less than nothing, too short to tell, and what is no number."""
    with pytest.raises(ConfigurationError, match="an interval must be"):
        Interval(every)


@pytest.mark.parametrize("options", [{"mode": "sometimes"}, {"start": "later"}, {"mode": []}])
def test_modes_of_an_interval_are_checked(options):
    """A mode or start that there is not is an error that lists those there are."""
    with pytest.raises(ConfigurationError, match="must be '"):
        Interval(1, **options)


def test_the_end_of_the_calendar_is_the_end_of_the_ticks():
    """Past the year 9999 there is no next tick, and no error either."""
    last = datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC)
    assert Interval(3600, anchor=NOON).next_after(last) is None
    assert Interval(3600, mode="fixed_delay", anchor=NOON).next_after(last) is None
    assert Cron("0 0 * * *").preview(last, 3) == []
    assert Cron("* * * * *", "America/New_York").preview(last, 3) == []


def test_a_manual_schedule_is_never_due():
    """It has no next tick."""
    assert Manual().next_after(NOON) is None
    assert Manual().preview(NOON, 5) == []


@pytest.mark.parametrize("schedule", [Manual(), Interval(5), Cron("* * * * *")])
def test_an_instant_without_a_zone_is_refused(schedule):
    """A naive datetime could mean anything."""
    with pytest.raises(ConfigurationError, match="must be a datetime with a zone"):
        schedule.next_after(NOON.replace(tzinfo=None))


@pytest.mark.parametrize("schedule", [Manual(), Interval(5, anchor=NOON), Cron("0 9 * * *", "Europe/London")])
def test_schedules_are_values(schedule):
    """A schedule equals its copy from a pickle, which has the same ticks, and it can be a key."""
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert copy.preview(NOON, 3) == schedule.preview(NOON, 3)


def test_schedules_read_as_what_they_are():
    """The text says interval and mode, or expression and zone."""
    assert str(Interval(90, mode="fixed_delay")) == "every 90 s, fixed delay"
    assert str(Cron("0 9 * * *", "Europe/London")) == "cron '0 9 * * *' in Europe/London"
    assert str(Manual()) == "manual"


# -- cron fields


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/15 * * * *", ["12:15:00", "12:30:00", "12:45:00"]),
        ("20 * * * *", ["12:20:00", "13:20:00", "14:20:00"]),
        ("5-5 13 * * *", ["13:05:00", "2026-01-02 13:05:00", "2026-01-03 13:05:00"]),
        ("59/15 * * * *", ["12:59:00", "13:59:00", "14:59:00"]),
        ("40/10 * * * *", ["12:40:00", "12:50:00", "13:40:00"]),
        ("10-30/10,45 * * * *", ["12:10:00", "12:20:00", "12:30:00"]),
        ("*/30 * * * * *", ["12:00:30", "12:01:00", "12:01:30"]),
        ("5 0 13 * * *", ["13:00:05", "2026-01-02 13:00:05", "2026-01-03 13:00:05"]),
        ("@hourly", ["13:00:00", "14:00:00", "15:00:00"]),
        ("@Daily", ["2026-01-02 00:00:00", "2026-01-03 00:00:00", "2026-01-04 00:00:00"]),
        ("@midnight", ["2026-01-02 00:00:00", "2026-01-03 00:00:00", "2026-01-04 00:00:00"]),
        ("@weekly", ["2026-01-04 00:00:00", "2026-01-11 00:00:00", "2026-01-18 00:00:00"]),
        ("@monthly", ["2026-02-01 00:00:00", "2026-03-01 00:00:00", "2026-04-01 00:00:00"]),
        ("@yearly", ["2027-01-01 00:00:00", "2028-01-01 00:00:00", "2029-01-01 00:00:00"]),
        ("@annually", ["2027-01-01 00:00:00", "2028-01-01 00:00:00", "2029-01-01 00:00:00"]),
        # Sunday is 0 and 7; the fourth is one.
        ("0 0 * * 0", ["2026-01-04 00:00:00", "2026-01-11 00:00:00", "2026-01-18 00:00:00"]),
        ("0 0 * * 7", ["2026-01-04 00:00:00", "2026-01-11 00:00:00", "2026-01-18 00:00:00"]),
        ("0 0 * * sun", ["2026-01-04 00:00:00", "2026-01-11 00:00:00", "2026-01-18 00:00:00"]),
        ("0 0 * * sat-7", ["2026-01-03 00:00:00", "2026-01-04 00:00:00", "2026-01-10 00:00:00"]),
        ("0 0 * * MON-Wed/2", ["2026-01-05 00:00:00", "2026-01-07 00:00:00", "2026-01-12 00:00:00"]),
        ("0 0 1 jan,MAR-apr *", ["2026-03-01 00:00:00", "2026-04-01 00:00:00", "2027-01-01 00:00:00"]),
        # Both days restricted: either. One with a star: both.
        ("0 0 13 * FRI", ["2026-01-02 00:00:00", "2026-01-09 00:00:00", "2026-01-13 00:00:00"]),
        ("0 0 */13 * FRI", ["2026-02-27 00:00:00", "2026-03-27 00:00:00", "2026-05-01 00:00:00"]),
        ("0 0 13 * */5", ["2026-02-13 00:00:00", "2026-03-13 00:00:00", "2026-09-13 00:00:00"]),
        ("0 0 29 2 *", ["2028-02-29 00:00:00", "2032-02-29 00:00:00", "2036-02-29 00:00:00"]),
        ("0 0 L * *", ["2026-01-31 00:00:00", "2026-02-28 00:00:00", "2026-03-31 00:00:00"]),
        ("0 0 * * FRI#2", ["2026-01-09 00:00:00", "2026-02-13 00:00:00", "2026-03-13 00:00:00"]),
    ],
)
def test_cron_fields(expression, expected):
    """Five fields, or six with seconds first; names, steps, lists, nicknames; days combine as in cron."""
    assert ticks(Cron(expression), "2026-01-01 12:00:00", 3) == expected


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("* * * *", "4 fields"),
        ("0 0 0 1 1 * 2026", "7 fields"),
        ("", "0 fields"),
        ("60 * * * *", "minute '60': 60 is not within 0-59"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "day of week"),
        ("60 * * * * *", "second"),
        ("5-1 * * * *", "runs backwards; write it as two, such as 5-59,0-1"),
        ("*/0 * * * *", "a step must be a whole number above 0"),
        ("*/ * * * *", "a step"),
        ("1,,2 * * * *", "minute"),
        ("-1 * * * *", "minute"),
        ("٣ * * * *", "minute"),
        ("H * * * *", "minute"),
        ("R * * * *", "minute"),
        ("* * * JANUARY *", "a name such as JAN"),
        ("* * 15W * *", "day of month"),
        ("@reboot", "unknown nickname"),
        ("0 0 * * FRI#6", "1 to 5"),
        ("0 0 * * FRI#2,MON", "mixes"),
        ("0 0 1 * FRI#2", "needs '\\*' as day of month"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("0 0 30,31 2 */7", "never fires"),
        (None, "must be a string"),
    ],
)
def test_a_bad_expression_is_refused_at_once(expression, told):
    """The error names the expression, the field and what is wrong, before anything is scheduled."""
    with pytest.raises(ConfigurationError, match=f"cron .*{told}"):
        Cron(expression)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../UTC", "America", None, 3])
def test_an_unknown_zone_is_refused_at_once(zone):
    """What is no zone is an error that shows what one looks like."""
    with pytest.raises(ConfigurationError, match=r"unknown time zone .* such as 'Europe/London'"):
        Cron("* * * * *", zone)


def test_a_zone_may_be_an_object():
    """A tzinfo serves as well as a name."""
    assert Cron("0 9 * * *", ZoneInfo("Asia/Tokyo")).next_after(NOON) == at("2026-01-02 00:00")


def test_next_after_is_strict():
    """A tick is not its own successor, and a microsecond before it is not late."""
    every = Cron("* * * * * *")
    assert every.next_after(NOON) == NOON + SECOND
    assert every.next_after(NOON - timedelta(microseconds=1)) == NOON
    assert Cron("0 12 * * *").next_after(NOON - timedelta(microseconds=1)) == NOON


# -- the days on which clocks are changed: what is due, in UTC

NEW_YORK, LONDON, LORD_HOWE, SAO_PAULO = (
    "America/New_York",
    "Europe/London",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
)


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        # New York, 8 March 2026: 02:00 EST becomes 03:00 EDT at 07:00 UTC.
        (NEW_YORK, "30 2 * * *", "2026-03-08 00:00", ["07:00:00", "2026-03-09 06:30:00"]),
        (NEW_YORK, "0 30 2 * * *", "2026-03-08 00:00", ["07:00:00", "2026-03-09 06:30:00"]),
        (NEW_YORK, "15,45 2 * * *", "2026-03-08 00:00", ["07:00:00", "2026-03-09 06:15:00"]),
        (NEW_YORK, "0 2,3 * * *", "2026-03-08 00:00", ["07:00:00", "2026-03-09 06:00:00"]),
        (NEW_YORK, "0 9 * * *", "2026-03-07 15:00", ["2026-03-08 13:00:00", "2026-03-09 13:00:00"]),
        (NEW_YORK, "0 * * * *", "2026-03-08 05:30", ["06:00:00", "07:00:00", "08:00:00"]),
        (NEW_YORK, "0 0 * * * *", "2026-03-08 05:30", ["06:00:00", "07:00:00", "08:00:00"]),
        (NEW_YORK, "30 * * * *", "2026-03-08 06:00", ["06:30:00", "07:30:00", "08:30:00"]),
        (NEW_YORK, "*/20 2 * * *", "2026-03-08 00:00", ["2026-03-09 06:00:00", "2026-03-09 06:20:00"]),
        (NEW_YORK, "59 59 * * * *", "2026-03-08 06:00", ["06:59:59", "07:59:59"]),
        # New York, 1 November 2026: 02:00 EDT becomes 01:00 EST at 06:00 UTC.
        (NEW_YORK, "30 1 * * *", "2026-11-01 00:00", ["05:30:00", "2026-11-02 06:30:00"]),
        (NEW_YORK, "30 1 * * *", "2026-11-01 06:10", ["2026-11-02 06:30:00"]),
        (NEW_YORK, "15 30 1 * * *", "2026-11-01 00:00", ["05:30:15", "2026-11-02 06:30:15"]),
        (NEW_YORK, "0,59 1,2 * * *", "2026-11-01 05:30", ["05:59:00", "07:00:00", "07:59:00"]),
        (NEW_YORK, "0 * * * *", "2026-11-01 04:30", ["05:00:00", "06:00:00", "07:00:00"]),
        (NEW_YORK, "30 * * * *", "2026-11-01 05:00", ["05:30:00", "06:30:00", "07:30:00"]),
        (NEW_YORK, "*/30 1 * * *", "2026-11-01 00:00", ["05:00:00", "05:30:00", "06:00:00", "06:30:00"]),
        (NEW_YORK, "0 */20 1 * * *", "2026-11-01 05:30", ["05:40:00", "06:00:00", "06:20:00"]),
        # London, 29 March and 25 October 2026: both at 01:00 UTC.
        (LONDON, "30 1 * * *", "2026-03-29 00:00", ["01:00:00", "2026-03-30 00:30:00"]),
        (LONDON, "*/30 * * * *", "2026-03-29 00:15", ["00:30:00", "01:00:00", "01:30:00"]),
        (LONDON, "30 1 * * *", "2026-10-25 00:00", ["00:30:00", "2026-10-26 01:30:00"]),
        (LONDON, "0 2 * * *", "2026-10-25 00:00", ["02:00:00", "2026-10-26 02:00:00"]),
        (LONDON, "*/30 * * * *", "2026-10-25 00:15", ["00:30:00", "01:00:00", "01:30:00", "02:00:00"]),
        # Lord Howe moves by half an hour: 4 October 2026, 02:00 becomes 02:30; 5 April, 02:00 becomes 01:30.
        (LORD_HOWE, "15 2 * * *", "2026-10-03 12:00", ["15:30:00", "2026-10-04 15:15:00"]),
        (LORD_HOWE, "45 2 * * *", "2026-10-03 12:00", ["15:45:00", "2026-10-04 15:45:00"]),
        (LORD_HOWE, "*/15 * * * *", "2026-10-03 15:00", ["15:15:00", "15:30:00", "15:45:00"]),
        (LORD_HOWE, "0 * * * *", "2026-10-03 14:00", ["14:30:00", "16:00:00", "17:00:00"]),
        (LORD_HOWE, "45 1 * * *", "2026-04-04 12:00", ["14:45:00", "2026-04-05 15:15:00"]),
        (LORD_HOWE, "*/15 * * * *", "2026-04-04 14:30", ["14:45:00", "15:00:00", "15:15:00", "15:30:00"]),
        (LORD_HOWE, "45 * * * *", "2026-04-04 14:00", ["14:45:00", "15:15:00", "16:15:00"]),
        # Sao Paulo changed at midnight, until 2019: 4 November 2018 had no 00:30, 17 February 2018 had 23:30 twice.
        (SAO_PAULO, "30 0 * * *", "2018-11-03 12:00", ["2018-11-04 03:00:00", "2018-11-05 02:30:00"]),
        (SAO_PAULO, "0 0 4 11 *", "2018-11-03 12:00", ["2018-11-04 03:00:00", "2019-11-04 03:00:00"]),
        (SAO_PAULO, "* 0 * * *", "2018-11-04 02:30", ["2018-11-05 02:00:00", "2018-11-05 02:01:00"]),
        (SAO_PAULO, "0 1 4 11 *", "2018-11-03 12:00", ["2018-11-04 03:00:00", "2019-11-04 04:00:00"]),
        (SAO_PAULO, "30 23 * * *", "2018-02-17 12:00", ["2018-02-18 01:30:00", "2018-02-19 02:30:00"]),
        (SAO_PAULO, "30 * * * *", "2018-02-18 01:00", ["01:30:00", "02:30:00", "03:30:00"]),
        (SAO_PAULO, "* 23 17 2 *", "2018-02-18 01:59", ["02:00:00", "02:01:00"]),
        # Samoa had no 30 December 2011.
        ("Pacific/Apia", "0 12 30 12 *", "2011-12-01 00:00", ["2011-12-30 10:00:00", "2012-12-29 22:00:00"]),
    ],
)
def test_days_on_which_clocks_are_changed(zone, expression, after, expected):
    """Times of day fire exactly once, a skipped one right after the gap; a wildcard keeps its real spacing."""
    assert ticks(Cron(expression, zone), f"{after}:00", len(expected)) == expected


def test_every_second_is_one_second_through_a_change():
    """A wildcard of seconds has one tick a second while the clock is set back, and while it is put forward."""
    for start in ("2026-03-08 06:59:58", "2026-11-01 05:59:58"):
        found = Cron("* * * * * *", NEW_YORK).preview(at(start), 5)
        assert found == [at(start) + n * SECOND for n in range(1, 6)]


# -- against another reading of the same rules


@st.composite
def fields(draw, low, high):
    """One cron field of a kind that both readings know."""
    first = draw(st.integers(low, high))
    last = draw(st.integers(first, high))
    step = draw(st.integers(1, 20))
    kinds = ["*", f"*/{step}", str(first), f"{first},{last}"]
    if last > first:
        kinds += [f"{first}-{last}", f"{first}-{last}/{step}"]
    return draw(st.sampled_from(kinds))


@st.composite
def expressions(draw):
    """Five fields, mostly about the small hours, when clocks are changed."""
    return " ".join(
        [
            draw(fields(0, 59)),
            draw(st.one_of(fields(0, 4), fields(0, 23))),
            draw(st.one_of(st.just("*"), fields(1, 31))),
            draw(st.one_of(st.just("*"), fields(1, 12))),
            draw(st.one_of(st.just("*"), fields(0, 7))),
        ]
    )


def made(expression: str, zone: str) -> Cron | None:
    """The schedule, or None if it never fires."""
    try:
        return Cron(expression, zone)
    except ConfigurationError as error:
        if "never fires" not in str(error):
            raise
        return None


INSTANTS = st.integers(0, 30 * 365 * 86400).map(lambda seconds: at("1995-01-01 00:00") + seconds * SECOND)
#: The hours around changes of the zones that cronsim gets right: a whole hour, and not at midnight.
CHANGES = st.builds(
    lambda change, minutes: at(change) - timedelta(minutes=minutes),
    st.sampled_from(["2026-03-08 07:00", "2026-11-01 06:00", "2026-03-29 01:00", "2026-10-25 01:00"]),
    st.integers(0, 600),
)


@given(expressions(), st.sampled_from(["UTC", NEW_YORK, LONDON, "Asia/Kathmandu"]), st.one_of(INSTANTS, CHANGES))
def test_five_fields_fire_as_in_debian_s_cron(expression, zone, after):
    """For any expression and instant the next ticks are those of cronsim, which follows Debian."""
    if (schedule := made(expression, zone)) is not None:
        oracle = CronSim(expression, after.astimezone(ZoneInfo(zone)))
        assert schedule.preview(after, 6) == [next(oracle).astimezone(UTC) for _ in range(6)]


@given(fields(0, 59), expressions(), INSTANTS)
def test_six_fields_fire_as_cronsim_s_where_no_clock_is_changed(second, expression, after):
    """Seconds come first and combine with the five others."""
    if (schedule := made(f"{second} {expression}", "UTC")) is not None:
        oracle = CronSim(f"{second} {expression}", after)
        assert schedule.preview(after, 6) == [next(oracle) for _ in range(6)]


ZONES = st.sampled_from(
    [NEW_YORK, LONDON, LORD_HOWE, SAO_PAULO, "Africa/Casablanca", "Asia/Tehran", "Pacific/Apia", "Europe/Dublin"]
)


@given(fields(0, 59), st.sampled_from(["*", "*/2", "*/3"]), ZONES, INSTANTS)
def test_a_wildcard_fires_whenever_the_wall_clock_says_so(minute, hour, zone, after):
    """Its ticks are exactly the minutes at which the wall clock matches, looked up one by one."""
    after = after.replace(second=0)
    schedule = Cron(f"{minute} {hour} * * *", zone)
    minutes = {at.minute for at in Cron(f"{minute} * * * *").preview(NOON - SECOND, 60)}
    step = int(hour[2:] or 1)
    day = (after + timedelta(minutes=n) for n in range(1, 1441))
    walls = ((instant, instant.astimezone(ZoneInfo(zone))) for instant in day)
    expected = [instant for instant, wall in walls if wall.minute in minutes and wall.hour % step == 0]
    assert schedule.preview(after, len(expected)) == expected


@given(st.one_of(expressions(), st.tuples(fields(0, 59), expressions()).map(" ".join)), ZONES, st.integers(0, 365))
def test_no_tick_is_repeated_or_out_of_order_in_twenty_years(expression, zone, day):
    """From any instant of twenty years on, ticks strictly increase, and none is jumped over."""
    schedule = made(expression, zone)
    if schedule is None:
        return
    start = at("2006-01-01 00:00") + timedelta(days=day)
    for year in range(20):
        after = start + timedelta(days=365 * year)
        found = [after, *schedule.preview(after, 12)]
        assert all(earlier < later for earlier, later in pairwise(found))
        # Asked just before a tick, the answer is that tick.
        assert all(schedule.next_after(tick - timedelta(microseconds=1)) == tick for tick in found[1:])


@given(st.integers(0, 59), st.integers(0, 23), ZONES, st.integers(0, 19))
def test_a_time_of_day_fires_exactly_once_a_day(minute, hour, zone, year):
    """In each of twenty years a daily time has one tick for each day of the calendar, whatever the clocks do."""
    schedule = Cron(f"{minute} {hour} * * *", zone)
    first = datetime(2002 + year, 1, 1, tzinfo=ZoneInfo(zone))
    found = schedule.preview(first.astimezone(UTC) - SECOND, 365)
    days = [tick.astimezone(ZoneInfo(zone)).date() for tick in found]
    # Where a whole day was left out, its tick is the first instant of the day after.
    assert len(found) == len(set(found)) == 365
    assert len(set(days)) >= 364
