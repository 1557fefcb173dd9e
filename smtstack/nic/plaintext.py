"""How the kernel marks packets whose TCP payload is plaintext that a NIC is to encrypt.

A socket whose stream holds plaintext TLS records carries this mark (SO_MARK), and so do all packets of it, also
those that the kernel sends again after the program has ended: what ``skb->decrypted`` is for a driver of Linux's.
A NIC gets marked packets in queues of their own; no other interface lets them out (``io/plaintext_guard.py``).
"""

from __future__ import annotations

from typing import Final

#: "SM"; the lower half is free for policy routing.
PLAINTEXT_MARK: Final = 0x534D_0000
PLAINTEXT_MASK: Final = 0xFFFF_0000
#: The interface group (IFLA_GROUP) of NICs that encrypt what is marked.
NIC_GROUP: Final = 0x534D
