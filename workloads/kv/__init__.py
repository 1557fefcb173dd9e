"""The key-value store: a server that speaks Redis's protocol (RESP 2 and 3) over every transport.

Front ends (server.py) parse commands (resp.py) and hand them to a store: our own (commands.py on store.py, kept
in a file by aof.py), or a real Redis server (redis_store.py). Over tcp, tls and ktls the bytes are those of any
Redis client; over smt, homa, linux and upstream one RPC carries whole commands, and its response their replies.
"""
