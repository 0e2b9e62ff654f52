"""Profiles of machines elsewhere, as the commands of `autocompress device` take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autocompress.errors import InvalidInput

if TYPE_CHECKING:
    from autocompress.profile import HardwareProfile


def resolve_with_addresses(hardware: str) -> HardwareProfile:
    """A profile by name or path.

    Raises:
        InvalidInput: If it is not there, or is measured without an agent.
    """
    from autocompress.devices import resolve_profile

    profile = resolve_profile(hardware)
    if not profile.addresses:
        raise InvalidInput(
            f"hardware profile {profile.name!r} has no addresses: its device is {profile.device!r}; give a YAML file "
            "with `device: remote` and `addresses`"
        )
    return profile
