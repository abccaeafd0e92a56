"""Registries of the OCI distribution protocol, as Ollama speaks it: models pulled and pushed, logins kept."""

from oprel.sources.registry.logins import Login, Logins
from oprel.sources.registry.pull import RegistryPull
from oprel.sources.registry.push import RegistryPush
from oprel.sources.registry.session import Reach, RegistrySession, check_login

__all__ = ["Login", "Logins", "Reach", "RegistryPull", "RegistryPush", "RegistrySession", "check_login"]
