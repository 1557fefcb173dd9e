"""How sessions begin and end: TLS 1.3 handshakes, 0-RTT tickets, resumption. Sans-IO; docs/sessions.md."""
