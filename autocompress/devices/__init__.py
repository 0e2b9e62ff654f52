"""Devices: where a model is timed and weighed; a kind of device is one file of this folder, found by the registry."""

from autocompress.devices._base import DEVICES, Device, open_device
from autocompress.devices.detection import detect_profile, profile_names, resolve_profile

__all__ = [
    "DEVICES",
    "Device",
    "detect_profile",
    "open_device",
    "profile_names",
    "resolve_profile",
]
