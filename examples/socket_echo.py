"""An SMT request and its response between two sockets of this machine, as root::

    sudo .venv/bin/smtnet ca certs --host here=127.0.0.1
    sudo .venv/bin/python examples/socket_echo.py certs/here
"""

import sys
from pathlib import Path
from threading import Thread

from smtstack.socket import SmtContext, SmtSocket

context = SmtContext("lo", certs=Path(sys.argv[1]))


def serve(server: SmtSocket) -> None:
    request = server.receive(timeout=10)  # nothing moves in a socket unless somebody waits in it
    if request is not None:
        request.reply(request.data.upper())
    server.linger()  # until the client has acknowledged the response


with SmtSocket(("127.0.0.1", 2000), context) as server, SmtSocket(("127.0.0.1", 40000), context) as client:
    Thread(target=serve, args=[server], daemon=True).start()
    print(client.request(("127.0.0.1", 2000), b"hello", timeout=10).decode())
    client.linger(0.2)
