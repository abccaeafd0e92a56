"""Registries of the OCI distribution protocol, as Ollama speaks it: models pulled and pushed, logins kept."""

from oprel.sources.registry.logins import Login, Logins
from oprel.sources.registry.machine_key import MachineKey
from oprel.sources.registry.pull import RegistryPull
from oprel.sources.registry.push import RegistryPush
from oprel.sources.registry.reach import Reach
from oprel.sources.registry.session import RegistrySession, check_login

__all__ = ["Login", "Logins", "MachineKey", "Reach", "RegistryPull", "RegistryPush", "RegistrySession", "check_login"]
