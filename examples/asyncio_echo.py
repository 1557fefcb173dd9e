"""Twenty requests at once, and their server, on one event loop, as root::

    sudo .venv/bin/smtnet ca certs --host here=127.0.0.1
    sudo .venv/bin/python examples/asyncio_echo.py certs/here
"""

import asyncio
import sys
from pathlib import Path

from smtstack.aio import AioSocket
from smtstack.socket import SmtContext

SERVER = "127.0.0.1", 2000


async def serve(socket: AioSocket) -> None:
    async for request in socket.requests():
        request.reply(request.data.upper())


async def main() -> None:
    context = SmtContext("lo", certs=Path(sys.argv[1]))
    server, client = AioSocket(SERVER, context), AioSocket(("127.0.0.1", 40000), context)
    serving = asyncio.create_task(serve(server))
    replies = await asyncio.gather(*(client.request(SERVER, b"hello %d" % n, timeout=10) for n in range(20)))
    print(*(reply.decode() for reply in replies), sep="\n")
    serving.cancel()
    client.close()
    server.close()


asyncio.run(main())
