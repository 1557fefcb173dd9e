"""Ways to the wire with a host in them, to compare rings with: each call an exit, or calls in a queue; and UDP by
each of them, by the kernel, and by rings."""
