"""Compression methods; a method is one file of this folder, found by the registry."""

from autocompress.methods._base import METHODS, CompressionMethod, Context

__all__ = ["METHODS", "CompressionMethod", "Context"]
