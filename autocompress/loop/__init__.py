"""The search loop: what to start next, what it found, its budget and its end."""

from autocompress.loop.calls import Calls
from autocompress.loop.search import SearchLoop
from autocompress.loop.telling import UNFORESEEN
from autocompress.loop.times import Clock, TrialTimes
from autocompress.loop.waiting import TICK_S

__all__ = ["TICK_S", "UNFORESEEN", "Calls", "Clock", "SearchLoop", "TrialTimes"]
