"""Who may use which engine, and when: leases, queue, residency, memory budget, keep-alive."""

from oprel.scheduler.clock import Clock, SystemClock
from oprel.scheduler.lease import Lease, LoadedModel
from oprel.scheduler.scheduler import Scheduler

__all__ = ["Clock", "Lease", "LoadedModel", "Scheduler", "SystemClock"]
