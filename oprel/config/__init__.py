"""Settings, read in one place: flags, then `OPREL_*`, then the `OLLAMA_*` that means the same, then a project's
`oprel.toml`, then the user's `config.toml`, then defaults.

A setting `a_b` is `--a-b` as a flag, `OPREL_A_B` in the environment, `a_b = …` in a file; the few that have another
name as well are in `table`, which says where each comes from and how it is read.
"""

from oprel.config.address import DEFAULT_PORT, Address, parse_address
from oprel.config.durations import parse_duration
from oprel.config.loading import load_settings
from oprel.config.places import config_dir
from oprel.config.remotes import Remote
from oprel.config.settings import Settings

__all__ = [
    "DEFAULT_PORT",
    "Address",
    "Remote",
    "Settings",
    "config_dir",
    "load_settings",
    "parse_address",
    "parse_duration",
]
