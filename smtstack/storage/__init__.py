"""Storage that a host may hold but need not be trusted with: block devices, and a protected layer upon them.

``device.py`` is the interface everything here has, with a device in memory and one in a file. docs/storage.md says
what is promised and how bytes lie on the disk.
"""
