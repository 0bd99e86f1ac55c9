"""How the engine and TorchServe's calls wait for each other.

TorchServe does not report that the last client has gone, it only stops calling. So the engine steps on a lease that
every call renews, and pauses when no call comes.
"""

import time
from collections.abc import Callable

# How many steps a call of TorchServe waits for an answer, and the bounds in seconds; a new request is admitted at the
# next call. A round trip takes 3 ms from a step on two cores. It is shorter for a client that wants to see progress.
ROUND_TRIP_STEPS = 5
ROUND_TRIP_S = (0.02, 0.2)
LEASE_S = 0.05  # how long the engine steps on after a call has ended
STUCK_S = 1200  # a step that takes longer will never end
LEARNING = 0.2  # how much the last step counts for the usual one


class Pacing:
    """Decides when to step, and how long a call waits.

    `begin_call`, `end_call`, `opened` and `is_stuck` are for the thread of TorchServe's calls, the others for the
    engine's.

    Attributes:
        clock: seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._lease_ends = 0.0
        self._last_return = 0.0
        self._step_seconds = 0.0  # the usual ones
        self._step_began: float | None = None
        self._answered = False  # a request ended since the last call

    def begin_call(self) -> float:
        """Renews the lease. Returns how many seconds the call waits if the engine has nothing to say."""
        low, high = ROUND_TRIP_S
        # a client that has just got its answer may send its next request at once
        seconds = low if self._answered else max(low, min(high, ROUND_TRIP_STEPS * self._step_seconds))
        self._answered = False
        self._lease_ends = self.clock() + seconds + LEASE_S
        return seconds

    def end_call(self) -> None:
        self._last_return = self.clock()
        self._lease_ends = self._last_return + LEASE_S

    def opened(self) -> None:
        """The next request has come."""
        self._answered = False

    def answered(self) -> None:
        """A request has ended."""
        self._answered = True

    @property
    def is_stuck(self) -> bool:
        began = self._step_began
        return began is not None and self.clock() > began + STUCK_S

    @property
    def may_step(self) -> bool:
        """Whether somebody still waits for the next step."""
        return self.clock() < self._lease_ends

    @property
    def progress_is_due(self) -> bool:
        """Whether the last call is long enough ago for another one that only tells of progress."""
        return self.clock() > self._last_return + ROUND_TRIP_S[0]

    def begin_step(self) -> None:
        self._step_began = self.clock()

    def end_step(self) -> None:
        self._step_began = None

    def learn(self, seconds: float) -> None:
        """Takes into account how long a step took."""
        self._step_seconds += LEARNING * (seconds - self._step_seconds)
