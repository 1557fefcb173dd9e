"""QEMU's command line, and which ways to boot are tried in turn. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Accelerator = Literal["kvm", "tcg"]

PROGRAM = "qemu-system-x86_64"
#: Seconds of processors until the guest's first process must have said something: not seconds on the clock, of
#: which a busy machine needs many. By KVM it takes two, without about fifteen.
BOOT_S: dict[Accelerator, float] = {"kvm": 25.0, "tcg": 120.0}
#: For the kernel's command line. cx16: seen once, after 35 minutes, by QEMU 7.2: a double fault right behind a
#: cmpxchg16b (by which Linux allocates memory), with flags that no processor has.
KERNEL_OPTIONS: dict[Accelerator, str] = {"kvm": "", "tcg": " clearcpuid=cx16"}
#: How often a boot without KVM is tried: of about 45, one dies early, by a race in QEMU 7.2.
TCG_BOOTS = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """What the guest has."""

    folder: Path
    """The image's: root.img, vmlinuz, initrd.img."""
    checkout: int
    """The descriptor of a tar file, which the guest sees as its second disk. It needs no name: then nobody who is
    killed leaves it behind."""
    share: Path
    """A folder that the guest writes to."""
    cpus: int = 2
    memory_mb: int = 2048

    def command(self, accelerator: Accelerator) -> list[str]:
        """The command line. No network device, no display, and nothing that is written stays: but in ``share``."""
        accel = "kvm" if accelerator == "kvm" else "tcg,thread=multi"
        return [
            PROGRAM, "-machine", "q35,smm=off", "-accel", accel, "-cpu", "max", "-smp", str(self.cpus),
            "-m", str(self.memory_mb), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-monitor", "none", "-serial", "stdio",
            "-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd.img"),
            # A panic ends QEMU (-no-reboot). no_timer_check: on a busy machine timers are late, not broken.
            "-append", "console=ttyS0 root=/dev/vda rw rootfstype=ext4 init=/sbin/smtnet-init panic=-1 "
                       f"mitigations=off no_timer_check psi=1 quiet{KERNEL_OPTIONS[accelerator]}",
            *_disk(self.folder / "root.img", "d0", "snapshot=on,cache=unsafe"),
            *_disk(Path(f"/proc/self/fd/{self.checkout}"), "d1", "readonly=on"),
            "-fsdev", f"local,id=f0,path={_quoted(self.share)},security_model=none",
            "-device", "virtio-9p-pci,fsdev=f0,mount_tag=share", "-device", "virtio-rng-pci"]


def _disk(path: Path, name: str, options: str) -> Sequence[str]:
    return ("-drive", f"file={_quoted(path)},if=none,id={name},format=raw,{options}",
            "-device", f"virtio-blk-pci,drive={name}")


def _quoted(path: Path) -> str:
    # QEMU's options are separated by commas, and one that is meant is doubled.
    return str(path).replace(",", ",,")


def attempts(kvm: bool) -> list[Accelerator]:
    """The boots to try until one succeeds. ``kvm``: whether /dev/kvm can be opened, and did not fail before."""
    return [*(["kvm"] if kvm else []), *["tcg"] * TCG_BOOTS]  # type: ignore[list-item]
