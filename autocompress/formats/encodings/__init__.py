"""How weights are stored in a file: fewer bytes for the same values; an encoding is one file of this folder.

ONNX Runtime computes the values once, when it loads the file, so an inference takes the time of the plain file.
"""

from autocompress.formats.encodings._base import ENCODINGS, Encoded, Encoding, Writer, cheapest
from autocompress.formats.encodings._selection import encode_weights

__all__ = ["ENCODINGS", "Encoded", "Encoding", "Writer", "cheapest", "encode_weights"]
