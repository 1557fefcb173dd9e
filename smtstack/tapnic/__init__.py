"""A NIC that owns its interface: the kernel's packets go through it (hosting ``tap``)."""
