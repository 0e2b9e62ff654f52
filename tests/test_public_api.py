"""What `import autocompress` offers; a change here is a change for every user."""

from __future__ import annotations

import autocompress


def test_the_public_names_are_these() -> None:
    assert sorted(autocompress.__all__) == [
        "AutocompressError",
        "CheckItem",
        "CheckReport",
        "Choice",
        "CompressionMethod",
        "Float",
        "HardwareProfile",
        "Int",
        "METHODS",
        "Metric",
        "Plan",
        "Recovery",
        "Run",
        "SearchSpace",
        "Step",
        "Student",
        "Task",
        "apply",
        "check",
        "measure",
        "profile_device",
        "resume",
        "search",
    ]


def test_every_public_name_is_there_and_documented() -> None:
    for name in autocompress.__all__:
        found = getattr(autocompress, name)
        assert found.__doc__ or not callable(found), name
