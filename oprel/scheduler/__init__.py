"""Who may use which engine, and when: leases, queue, residency, memory budget, keep-alive."""

from oprel.scheduler.clock import Clock, SystemClock
from oprel.scheduler.fanout import Choices, chat_choices, completion_choices
from oprel.scheduler.lease import Lease, LoadedModel
from oprel.scheduler.scheduler import Scheduler

__all__ = [
    "Choices",
    "Clock",
    "Lease",
    "LoadedModel",
    "Scheduler",
    "SystemClock",
    "chat_choices",
    "completion_choices",
]
