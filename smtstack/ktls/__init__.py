"""Kernel TLS of our own, without any I/O: TLS records on a byte stream as FreeBSD's ktls(4) and Linux's
``net/tls`` make them, by software, by a co-processor or by the NIC (docs/architecture.md)."""
