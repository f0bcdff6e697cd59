"""A real-time ad exchange: one request, five splits, 300 ms.

    validate -> context (all) -> bids (what came in 200 ms) -> scoring (all) -> auction -> tracking (all) -> response

Two of the five bidders are always too late and are killed when their time is up. A split that fails or
takes too long leads to the error tracking, as does an auction without a winner: these are transitions of
the same run. Bids and scores are appended to lists in the store; no append is ever lost to another.

    python examples/ad_exchange.py                     # DSP-Global wins at 3.52
    python examples/ad_exchange.py --floor 3.60        # nobody bids enough
    python examples/ad_exchange.py --placement ""      # not a valid request
    python examples/ad_exchange.py --outage tracking   # a service hangs and is killed
    python examples/ad_exchange.py --slow 5            # in slow motion, also for a machine that is busy
    python examples/ad_exchange.py --json --repeat 10
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from canobatch import JoinConfig, JoinStrategy, Run, Task, TaskContext, WorkerPool, Workflow


class S(Enum):
    """The states of a request."""

    START = "Start"
    GATHER_CONTEXT = "GatherContext"
    REQUEST_BIDS = "RequestBids"
    SCORE_BIDS = "ScoreBids"
    RUN_AUCTION = "RunAuction"
    TRACK_RESULTS = "TrackResults"
    BUILD_RESPONSE = "BuildResponse"
    ERROR_TRACKING = "ErrorTracking"
    NO_FILL = "NoFill"
    INVALID_RESPONSE = "InvalidResponse"
    COMPLETE = "Complete"
    REJECTED = "Rejected"


@dataclass(frozen=True)
class Request:
    """The parameters of a run."""

    id: str = "req_abc123"
    placement: str = "placement_728x90_top"
    floor: float = 1.50
    outage: str | None = None
    slow: float = 1.0


# ---------------------------------------------------------------- the services, simulated


def wait(ctx: TaskContext, milliseconds: int) -> None:
    """Be a partner at the other end of a network."""
    time.sleep(milliseconds / 1000 * ctx.params.slow)


@dataclass(frozen=True)
class Service(Task):
    """A service that answers after ``delay`` milliseconds, or never when its ``phase`` has an outage."""

    phase: str
    name: str
    delay: int

    def run(self, ctx: TaskContext) -> str:
        wait(ctx, 3_600_000 if ctx.params.outage == self.phase else self.delay)
        ctx.store.append(f"{self.phase}_log", self.name)
        return self.name


@dataclass(frozen=True)
class Bidder(Task):
    """A partner that bids after ``delay`` milliseconds; the slower, the higher."""

    partner: str
    delay: int

    def run(self, ctx: TaskContext) -> None:
        # A partner slower than 180 ms is behind another 100 ms of network.
        wait(ctx, self.delay + (100 if self.delay > 180 else 0))
        bid = {"partner": self.partner, "price": 2.50 + self.delay / 100, "delay": self.delay}
        ctx.store.append("bids", bid)


def score(ctx: TaskContext, bid: dict[str, Any]) -> None:
    """Weigh a bid by how fast it came."""
    wait(ctx, 10)
    delay = bid["delay"]
    factor = 1.1 if delay <= 50 else 1.0 if delay <= 100 else 0.95 if delay <= 150 else 0.9
    ctx.store.append("scored_bids", bid | {"score": bid["price"] * factor})


# ---------------------------------------------------------------- the decisions

NOTHING = {"winner": None, "winning_price": 0.0, "creative": None, "total_bids": 0}


def validate(ctx: TaskContext) -> S:
    """Turn away what is not a request."""
    is_valid = ctx.params.placement and ctx.params.floor >= 0.01
    return S.GATHER_CONTEXT if is_valid else S.INVALID_RESPONSE


def run_auction(ctx: TaskContext) -> S:
    """Pick the best score at or above the floor."""
    valid = [bid for bid in ctx.store.get("scored_bids") if bid["score"] >= ctx.params.floor]
    if not valid:
        ctx.store.put("auction_result", {"winner": None, "winning_price": 0.0, "total_bids": 0})
        return S.ERROR_TRACKING
    best = max(valid, key=lambda bid: bid["score"])
    price = round(best["score"], 2)
    ctx.store.put("auction_result", {"winner": best["partner"], "winning_price": price, "total_bids": len(valid)})
    return S.TRACK_RESULTS


def build_response(ctx: TaskContext) -> S:
    """Answer with the winner's advertisement."""
    result = ctx.store.get("auction_result")
    ctx.store.put("response", result | {"creative": f"creative_{result['winner']}"})
    return S.COMPLETE


def no_fill(ctx: TaskContext) -> S:
    """Answer with nothing: there was no winner, or something went wrong before there could be one."""
    ctx.store.put("response", NOTHING)
    return S.COMPLETE if ctx.store.contains("auction_result") else S.REJECTED


def invalid_response(ctx: TaskContext) -> S:
    """Answer a request that is not one."""
    ctx.store.put("response", NOTHING)
    return S.COMPLETE


# ---------------------------------------------------------------- the workflow


def exchange(slow: float) -> Workflow:
    """Return the workflow; all its time limits are ``slow`` times as long as they should be."""
    # Whatever goes wrong in a split goes to the error tracking.
    guarded: Callable[..., JoinConfig] = partial(JoinConfig, on_failure=S.ERROR_TRACKING, on_timeout=S.ERROR_TRACKING)
    return (
        Workflow("ad exchange", params=Request)
        .register(S.START, validate)
        .register_split(
            S.GATHER_CONTEXT,
            [Service("context", "user", 50), Service("context", "geo", 30), Service("context", "device", 20)],
            guarded(JoinStrategy.all(), S.REQUEST_BIDS, timeout=0.100 * slow),
        )
        .register_split(
            S.REQUEST_BIDS,
            [
                Bidder("DSP-FastBidder", 45),
                Bidder("DSP-Premium", 80),
                Bidder("DSP-Global", 120),
                Bidder("DSP-Slow", 190),
                Bidder("DSP-TooSlow", 250),
            ],
            guarded(JoinStrategy.partial_timeout(), S.SCORE_BIDS, timeout=0.200 * slow, store_partial_results=True),
        )
        .register_map(S.SCORE_BIDS, score, "bids", guarded(JoinStrategy.all(), S.RUN_AUCTION, timeout=0.050 * slow))
        .register(S.RUN_AUCTION, run_auction)
        .register_split(
            S.TRACK_RESULTS,
            [
                Service("tracking", "analytics", 30),
                Service("tracking", "metrics", 25),
                Service("tracking", "notify", 40),
                Service("tracking", "store", 35),
            ],
            guarded(JoinStrategy.all(), S.BUILD_RESPONSE, timeout=0.100 * slow),
        )
        .register(S.BUILD_RESPONSE, build_response)
        .register_split(
            S.ERROR_TRACKING,
            [Service("errors", "log", 20), Service("errors", "metrics", 25)],
            JoinConfig(JoinStrategy.all(), S.NO_FILL, timeout=0.050 * slow, on_failure=S.NO_FILL, on_timeout=S.NO_FILL),
        )
        .register(S.NO_FILL, no_fill)
        .register(S.INVALID_RESPONSE, invalid_response)
        .add_exit_states([S.COMPLETE, S.REJECTED])
    )


def answer(request: Request, workflow: Workflow, pool: WorkerPool) -> tuple[Run, dict[str, Any]]:
    """Run one request through the exchange; return its run and what to tell the client."""
    begin = time.perf_counter()
    run = workflow.start(S.START, pool=pool, params=request)
    final = run.wait()
    elapsed = (time.perf_counter() - begin) * 1000
    return run, run.store.get("response") | {"final_state": final.value, "elapsed_ms": round(elapsed, 1)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="A real-time ad exchange.")
    parser.add_argument("--floor", type=float, default=Request.floor, help="lowest price, default: %(default)s")
    parser.add_argument("--placement", default=Request.placement, help="where the advertisement goes")
    parser.add_argument("--outage", choices=["context", "tracking"], help="let the services of a phase hang")
    parser.add_argument("--slow", type=float, default=Request.slow, metavar="TIMES", help="all of it in slow motion")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="number of requests, one after another")
    parser.add_argument("--json", action="store_true", help="print a list of results")
    args = parser.parse_args()
    request = Request(placement=args.placement, floor=args.floor, outage=args.outage, slow=args.slow)
    workflow = exchange(args.slow)
    with WorkerPool(8, spares=2) as pool:
        pool.warm_up()
        answers = [answer(request, workflow, pool) for _ in range(args.repeat)]
    if args.json:
        print(json.dumps([result for _, result in answers]))
        return
    for run, result in answers:
        print(" -> ".join(state.value for state in run.report().path))
        if run.store.contains("split_results_summary"):
            print(f"bids: {run.store.get('split_results_summary')}")
        winner = f"{result['winner']} at {result['winning_price']:.2f}" if result["winner"] else "nobody"
        print(f"{result['final_state']}: {winner} of {result['total_bids']} bids, {result['elapsed_ms']} ms")


if __name__ == "__main__":
    main()
