"""Streams of bytes over kernel TCP, sealed in the ways that TLS offload is compared with: what ``run files`` and
``reproduce tls-...`` have in common."""
