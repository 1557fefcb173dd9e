"""What a guest's image is made of: pure descriptions, and the name that a description gives the image.

An image holds a release's own packages and kernel, and a virtual environment with what smtnet needs from PyPI. The
checkout is not in it: each run brings its own along, so that an edit makes no image anew.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from smtstack.errors import ConfigError, Unsupported

#: Where the guest has its Python with everything, and where it unpacks the checkout.
VENV, CHECKOUT = "/opt/smtnet", "/root/smtnet"
INIT = "/sbin/smtnet-init"
#: Kernel modules that are tried for at boot. One that a kernel has built in, or lacks, is no error: tests say.
MODULES = ("9pnet_virtio", "9p", "openvswitch", "sch_netem", "sch_htb", "sch_tbf", "sch_red", "cls_u32", "cls_bpf",
           "act_mirred", "tls", "veth", "bridge", "tun", "nf_tables", "xsk_diag")
_PACKAGES = ("mount", "util-linux", "kmod", "udev", "initramfs-tools", "zstd", "busybox", "procps",
             "iproute2", "iputils-ping", "net-tools", "ethtool", "openvswitch-switch", "mininet", "python3",
             "python3-venv", "openssl", "ca-certificates", "knot", "redis-server", "curl")
#: Bytes of the image's file system; the file has holes where nothing is.
IMAGE_BYTES = 3 << 30


@dataclass(frozen=True, slots=True)
class Release:
    """A distribution's release that a guest may have."""

    name: str
    distribution: str
    """``ID`` of os-release."""
    suite: str
    python: str
    """Version of its Python."""
    kernel: str = "linux-image-amd64"
    """The package of its stock kernel."""
    components: tuple[str, ...] = ("main",)

    @property
    def packages(self) -> tuple[str, ...]:
        """All that is asked for; what these depend on comes along."""
        return (*_PACKAGES, self.kernel)


RELEASES = {one.name: one for one in (
    Release("debian-12", "debian", "bookworm", "3.11"),
    Release("debian-13", "debian", "trixie", "3.13"),
)}
#: The first release is that of a run that names none.
DEFAULT = next(iter(RELEASES))


@dataclass(frozen=True, slots=True)
class Source:
    """An archive as the host's apt has it."""

    uri: str
    suite: str
    component: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image, described. Two that are equal make the same image, up to what the archives hold by then."""

    release: Release
    requirements: tuple[str, ...]
    """What smtnet needs from PyPI, as setup.py says."""
    constraints: str
    """pip's constraints, as constraints/build.txt has them."""

    @property
    def name(self) -> str:
        """What the image is called in the cache: the release, and a hash of everything that is in it."""
        hooks = setup_hook(""), customize_hook("", "", "", "", self.requirements)
        text = json.dumps([asdict(self), self.release.packages, init_script(), hooks, INITRAMFS, IMAGE_BYTES])
        return f"{self.release.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_sources(text: str) -> list[Source]:
    """What ``apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)'`` prints."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3:
            found.append(Source(*words))
    return list(dict.fromkeys(found))


def archives(release: Release, host: Iterable[Source], distribution: str, codename: str,
             mirror: str | None = None) -> list[str]:
    """Lines of a sources.list for ``release``, from the archives that the host's apt is configured with.

    ``distribution`` and ``codename`` are the host's own (os-release). ``mirror`` is an archive to take instead.
    Raises :class:`Unsupported` where the host knows no archive of that distribution."""
    components = " ".join(release.components)
    if mirror is not None:
        if not mirror.partition("://")[2]:
            raise ConfigError(f"--mirror {mirror}: an address with http:// or https:// before it")
        return [f"deb {mirror} {release.suite} {components}"]
    own = [source for source in host if source.suite.partition("-")[0] == codename and source.component == "main"]
    lines = [f"deb {source.uri} {release.suite}{source.suite.removeprefix(codename)} {components}"
             for source in own if source.suite.partition("-")[2] in ("", "updates", "security")]
    if distribution != release.distribution or not lines:
        raise Unsupported(f"{release.name} cannot be built: apt of this host is configured with no archive of "
                          f"{release.distribution}; name one by --mirror URL")
    return lines


#: What the guest's initial RAM disk is to hold: no more than mounting the disk needs, since without KVM a guest
#: takes seconds to unpack the usual one.
INITRAMFS = {"modules": "virtio_pci\nvirtio_blk\next4\n",
             "conf.d/smtnet.conf": "MODULES=list\nBUSYBOX=y\nCOMPRESS=zstd\nRESUME=none\n"}

#: What is on PyPI as source only, and is Python only, so that a wheel made here is good for every Python.
SOURCE_ONLY = ("mininet", "ryu")


def source_wheels(pip: Sequence[str], recipe: Recipe, house: str) -> list[str]:
    """The command that builds wheels of what PyPI has as sources only."""
    wanted = [one for one in recipe.requirements if one.startswith(SOURCE_ONLY)]
    return [*pip, "wheel", "--quiet", "--no-deps", "--use-pep517", "--wheel-dir", house, *wanted]


def bootstrap(recipe: Recipe, lines: Sequence[str], root: str, hooks: str) -> list[str]:
    """The command that makes the guest's root tree in folder ``root``. ``hooks`` has the scripts that it runs."""
    return ["mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", "--quiet",
            '--aptopt=Apt::Install-Recommends "false"', f"--setup-hook={hooks}/setup \"$1\"",
            f"--customize-hook={hooks}/customize \"$1\"", f"--include={','.join(recipe.release.packages)}",
            recipe.release.suite, root, *lines]


def file_system(root: str, image: str) -> list[str]:
    """The command that makes the image of a root tree; nothing is mounted for it."""
    return ["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
            "-O", "^metadata_csum", "-L", "root", "-d", root, image, f"{IMAGE_BYTES >> 20}M"]


def setup_hook(hooks: str) -> str:
    """A shell script: in the empty root tree, before any package."""
    return f"""#!/bin/sh
set -e
mkdir -p "$1/etc/initramfs-tools/conf.d"
cp {hooks}/initramfs/modules "$1/etc/initramfs-tools/modules"
cp {hooks}/initramfs/conf.d/smtnet.conf "$1/etc/initramfs-tools/conf.d/"
"""


def customize_hook(hooks: str, house: str, certificates: str, index: str, requirements: Sequence[str]) -> str:
    """A shell script: in the tree with its packages, the guest's own Python installs what is needed from PyPI, as
    that depends on it. ``index``: a package index instead of PyPI, or empty."""
    quoted = " ".join(shlex.quote(one) for one in requirements)
    options = f"--index-url {shlex.quote(index)} " if index else ""
    return f"""#!/bin/sh
set -e
install -m 755 {hooks}/init "$1{INIT}"
mkdir "$1/root/build"
cp {hooks}/constraints.txt {house}/*.whl "$1/root/build"
cp -L {certificates} "$1/root/build/certificates.crt"
# mmdebstrap has copied the host's resolv.conf, and takes it away at the end.
chroot "$1" python3 -m venv {VENV}
# The host's paths mean nothing in there, and each of these would be believed before PIP_CERT.
chroot "$1" env -u PIP_CONFIG_FILE -u REQUESTS_CA_BUNDLE -u CURL_CA_BUNDLE -u SSL_CERT_FILE -u SSL_CERT_DIR \\
	PIP_CERT=/root/build/certificates.crt PIP_CONSTRAINT=/root/build/constraints.txt \
	PIP_FIND_LINKS=/root/build PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_EXTRA_INDEX_URL= \
	{VENV}/bin/pip install --quiet --no-cache-dir --only-binary :all: {options}{quoted}
echo {CHECKOUT} >"$(ls -d "$1"{VENV}/lib/python3*/site-packages)/smtnet-checkout.pth"
printf '%s\n' '#!{VENV}/bin/python' 'import sys' 'from workloads.commands.main import main' 'sys.exit(main())' \
	>"$1{VENV}/bin/smtnet"
chmod 755 "$1{VENV}/bin/smtnet"
rm -rf "$1/root/build" "$1/var/lib/apt/lists" "$1/usr/share/doc" "$1/usr/share/man"
"""


def init_script() -> str:
    """Process 1 of the guest: mounts, unpacks the checkout, runs the command, tells how it ended, powers off."""
    return f"""#!/bin/bash
export PATH={VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 TERM=dumb
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mountpoint -q /run || mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
hostname guest
ip link set lo up
for module in {' '.join(MODULES)}; do modprobe -q $module; done
mkdir -p /mnt/share
mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 share /mnt/share || echo "SMTNET-VM no-share"
mkdir -p {CHECKOUT}
tar -x -f /dev/vdb -C {CHECKOUT} || echo "SMTNET-VM no-checkout"
echo "SMTNET-VM up $(cut -d' ' -f1 /proc/uptime) $(uname -r)"
cd {CHECKOUT}
bash /mnt/share/command.sh >/mnt/share/output.txt 2>&1 </dev/null
code=$?
dmesg >/mnt/share/dmesg.txt
echo $code >/mnt/share/code
sync
echo "SMTNET-VM done $code $(cut -d' ' -f1 /proc/uptime)"
echo o >/proc/sysrq-trigger
sleep 60
"""
