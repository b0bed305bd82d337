"""Everything that is encrypted, and every name derived from a secret. Nothing else encrypts.

`key`: keys and what is derived from them; `keyfile`: the file that holds them; `ring`: the keys in use, messages under
them; `stream`: the sealed form of blobs; `witness`: whether bytes are those that were seen before.
"""

from . import keyfile
from .key import Keys
from .reading import Readable, read_full
from .ring import MESSAGE_MAGIC, FindWrap, KeyRing, SealUnknown
from .stream import HEADER_BYTES, STREAM_MAGIC, Opening, Sealing, mark_of
from .witness import CHUNK_BYTES, Witness

__all__ = [
    "CHUNK_BYTES",
    "HEADER_BYTES",
    "MESSAGE_MAGIC",
    "STREAM_MAGIC",
    "FindWrap",
    "KeyRing",
    "Keys",
    "Opening",
    "Readable",
    "SealUnknown",
    "Sealing",
    "Witness",
    "keyfile",
    "mark_of",
    "read_full",
]
