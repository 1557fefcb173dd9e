"""A network of three hosts whose links lose frames, and an echo on it, as root::

    sudo .venv/bin/python examples/network.py

It runs in namespaces of its own, which the kernel removes when it ends, whatever happens.
"""

import sys

from topo import sandbox
from topo.cli_verbs import echo
from topo.link_options import LinkOptions
from topo.network import open_network

if not sandbox.inside():
    sys.exit(sandbox.run_command([sys.executable, *sys.argv]))

with open_network("star,3", LinkOptions(rate_mbps=100, loss=1)) as net:  # 1 per cent
    result = echo(net, "h1", "h3", size=3000, count=100)
print(result)
sys.exit(0 if result.ok else 1)
