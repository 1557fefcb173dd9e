"""smtnet on Mininet: topologies, hosts, links, the programmable wire, the plug-in for mn.

Whoever imports it may run under the system's Python, as Debian's ``mn`` does: see :mod:`topo.interpreter`.
"""

from topo.interpreter import borrow_packages as _borrow_packages

_borrow_packages()
