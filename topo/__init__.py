"""smtnet on Mininet: topologies, hosts, links, the programmable wire, the plug-in for mn.

Whoever imports it may run under the system's Python, as Debian's ``mn`` does: see :mod:`topo.interpreter`.
"""

from topo.interpreter import borrow_packages as _borrow_packages
from topo.interpreter import import_distutils as _import_distutils

_borrow_packages()
_import_distutils()
