"""Where the ceilings of a device are kept for later runs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from opbench.device.ceilings import Ceilings, read_ceilings
from opbench.device.identity import Identity, device_slug
from opbench.errors import ResultsError, StorageError
from opbench.files import write_whole
from opbench.host.user_cache import user_cache_folder

__all__ = ["ceilings_path", "device_cache_path", "keep", "known_ceilings"]


def ceilings_path(environment: Mapping[str, object]) -> Path:
    """Where the ceilings of a device are kept."""
    return device_cache_path("ceilings", environment)


def device_cache_path(kind: str, environment: Mapping[str, object]) -> Path:
    """Where something about a device is kept: in the user's cache folder; one file per identity."""
    identity = json.dumps(dict(Identity.of(environment).parts), sort_keys=True)
    slug = device_slug(str(environment["device_name"]), str(environment.get("device", "")).partition(":")[0])
    return user_cache_folder() / "opbench" / f"{kind}-{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.json"


def known_ceilings(environment: Mapping[str, object]) -> Ceilings | None:
    """The kept ceilings of a device with these versions; None where there are none, or they cannot be read."""
    try:
        return read_ceilings(ceilings_path(environment))
    except ResultsError:
        return None


def keep(ceilings: Ceilings, environment: Mapping[str, object]) -> Path | None:
    """Keep ceilings for later runs; None where the cache cannot be written, which is no reason to fail."""
    path = ceilings_path(environment)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(ceilings.to_json(), indent=1) + "\n")
    except (OSError, StorageError):
        return None
    return path
