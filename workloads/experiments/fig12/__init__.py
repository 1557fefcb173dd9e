"""The first RPC of a session, set-up included: figure 12 of the paper."""
