"""How often and how many at a time: rate limiters' and semaphores' decisions. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from canobatch.brokered import Brokered, Permit
from canobatch.errors import ConfigurationError, RateLimitedError, ResourceError

#: Tokens that arithmetic may lose.
_CRUMB = 1e-9


class Limiter(Brokered):
    """Base of the rate limiters: what a call costs, and how long it has to wait for that.

    Waiting calls are not queued: each waits until there is enough for it, and looks again. No more is ever let
    through than the limit allows. What was taken is spent, whether the call succeeds or not.
    """

    operations: ClassVar[frozenset[str]] = frozenset({"take", "wait_for", "report"})

    # -- by hand

    def acquire(self, cost: float | Mapping[str, float] = 1, timeout: float | timedelta | None = None) -> None:
        """Wait until ``cost`` can be paid, and pay it.

        Args:
            cost: What the call costs; 0 is free. Tiers: see `MultiRateLimiter`.
            timeout: Seconds to wait at most; None: no limit. What would take longer is refused at once.

        Raises:
            RateLimitedError: It would take longer than ``timeout``; nothing was paid.
            ConfigurationError: It costs more than there can ever be.
        """
        refusal = self.take_within(_plain(cost), timeout)
        if refusal is not None:
            wait, tier = refusal
            what = f"tier {tier!r} of {self!r}" if tier else repr(self)
            raise RateLimitedError(f"{what} allows the call in {wait:.3g} s", retry_after=wait, tier=tier)

    def try_acquire(self, cost: float | Mapping[str, float] = 1) -> bool:
        """Pay ``cost`` if that is possible now; return whether it was.

        Raises:
            ConfigurationError: It costs more than there can ever be.
        """
        return self.ask("take", _plain(cost)) is None

    def time_until(self, cost: float | Mapping[str, float] = 1) -> float:
        """Return the seconds until ``cost`` can be paid; pays nothing.

        Raises:
            ConfigurationError: It costs more than there can ever be.
        """
        wait: float = self.ask("wait_for", _plain(cost))[0]
        return wait

    # -- decisions

    def take(self, cost: Any, now: float) -> tuple[float, str] | None:
        """Pay ``cost`` and return None, or pay nothing and return (seconds to wait, the tier that says so or "")."""
        wait, tier = self.wait_for(cost, now)
        if wait > 0:
            return wait, tier
        self.pay(cost, now)
        return None

    def wait_for(self, cost: Any, now: float) -> tuple[float, str]:
        """Return (seconds until ``cost`` can be paid, the tier that says so or "")."""
        raise NotImplementedError

    def pay(self, cost: Any, now: float) -> None:
        """Pay ``cost``, which can be paid now."""
        raise NotImplementedError

    def report(self, now: float) -> Any:
        """Return what is left."""
        raise NotImplementedError


class _Meter(Limiter):
    """A limiter with one budget."""

    #: The most that can ever be paid at once.
    capacity: float

    def wait_for(self, cost: Any, now: float) -> tuple[float, str]:
        """Return (seconds until ``cost`` can be paid, "")."""
        if not isinstance(cost, int | float) or isinstance(cost, bool) or not cost >= 0:
            raise ConfigurationError(f"the cost of a call must be a number of at least 0, got {cost!r}")
        if cost > self.capacity:
            raise ConfigurationError(
                f"a call that costs {cost:g} can never be made: {self!r} has at most {self.capacity:g}; "
                "lower the cost or raise the limit"
            )
        return (0.0 if cost == 0 else self.seconds_until(cost, now)), ""

    def seconds_until(self, cost: float, now: float) -> float:
        """Return the seconds until a possible ``cost`` can be paid."""
        raise NotImplementedError

    @property
    def available(self) -> float:
        """How much can be paid now."""
        left: float = self.ask("report")[0]
        return left


class RateLimiter(_Meter):
    """A token bucket: ``tokens`` calls per ``per`` seconds, and after a pause up to ``tokens + burst`` at once.

    It starts full and is refilled all the time. Attached by ``TaskConfig(rate_limiter=)`` it is asked, in the
    parent, before each attempt is sent: waiting occupies no worker and uses no attempt.

    Args:
        tokens: How many calls of cost 1 per period.
        per: The period in seconds; `timedelta` is fine.
        burst: How many more may be saved up.

    Raises:
        ConfigurationError: An argument is impossible.

    Example:
        >>> limiter = RateLimiter(2, per=60.0)
        >>> [limiter.try_acquire() for _ in range(3)]
        [True, True, False]
    """

    def __init__(self, tokens: float, per: float | timedelta = 1.0, burst: float = 0) -> None:
        super().__init__()
        per = per.total_seconds() if isinstance(per, timedelta) else per
        problems = [
            f"{name} must be a number above 0, got {value!r}"
            for name, value in (("tokens", tokens), ("per", per))
            if not _is_number(value) or not value > 0
        ]
        if not _is_number(burst) or burst < 0:
            problems.append(f"burst must be a number of at least 0, got {burst!r}")
        if problems:
            raise ConfigurationError("RateLimiter: " + "; ".join(problems), problems)
        self.tokens, self.per, self.burst = tokens, per, burst
        self.capacity = float(tokens + burst)
        self._left = self.capacity
        self._seen: float | None = None

    def _refill(self, now: float) -> None:
        if self._seen is not None and now > self._seen:
            self._left = min(self.capacity, self._left + (now - self._seen) * self.tokens / self.per)
        self._seen = now if self._seen is None else max(now, self._seen)

    def seconds_until(self, cost: float, now: float) -> float:
        """Return the seconds until a possible ``cost`` can be paid."""
        self._refill(now)
        missing = cost - self._left
        return 0.0 if missing <= _CRUMB else missing * self.per / self.tokens

    def pay(self, cost: Any, now: float) -> None:
        """Take the tokens."""
        self._refill(now)
        self._left -= cost

    def report(self, now: float) -> tuple[float]:
        """Return (tokens left,)."""
        self._refill(now)
        return (self._left,)

    def facts(self) -> dict[str, Any]:
        """Return its settings."""
        return {name: getattr(self, name) for name in ("tokens", "per", "burst", "capacity")}

    def __repr__(self) -> str:
        return f"RateLimiter({self.tokens:g}, per={self.per:g}" + (f", burst={self.burst:g})" if self.burst else ")")


class WindowedRateLimiter(_Meter):
    """A fixed window: at most ``limit`` within it, all of them at its start if need be.

    A window begins with the first call after the last has ended. So up to twice the limit may fall into any
    stretch of its length; use `RateLimiter` where that matters.

    Args:
        limit: How much may be paid in a window; a call costs 1.
        window: Its length in seconds; `timedelta` is fine.

    Raises:
        ConfigurationError: An argument is impossible.

    Example:
        >>> quota = WindowedRateLimiter(1000, window=24 * 3600.0)
        >>> quota.acquire(10)
        >>> quota.used, quota.remaining
        (10, 990)
    """

    def __init__(self, limit: float, window: float | timedelta) -> None:
        super().__init__()
        window = window.total_seconds() if isinstance(window, timedelta) else window
        problems = [
            f"{name} must be a number above 0, got {value!r}"
            for name, value in (("limit", limit), ("window", window))
            if not _is_number(value) or not value > 0
        ]
        if problems:
            raise ConfigurationError("WindowedRateLimiter: " + "; ".join(problems), problems)
        self.limit, self.window = limit, window
        self.capacity = limit
        self._used: float = 0
        self._ends = -math.inf

    @property
    def used(self) -> float:
        """How much of the window that is open has been paid."""
        used: float = self.ask("report")[1]
        return used

    @property
    def remaining(self) -> float:
        """How much of it is left."""
        return self.available

    @property
    def resets_in(self) -> float:
        """Seconds until the window ends; 0.0 when none is open."""
        seconds: float = self.ask("report")[2]
        return seconds

    def seconds_until(self, cost: float, now: float) -> float:
        """Return the seconds until a possible ``cost`` can be paid."""
        if now >= self._ends or self._used + cost <= self.limit:
            return 0.0
        return self._ends - now

    def pay(self, cost: Any, now: float) -> None:
        """Count it, in a new window if the last has ended."""
        if cost and now >= self._ends:
            self._ends, self._used = now + self.window, 0
        self._used += cost

    def report(self, now: float) -> tuple[float, float, float]:
        """Return (what is left, what is used, seconds until the end of the window)."""
        if now >= self._ends:
            return self.limit, 0, 0.0
        return self.limit - self._used, self._used, self._ends - now

    def facts(self) -> dict[str, Any]:
        """Return its settings."""
        return {name: getattr(self, name) for name in ("limit", "window", "capacity")}

    def __repr__(self) -> str:
        return f"WindowedRateLimiter({self.limit:g}, {self.window:g})"


class MultiRateLimiter(Limiter):
    """Several limits at once: a call is made when every tier can pay for it, and then all of them do.

    A limiter may be a tier of several of these, and be used by itself too; in two tiers of one it pays for both.
    ``cost`` is a number for every tier, or a mapping of tier to cost: then the tiers not named are left alone.

    Args:
        tiers: Name of the tier to its `RateLimiter` or `WindowedRateLimiter`.

    Raises:
        ConfigurationError: There is no tier, one is not such a limiter, or lives in another process.

    Example:
        >>> limits = MultiRateLimiter({"calls": RateLimiter(5), "words": WindowedRateLimiter(10_000, 3600.0)})
        >>> limits.acquire({"calls": 1, "words": 800})
    """

    def __init__(self, tiers: Mapping[str, RateLimiter | WindowedRateLimiter]) -> None:
        super().__init__()
        if not isinstance(tiers, Mapping) or not tiers:
            raise ConfigurationError(f"MultiRateLimiter: give a mapping of tiers, got {tiers!r}")
        problems = [
            f"tier {name!r} must be a RateLimiter or a WindowedRateLimiter, got {tier!r}"
            for name, tier in tiers.items()
            if not isinstance(tier, _Meter)
        ]
        problems += [
            f"tier {name!r} lives in another process; combine the tiers where they were made"
            for name, tier in tiers.items()
            if isinstance(tier, _Meter) and not tier.is_here
        ]
        if problems:
            raise ConfigurationError("MultiRateLimiter: " + "; ".join(problems), problems)
        self._tiers: dict[str, _Meter] = dict(tiers)
        self.tiers = tuple(tiers)

    @property
    def available(self) -> dict[str, float]:
        """How much each tier can pay now."""
        return dict(self.ask("report"))

    def wait_for(self, cost: Any, now: float) -> tuple[float, str]:
        """Return (seconds until every tier can pay, the tier that takes longest)."""
        waits = [(0.0, "")]
        owed: dict[_Meter, float] = {}
        for name, part in self._costs(cost):
            meter = self._tiers[name]
            meter.wait_for(part, now)  # refuses what is no cost
            owed[meter] = owed.get(meter, 0) + part
            waits.append((meter.wait_for(owed[meter], now)[0], name))
        return max(waits, key=lambda each: each[0])

    def pay(self, cost: Any, now: float) -> None:
        """Let every tier pay."""
        for name, part in self._costs(cost):
            self._tiers[name].pay(part, now)

    def _costs(self, cost: Any) -> list[tuple[str, Any]]:
        if not isinstance(cost, Mapping):
            return [(name, cost) for name in self._tiers]
        unknown = [name for name in cost if name not in self._tiers]
        if unknown:
            known = ", ".join(self._tiers)
            raise ConfigurationError(f"MultiRateLimiter has no tier {unknown[0]!r}; tiers: {known}")
        return list(cost.items())

    def report(self, now: float) -> dict[str, float]:
        """Return what is left in each tier."""
        return {name: tier.report(now)[0] for name, tier in self._tiers.items()}

    def facts(self) -> dict[str, Any]:
        """Return the names of its tiers."""
        return {"tiers": self.tiers}

    def __repr__(self) -> str:
        return f"MultiRateLimiter({', '.join(self.tiers)})"


class Semaphore(Brokered):
    """At most ``n`` at a time, over all processes: a pool of connections, licences, a bulkhead for several splits.

    By hand: ``with semaphore.acquire(): ...``, in any process. As ``JoinConfig(bulkhead=semaphore)`` it is asked,
    in the parent, before a branch is sent. A place returns when its permit is given back or dropped, and when
    the process that holds it dies. Who came first gets the next place: threads and tasks that wait, and splits,
    each of which stands in line once for all of its branches. Who would not wait passes none of them.

    Args:
        n: How many.

    Raises:
        ConfigurationError: ``n`` is not a whole number of at least 1.

    Example:
        >>> licences = Semaphore(2)
        >>> with licences.acquire(timeout=10.0):
        ...     licences.free
        1
    """

    operations: ClassVar[frozenset[str]] = frozenset({"admit", "give_back", "report"})

    def __init__(self, n: int) -> None:
        super().__init__()
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ConfigurationError(f"Semaphore: n must be a whole number of at least 1, got {n!r}")
        self.n = n
        self._tickets = itertools.count(1)
        self._held: set[int] = set()
        #: The turns of those that wait, the first to come first.
        self._line: dict[int, None] = {}

    # -- by hand

    def acquire(self, timeout: float | timedelta | None = None) -> Permit:
        """Wait for a place and return the permit for it.

        Args:
            timeout: Seconds to wait at most; None: no limit.

        Raises:
            ResourceError: There was none within ``timeout`` seconds.
        """
        ticket = self.admit_within(timeout)
        if ticket is None:
            raise ResourceError(f"{self!r}: none of its places came free within {timeout} s")
        return Permit(self, ticket)

    def try_acquire(self) -> Permit | None:
        """Return a permit if a place is free now and nobody waits for it, else None."""
        return self.try_in_turn(0)

    def try_in_turn(self, turn: int) -> Permit | None:
        """Return a permit if a place is free now for who has this turn (0: none), else None."""
        ticket = self.ask("admit", turn)
        return None if ticket is None else Permit(self, ticket)

    @property
    def free(self) -> int:
        """How many places are free now."""
        free: int = self.ask("report")
        return free

    # -- decisions

    def stand_in_line(self, turn: int, _now: float) -> int:
        """Return this turn if it still waits, else a new one behind all others; `admit` or `leave_line` ends it."""
        if turn in self._line:
            return turn
        turn = next(self._tickets)
        self._line[turn] = None
        return turn

    def leave_line(self, turn: int, _now: float) -> None:
        """Take back a turn; one that has ended is fine."""
        self._line.pop(turn, None)

    def admit(self, turn: int, _now: float) -> int | None:
        """Give a place away and return its ticket; None when there is none for who has this turn (0: none)."""
        free = self.n - len(self._held)
        if len(self._line) >= free and turn not in itertools.islice(self._line, free):
            return None
        self._line.pop(turn, None)
        ticket = next(self._tickets)
        self._held.add(ticket)
        return ticket

    def give_back(self, ticket: int, _outcome: bool | None, _now: float) -> None:
        """Take a place back; one that was taken back before is fine."""
        self._held.discard(ticket)

    def report(self, _now: float) -> int:
        """Return how many places are free."""
        return self.n - len(self._held)

    def facts(self) -> dict[str, Any]:
        """Return its size."""
        return {"n": self.n}

    def __repr__(self) -> str:
        return f"Semaphore({self.n})"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(cost: Any) -> Any:
    """Return a cost as it can be sent."""
    return dict(cost) if isinstance(cost, Mapping) else cost
