"""Client for Strand, a key-value database with search inside it. Standard library only.

- ``Client`` and ``AsyncClient``: a method per command, retries that apply once, pipelines.
- ``Pool``: clients shared by threads.
- ``TCPClient`` (reply dicts) and ``KVClient`` (bare values) for people who come from earlier systems.
"""

from . import errors
from .aio import AsyncClient, AsyncPipeline
from .client import Client, Pipeline
from .compat import KVClient, TCPClient
from .engine import VERSION as __version__
from .engine import Options
from .errors import *  # noqa: F401,F403
from .pool import Pool
from .session import Request, Session

__all__ = ["AsyncClient", "AsyncPipeline", "Client", "KVClient", "Options", "Pipeline", "Pool", "Request", "Session",
           "TCPClient", "__version__", *errors.__all__]
