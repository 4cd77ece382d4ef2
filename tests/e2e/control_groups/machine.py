"""A small virtual machine: Debian's kernel, and this machine's files, which it cannot change."""

from __future__ import annotations

import gzip
import os
import shlex
import shutil
import subprocess
from pathlib import Path

EMULATOR = "qemu-system-x86_64"
BUSYBOX = Path("/bin/busybox")
KERNELS = "vmlinuz-*-amd64"
# To have this machine's files there, and changes to them in memory.
MODULES = ("9p", "9pnet_virtio", "overlay", "virtio_pci")
DONE = "machine: ended with "

# A machine without hardware support for machines takes about ten times as long for everything.
BOOT_SECONDS = 240.0

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in /modules/*.ko; do $b insmod $module; done
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose root /lower
$b mount -t tmpfs tmpfs /changes
$b mkdir /changes/upper /changes/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/changes/upper,workdir=/changes/work files /root
$b mount -t proc proc /root/proc; $b mount -t sysfs sys /root/sys
$b mount -t devtmpfs dev /root/dev; $b mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
$b ip link set lo up
$b chroot /root /bin/sh -c {command}
$b echo "{done}$?"
$b poweroff -f
"""


class MachineError(Exception):
    """The machine did not come to its end."""


def missing() -> str | None:
    """Say what is not installed that a machine needs; None if nothing is."""
    if shutil.which(EMULATOR) is None:
        return f"{EMULATOR} is not installed"
    if not BUSYBOX.exists():
        return "busybox is not installed"
    return None if kernel() else "no kernel of Debian's is installed"


def kernel() -> Path | None:
    """The newest kernel that is installed here."""
    found = sorted(Path("/boot").glob(KERNELS))
    return found[-1] if found else None


def run(command: str, directory: Path) -> tuple[int, str]:
    """Run a shell command in a new machine, as root, and return its exit status and the output.

    ``directory`` is for what the machine is made of. Raises MachineError.
    """
    image = kernel()
    assert image is not None
    root = make_root(directory / "root", image.name.removeprefix("vmlinuz-"), command)
    archive = directory / "initrd.gz"
    files = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        cwd=root,
        input=files.encode(),
        capture_output=True,
        check=True,
    )
    archive.write_bytes(gzip.compress(packed.stdout, compresslevel=1))
    ended = subprocess.run(
        [
            *(EMULATOR, "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "2G", "-smp", "2"),
            *("-nic", "none", "-nographic", "-no-reboot", "-kernel", str(image)),
            *("-initrd", str(archive), "-append", "console=ttyS0 loglevel=1 panic=-1"),
            "-virtfs",
            "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOOT_SECONDS,
        check=False,
    )
    output = ended.stdout.decode(errors="replace")
    status = next((line for line in output.splitlines() if DONE in line), None)
    if status is None:
        raise MachineError(output[-2000:] + ended.stderr.decode(errors="replace"))
    return int(status.partition(DONE)[2]), output


def make_root(root: Path, release: str, command: str) -> Path:
    """Make the first file system, from which this machine's own is mounted."""
    for name in ("bin", "modules", "proc", "sys", "dev", "lower", "changes", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin")
    for number, module in enumerate(modules(release)):
        shutil.copy(module, root / "modules" / f"{number:02}.ko")
    init = root / "init"
    init.write_text(INIT.format(command=shlex.quote(command), done=DONE))
    init.chmod(0o755)
    return root


def modules(release: str) -> list[str]:
    """The files of the kernel modules, each after those that it needs."""
    found: dict[str, None] = {}
    for name in MODULES:
        told = subprocess.run(
            ["modprobe", "-S", release, "--show-depends", name],
            capture_output=True,
            check=True,
            text=True,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
        )
        lines = [line.split() for line in told.stdout.splitlines()]
        found |= {words[1]: None for words in lines if words[0] == "insmod"}
    return list(found)
