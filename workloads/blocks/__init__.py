"""A remote block store with the shape of NVMe over Fabrics: capsules as RPCs over any transport."""
