"""How much longer than on a machine of its own things may take: SMTNET_PATIENCE, 20 in a guest without KVM."""

from __future__ import annotations

import os

#: Tests that wait for something wait so many times as long before they give up.
FACTOR = float(os.environ.get("SMTNET_PATIENCE", "1"))
