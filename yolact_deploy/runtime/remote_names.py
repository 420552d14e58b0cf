"""How a server names the network behind a model, and what it says about it; for servers and for the remote backend."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from yolact_deploy.artifact import Metadata

#: parameter of a model that takes pictures: the name of its network's model
NETWORK_KEY = "yolact_deploy_network"
#: of the name of the network's model
NETWORK_SUFFIX = "_network"

_URL = re.compile(r"(http|https|grpc|grpcs):/{1,2}([^/@]+)/([A-Za-z0-9_.-]+)/?")


class RemoteUrl(NamedTuple):
    """Where a model on a server is."""

    protocol: str  #: http, https, grpc or grpcs
    host: str  #: with the port
    model: str


def remote_url(text: str) -> RemoteUrl | None:
    """The parts of ``http://HOST:PORT/NAME``; None for a path.

    >>> remote_url("http://localhost:8000/yolact")
    RemoteUrl(protocol='http', host='localhost:8000', model='yolact')
    >>> remote_url("http.onnx")
    """
    match = _URL.fullmatch(text)  # one slash is what a path leaves of two
    return None if match is None else RemoteUrl(*match.groups())


def network_metadata(metadata: Metadata, tail: str) -> Metadata:
    """The metadata of a network as it is served.

    Args:
        tail: name of the tail: "host" has cut the graph's own tail off
    """
    return dataclasses.replace(metadata, tail="heads" if tail == "host" else metadata.tail)
