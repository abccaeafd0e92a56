"""How a registry is reached: by which scheme and host, and as whom."""

from __future__ import annotations

from msgspec import Struct

from oprel.net.addresses import origin_of, parse_url
from oprel.net.outside import OutsideClient
from oprel.sources.registry.logins import Login
from oprel.sources.registry.machine_key import MachineKey
from oprel.store import ModelName
from oprel.version import __version__

__all__ = ["Reach", "api_base"]

_API_HOSTS = {"docker.io": "registry-1.docker.io"}


class Reach(Struct, frozen=True):
    """`is_insecure`: plain http, as its user asked for. `trusted` are the hosts that configuration names: they may be
    inside the network. `login` is the user's there; `key` is used where that, or being nobody, isn't enough."""

    is_insecure: bool = False
    trusted: tuple[str, ...] = ()
    login: Login | None = None
    key: MachineKey | None = None

    def client(self, name: ModelName) -> OutsideClient:
        base = api_base(name, is_insecure=self.is_insecure)
        is_named = self.is_insecure or name.host.lower() in {host.lower() for host in self.trusted}
        return OutsideClient(trusted=(origin_of(base),) if is_named else (), user_agent=f"oprel/{__version__}")


def api_base(name: ModelName, *, is_insecure: bool) -> str:
    """Raises SourceError for a host that isn't one."""
    host = _API_HOSTS.get(name.host.lower(), name.host)
    base = f"{'http' if is_insecure else 'https'}://{host}"
    parse_url(base)
    return base
