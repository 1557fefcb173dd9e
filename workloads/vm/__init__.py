"""A throw-away guest under QEMU with a distribution's stock kernel: tests that need one run there (docs/vm.md)."""
