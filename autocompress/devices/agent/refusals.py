"""Requests that the agent refuses."""

from __future__ import annotations

from typing import ClassVar

from autocompress.errors import AutocompressError


class Refusal(AutocompressError):
    """A request that is refused with the status code of its class."""

    status: ClassVar[int]


class Unauthorized(Refusal):
    """The token is missing or wrong."""

    status = 401


class NotFound(Refusal):
    """No such file, job or path."""

    status = 404


class TooSlow(Refusal):
    """The body came too slowly."""

    status = 408


class TooLarge(Refusal):
    """The body is larger than the limit."""

    status = 413


class BadContent(Refusal):
    """The body is not what it was said to be."""

    status = 422


class Busy(Refusal):
    """As much is under way as the agent takes."""

    status = 429


class Closing(Refusal):
    """The agent is about to end."""

    status = 503
