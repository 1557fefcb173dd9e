"""Where the time of a handshake goes: table 2 of the paper."""
