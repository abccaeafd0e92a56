"""Engines as child processes: started so that they die with us, watched, and ended with nothing left behind."""

from oprel.drivers.children.child import Child
from oprel.drivers.children.environment import built_environment
from oprel.drivers.children.logs import LogRing
from oprel.drivers.children.places import Place, RunDirectory, choose_run_dir
from oprel.drivers.children.shim_command import shim_command
from oprel.drivers.children.sweep import sweep

__all__ = ["Child", "LogRing", "Place", "RunDirectory", "built_environment", "choose_run_dir", "shim_command", "sweep"]
