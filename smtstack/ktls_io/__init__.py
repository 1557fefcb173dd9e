"""Kernel TLS of our own on a kernel TCP socket: handshakes by OpenSSL, processes that seal, files, the NIC."""
