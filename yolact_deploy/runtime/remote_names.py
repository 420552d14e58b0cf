"""How a server names the network behind a model, and what it says about it; for servers and for the remote backend."""

from __future__ import annotations

import dataclasses

from yolact_deploy.artifact import Metadata

#: parameter of a model that takes pictures: the name of its network's model
NETWORK_KEY = "yolact_deploy_network"
#: of the name of the network's model
NETWORK_SUFFIX = "_network"


def network_metadata(metadata: Metadata, tail: str) -> Metadata:
    """The metadata of a network as it is served.

    Args:
        tail: name of the tail: "host" has cut the graph's own tail off
    """
    return dataclasses.replace(metadata, tail="heads" if tail == "host" else metadata.tail)
