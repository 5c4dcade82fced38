"""More attempts by system calls and special files, made after the last review. See escape_calls.py for their form."""

import os

from escape_calls import FILTER, LIMITS, NETWORK, PIDS, READ_ONLY, RIGHTS, Call

PROC = "/proc is read-only"
DEVICES = "only harmless devices in /dev"
USER = "an unprivileged user in its own user namespace"

LATER_CALLS = (
    Call(
        "pressure triggers, which fill the kernel's memory",
        PROC,
        """
for name in ("memory", "cpu", "io"):
    trigger = os.open("/proc/pressure/" + name, os.O_RDWR | os.O_NONBLOCK)
    return os.write(trigger, b"some 150000 2000000\\0")
""",
        open=os.path.exists("/proc/pressure/memory"),
    ),
    Call(
        "the memory of process 1 and of others through /proc/PID/mem",
        PROC,
        """
for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
    try:
        return os.open("/proc/%d/mem" % pid, os.O_RDWR)
    except OSError:
        continue
""",
        open=True,
    ),
    Call(
        "a memory killer that spares the sandbox (oom_score_adj, oom_adj)",
        PROC,
        """
for pid in ("self", "1"):
    for name, value in (("oom_score_adj", b"-1000"), ("oom_score_adj", b"0"), ("oom_adj", b"-17"), ("oom_adj", b"0")):
        try:
            return os.write(os.open("/proc/%s/%s" % (pid, name), os.O_WRONLY), value)
        except OSError:
            continue
""",
    ),
    Call(
        "another user map, time and security label by /proc/self",
        PROC,
        """
for name, value in (
    ("uid_map", b"0 0 1"), ("gid_map", b"0 0 1"), ("projid_map", b"0 0 1"), ("setgroups", b"allow"),
    ("timens_offsets", b"monotonic 864000 0"), ("attr/current", b"unconfined"), ("attr/exec", b"unconfined"),
    ("attr/apparmor/current", b"changeprofile unconfined"), ("attr/sockcreate", b"unconfined"), ("loginuid", b"0"),
):
    try:
        return os.write(os.open("/proc/self/" + name, os.O_WRONLY), value)
    except OSError:
        continue
""",
    ),
    Call(
        "system calls with the bit of the x32 form",
        FILTER,
        """
for number in (39, 101, 165, 272, 321, 425, 512, 520, 521, 522, 523, 524, 539, 540, 545, 546, 547):
    if not arm and call(0x40000000 | number, 0, 0, 0, 0, 0, 0) != -1:
        return number
""",
    ),
    Call(
        "mounts of the machine by their numbers (statmount, listmount, listns)",
        FILTER,
        """
request = struct.pack("IIQQQ", 32, 0, 0xFFFFFFFFFFFFFFFF, 0, 0)
buffer = ctypes.create_string_buffer(65536)
return any(call(number, number, request, buffer, 8000, 0) > 0 for number in (457, 458, 470))
""",
    ),
    Call(
        "attributes of system files by their newest calls (file_setattr, setxattrat)",
        FILTER,
        """
one = ctypes.create_string_buffer(struct.pack("QIIII", 0x10, 0, 0, 0, 0), 24)
value = ctypes.create_string_buffer(struct.pack("QII", 0, 0, 0), 16)
return any(
    call(number, number, -100, b"/usr/bin/env", *rest) == 0
    for number, rest in ((469, (one, 24, 0)), (463, (0, b"user.x", value, 16)))
)
""",
    ),
    Call(
        "flags of system files and file systems by ioctl (immutable, freeze, trim, clone)",
        READ_ONLY,
        """
file = os.open("/usr/bin/env", os.O_RDONLY)
folder = os.open("/usr", os.O_RDONLY)
for request, value in (
    (0x40086602, struct.pack("l", 0x10)), (0xC0045877, bytes(4)), (0xC0045878, bytes(4)),
    (0xC0185879, struct.pack("QQQ", 0, 1 << 40, 0)), (0x401C5820, struct.pack("IIIII8x", 0x8, 0, 0, 0, 0)),
    (0x40046609, struct.pack("i", file)), (0x40106614, bytes(16)), (0x6611, b""), (0x50009407, bytes(4096)),
):
    for place in (file, folder):
        try:
            fcntl.ioctl(place, request, value)
            return hex(request)
        except OSError:
            continue
""",
    ),
    Call(
        "alarms that wake the machine, and the clock of others",
        RIGHTS,
        """
for clock in (8, 9):
    if call(283, 85, clock, 0) >= 0:
        return clock
    one = ctypes.c_int()
    if call(222, 107, clock, 0, ctypes.byref(one)) == 0:
        return -clock
return call(159, 171, ctypes.create_string_buffer(struct.pack("I", 0x8000) + bytes(204))) >= 0 and False
""",
    ),
    Call(
        "deadline scheduling, utilization clamps and real-time disk access",
        RIGHTS,
        """
def attributes(policy, flags=0, runtime=0, low=0):
    data = struct.pack("IIQiIQQQII", 56, policy, flags, 0, 0, runtime, runtime, runtime, low, 1024)
    return ctypes.create_string_buffer(data, 56)
if call(314, 274, 0, attributes(6, runtime=10_000_000), 0) == 0:
    return "deadline"
if call(314, 274, 0, attributes(1, low=0), 0) == 0:
    return "fifo"
if call(251, 30, 1, 0, 1 << 13) == 0:
    return "disk"
for nice in (-1, -20):
    try:
        return os.nice(nice) < 0
    except OSError:
        continue
""",
    ),
    Call(
        "the scheduling core, the memory map and the dump state of a process outside (prctl)",
        PIDS,
        """
for option, words in (
    (62, (1, {victim}, 1, 0)), (62, (2, {victim}, 1, 0)), (62, (3, {victim}, 0, 0)),
    (35, (13, 0, 0, 0)), (57, (1, 0, 0, 0)), (33, (1, 1, 0, 0)),
):
    if call(157, 167, option, *words) == 0 and option not in (33,):
        return option
""",
    ),
    Call(
        "advice on, release of and pages of another process (process_madvise, process_mrelease, move_pages)",
        FILTER,
        """
pid = ctypes.c_int(call(434, 434, 1, 0))
vector = struct.pack("QQ", 0, 4096)
return any(
    call(*words) >= 0
    for words in (
        (440, 440, pid, vector, 1, 21, 0), (448, 448, pid, 0), (279, 239, 1, 0, 0, 0, 0, 0),
        (256, 238, 1, 64, struct.pack("Q", 1), struct.pack("Q", 1)), (237, 235, 0, 0, 0, 0, 0, 0),
    )
)
""",
    ),
    Call(
        "memory without names, also secret and with huge pages (memfd)",
        FILTER,
        """
return any(call(number, on_arm, *words) >= 0 for number, on_arm, words in (
    (319, 279, (b"x", 0)), (319, 279, (b"x", 4)), (319, 279, (b"x", 0x10)), (447, 447, (0,)),
))
""",
    ),
    Call(
        "landlock, lsm and other calls that only newer kernels have",
        FILTER,
        """
numbers = (*range(444, 447), *range(459, 462), *range(471, 600))
return [number for number in numbers if call(number, number, 0, 0, 0) >= 0]
""",
    ),
    Call(
        "the console of the machine: switching, fonts, keys, blanking",
        DEVICES,
        """
for place in ("/dev/console", "/dev/tty", "/dev/tty0", "/dev/vcs", "/dev/vcsa1"):
    try:
        terminal = os.open(place, os.O_RDWR | os.O_NOCTTY)
    except OSError:
        continue
    for request in (0x5606, 0x560A, 0x4B3A, 0x4B61, 0x4B72, 0x541C, 0x541D, 0x5437, 0x5423):
        try:
            fcntl.ioctl(terminal, request, bytes(64))
            return place, hex(request)
        except OSError:
            continue
""",
    ),
    Call(
        "names of the machine's keys, swap, timers, modules and slabs in /proc",
        USER,
        """
for name in ("timer_list", "slabinfo", "kpageflags", "kpagecount", "vmallocinfo", "pagetypeinfo", "sched_debug"):
    try:
        return open("/proc/" + name, "rb").read(64)
    except OSError:
        continue
""",
    ),
    Call(
        "keys of the user in /proc/keys",
        USER,
        """
return [line for line in open("/proc/keys") if " keyring " not in line and "_ses" not in line and "_uid" not in line]
""",
    ),
    Call(
        "locks and processes of others in /proc/locks and /proc/PID",
        PIDS,
        """
own = [-1, 0, *(int(name) for name in os.listdir("/proc") if name.isdigit())]
return [line for line in open("/proc/locks") if int(line.replace("->", "").split()[4]) not in own]
""",
    ),
    Call(
        "a name of a socket of the machine in the abstract space, by all lengths",
        NETWORK,
        """
names = [line.split()[-1] for line in open("/proc/net/unix") if "@" in line]
return [name for name in names if "edge" in name or "tmux" in name or "dbus" in name or "X11" in name]
""",
    ),
    Call(
        "credentials of another process and user in a message (SCM_CREDENTIALS)",
        RIGHTS,
        """
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
for credentials in ((1, 0, 0), ({victim}, 0, 0), (os.getpid(), 0, os.getgid()), (os.getpid(), os.getuid(), 0)):
    try:
        return one.sendmsg([b"x"], [(socket.SOL_SOCKET, 2, struct.pack("iii", *credentials))])
    except OSError:
        continue
""",
    ),
    Call(
        "multicast, broadcast and source routes on the loopback interface",
        NETWORK,
        """
for address in ("224.0.0.251", "255.255.255.255", "169.254.169.254", "10.0.0.1", "8.8.8.8"):
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    try:
        return one.sendto(b"x", (address, {udp}))
    except OSError:
        continue
""",
    ),
    Call(
        "TCP with other congestion controls and kernel modules by name",
        RIGHTS,
        """
one = socket.socket()
names = {"bbr", "vegas", "dctcp", "cdg", "nv"}
for name in names - {*open("/proc/sys/net/ipv4/tcp_available_congestion_control").read().split()}:
    try:
        one.setsockopt(socket.IPPROTO_TCP, 13, name.encode())
        return name
    except OSError:
        continue
""",
    ),
    Call(
        "limits of another process, and of the own one above its maximum (prlimit)",
        LIMITS,
        """
for pid in ({victim}, 1, os.getppid(), 0):
    for which in (2, 4, 6, 7, 8, 9, 11, 13, 14, 15):
        old = ctypes.create_string_buffer(16)
        if call(302, 261, pid, which, 0, old) == 0:
            soft, hard = struct.unpack("QQ", old.raw)
            more = struct.pack("QQ", soft, min(hard + 1, 2**64 - 1))
            call(302, 261, pid, which, more, 0)
            if call(302, 261, pid, which, 0, old) == 0 and struct.unpack("QQ", old.raw)[1] != hard:
                return pid, which
""",
    ),
    Call(
        "a program with more rights from the sandbox's own folders (setuid, file capabilities, other user)",
        RIGHTS,
        """
import shutil
for folder in ("/tmp", os.path.expanduser("~"), "/dev/shm", "."):
    place = folder + "/rights"
    try:
        shutil.copy("/usr/bin/id", place)
        os.chmod(place, 0o6755)
        os.chown(place, -1, -1)
        os.setxattr(place, "security.capability", struct.pack("<IIIII", 0x2000001, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0))
        return place
    except OSError:
        continue
""",
    ),
    Call(
        "binary formats and programs of the kernel (binfmt_misc, modprobe, hotplug)",
        READ_ONLY,
        """
for name in (
    "sys/fs/binfmt_misc/register", "sys/kernel/modprobe", "sys/kernel/hotplug", "sys/kernel/poweroff_cmd",
    "sys/vm/drop_caches", "sys/kernel/ns_last_pid",
):
    try:
        return os.open("/proc/" + name, os.O_WRONLY)
    except OSError:
        continue
""",
    ),
)
