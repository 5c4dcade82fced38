"""Attempts to get out of the sandbox by system calls and special files, for tests/terminal/test_escapes_by_calls.py.

Each attempt is the body of a Python function. It returns what it got: a true value, if the attempt succeeded; an error
or a false value, if not. `open` says that it succeeds for an ordinary user
without a sandbox on the machines where the test runs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    name: str
    stops: str
    body: str
    """Lines of Python. {canary}, {secret} and similar names are those of `World`; {victim} is a PID outside."""
    open: bool = False
    """It succeeds without a sandbox; the test checks that."""


FILTER = "system call filter"
MOUNTS = "the sandbox's file system starts empty: only mounted paths exist"
READ_ONLY = "read-only mounts; an unprivileged user"
RIGHTS = "no capabilities, no new privileges"
NETWORK = "separate network namespace with only a loopback interface"
PIDS = "separate PID namespace"
LIMITS = "limits that an unprivileged user cannot raise"

BEGIN = """
import ctypes, ctypes.util, errno, fcntl, mmap, os, resource, signal, socket, struct, sys, termios, time
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == "aarch64"
def call(x86, on_arm, *words):
    ctypes.set_errno(0)
    return libc.syscall(on_arm if arm else x86, *words)
def status(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":"))
def child(action):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if action() else 1)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0
"""
END = """
done = []
for name, action in list(globals().items()):
    if name.startswith("attempt_"):
        try:
            if action():
                done.append(name[8:])
        except (OSError, ValueError, AttributeError, OverflowError, StopIteration):
            pass
print("done:", *done, "end", flush=True)
"""

CALLS = (
    Call(
        "climbing from open folders and from the roots of all threads",
        MOUNTS,
        """
for place in ("/", "/proc/self/root", "/proc/1/cwd", "/proc/thread-self/cwd", "/proc/self/task/%d/root" % os.getpid()):
    here = os.open(place, os.O_PATH)
    for _ in range(40):
        here = os.open("..", os.O_PATH, dir_fd=here)
    try:
        return open(os.open("{secret}"[1:], os.O_RDONLY, dir_fd=here)).read()
    except OSError:
        continue
""",
        open=True,
    ),
    Call(
        "files by their handles instead of their names",
        FILTER,
        """
buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
return call(303, 264, -100, b"/usr", buffer, ctypes.byref(ctypes.c_int()), 0) == 0
""",
        open=True,
    ),
    Call(
        "a descriptor of a system file, opened again to write",
        READ_ONLY,
        """
here = os.open("/usr/bin/env", os.O_RDONLY)
return os.open("/proc/self/fd/%d" % here, os.O_RDWR)
""",
    ),
    Call(
        "a new name, time, owner, attribute and length for system files",
        READ_ONLY,
        """
def each():
    yield lambda: os.utime("/usr/bin/env")
    yield lambda: os.rename("/usr/bin/env", "/usr/bin/env2")
    yield lambda: os.chown("/usr/bin/env", os.getuid(), -1)
    yield lambda: os.setxattr("/usr/bin/env", "user.x", b"x")
    yield lambda: os.truncate("/usr/bin/env", 0)
    yield lambda: os.link("/usr/bin/env", "/app/env")
    yield lambda: os.symlink("x", "/usr/bin/link")
    yield lambda: os.mkdir("/usr/new")
for action in each():
    try:
        action()
        return True
    except OSError:
        continue
""",
    ),
    Call(
        "a file without a name, linked into another mount",
        READ_ONLY,
        """
here = os.open(".", os.O_TMPFILE | os.O_RDWR)
os.link("/proc/self/fd/%d" % here, "{world}/linked", follow_symlinks=True)
return True
""",
    ),
    Call(
        "rights in a file's attributes (security.capability)",
        RIGHTS,
        """
import shutil
shutil.copy("/bin/sh", "cap")
os.setxattr("cap", "security.capability", struct.pack("<IIIII", 0x2000001, 0xFFFFFFFF, 0, 0, 0))
return True
""",
    ),
    Call(
        "another group for a file, and the set-group-ID bit",
        RIGHTS,
        """
os.close(os.open("group", os.O_CREAT))
os.chown("group", -1, 0)
os.chmod("group", 0o2755)
return os.stat("group").st_gid == 0
""",
    ),
    Call(
        "each file below /proc/sys, /proc/irq and /proc/fs that may be written",
        "an unprivileged user; /proc/sys belongs to the root user of the machine",
        """
for top in ("/proc/sys", "/proc/irq", "/proc/fs", "/proc/driver", "/proc/acpi", "/proc/bus"):
    for folder, _, names in os.walk(top):
        for name in names:
            try:
                with open(os.path.join(folder, name), "w") as file:
                    if folder.endswith("mqueue") or name.startswith(("msg", "shm", "auto_msg", "sem")):
                        file.write("77")  # of the IPC namespace
                    elif name not in ("pid_max", "ns_last_pid"):  # of the PID namespace
                        return True
            except OSError:
                continue
""",
    ),
    Call(
        "the kernel's memory, symbols and log",
        "an unprivileged user; system call filter",
        """
for name in ("/proc/kcore", "/dev/mem", "/dev/kmsg", "/proc/kmsg"):
    try:
        return os.open(name, os.O_RDONLY)
    except OSError:
        continue
if any(int(line.split()[0], 16) for line in open("/proc/kallsyms")):
    return True
return call(103, 116, 3, ctypes.create_string_buffer(1000), 1000) > 0
""",
    ),
    Call(
        "the sockets of others in /proc/net",
        NETWORK,
        """
return "{abstract}" in open("/proc/net/unix").read()
""",
        open=True,
    ),
    Call(
        "control groups (release_agent)",
        MOUNTS,
        """
return os.listdir("/sys/fs/cgroup")
""",
        open=True,
    ),
    Call(
        "descriptors of other processes (pidfd_getfd)",
        FILTER,
        """
pid = os.fork()
if pid == 0:
    time.sleep(5)
    os._exit(0)
got = call(438, 438, os.pidfd_open(pid), 0, 0)
os.kill(pid, 9)
os.waitpid(pid, 0)
return got >= 0
""",
    ),
    Call(
        "the memory of other processes (process_vm_writev)",
        FILTER,
        """
data = ctypes.create_string_buffer(8)
parts = ctypes.create_string_buffer(struct.pack("QQ", ctypes.addressof(data), 8), 16)
return call(311, 271, os.getpid(), parts, ctypes.c_ulong(1), parts, ctypes.c_ulong(1), ctypes.c_ulong(0)) == 8
""",
        open=True,
    ),
    Call(
        "io_uring, whose operations no filter sees",
        FILTER,
        """
return call(425, 425, 4, ctypes.create_string_buffer(120)) >= 0
""",
    ),
    Call(
        "bpf, performance events, userfaultfd",
        FILTER,
        """
attributes = ctypes.create_string_buffer(struct.pack("IIQ", 1, 112, 0) + bytes(96))
return call(321, 280, 0, attributes, 48) >= 0 or call(298, 241, attributes, 0, -1, -1, 0) >= 0 or call(323, 282, 1) >= 0
""",
    ),
    Call(
        "ports of the machine, segments of the processor",
        FILTER,
        """
return not arm and (call(172, 0, 3) == 0 or call(154, 0, 0, ctypes.create_string_buffer(64), 64) >= 0)
""",
    ),
    Call(
        "the machine's clock and name",
        "system call filter; separate host name",
        """
zero = struct.pack("qq", 0, 0)
return call(227, 112, 0, zero) == 0 or call(170, 161, b"edge", 4) == 0 or call(305, 266, 0, bytes(208)) >= 0
""",
    ),
    Call(
        "swap, accounting, quotas, kernel modules",
        FILTER,
        """
return any(call(*words) == 0 for words in ((167, 224, b"{canary}", 0), (163, 89, b"{canary}"), (168, 225, b"{canary}")))
""",
    ),
    Call(
        "system calls in their 32-bit form",
        FILTER,
        """
if arm:
    return False
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\\x53\\xb8\\x14\\0\\0\\0\\xcd\\x80\\x5b\\xc3")  # getpid by int 0x80
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
got = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
return got > 0 or call(0x40000000 + 39, 0) > 0
""",
    ),
    Call(
        "removing the filter and no-new-privileges",
        "Linux does not allow it",
        """
libc.prctl(38, 0, 0, 0, 0)
libc.prctl(22, 0, 0, 0, 0)
return status("Seccomp") == "0" or status("NoNewPrivs") == "0"
""",
        open=True,
    ),
    Call(
        "raising capabilities (capset, ambient)",
        RIGHTS,
        """
header, data = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0xFFFFFFFF] * 6)
call(126, 91, header, data)
libc.prctl(47, 2, 21, 0, 0)
return int(status("CapEff"), 16)
""",
    ),
    Call(
        "becoming another user or group",
        "one user in the user namespace; no capabilities",
        """
actions = ((os.setresuid, 0, 0, 0), (os.setgroups, [0]), (os.setregid, 0, 0), (os.setuid, 1))
for action, *words in actions:
    try:
        action(*words)
        return True
    except OSError:
        continue
""",
    ),
    Call(
        "raising the limits again",
        LIMITS,
        """
for name in (resource.RLIMIT_NPROC, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    for pid in (0, os.getppid()):
        try:
            most = resource.prlimit(pid, name)[1]
            if most > 0:
                resource.prlimit(pid, name, (most + 4096, most + 4096))
                return True
        except (OSError, ValueError):
            continue
""",
    ),
    Call(
        "new namespaces by clone3, whose flags no filter can read",
        FILTER,
        """
words = struct.pack("11Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
pid = call(435, 435, words, len(words))
if pid == 0:
    os._exit(0)
return pid > 0 and os.waitpid(pid, 0)
""",
    ),
    Call(
        "the parent namespaces (NS_GET_PARENT, NS_GET_USERNS)",
        "Linux shows no namespace outside",
        """
for name in ("user", "pid"):
    here = os.open("/proc/self/ns/" + name, os.O_RDONLY)
    for request in (0xB701, 0xB702):
        try:
            got = fcntl.ioctl(here, request)
        except OSError:
            continue
        if os.readlink("/proc/self/fd/%d" % got) not in map(os.readlink, ("/proc/self/ns/user", "/proc/1/ns/pid")):
            return True
""",
    ),
    Call(
        "typing into the terminal (TIOCSTI, TIOCLINUX)",
        FILTER,
        """
return any(call(16, 29, 0, request, b"\\3x") == 0 for request in (0x5412, 0x541C))
""",
    ),
    Call(
        "the same with the upper half of the argument set",
        "the filter compares what the kernel reads",
        """
return any(call(16, 29, 0, ctypes.c_ulong(above << 32 | 0x5412), b"x") == 0 for above in (1, 0xFFFFFFFF))
""",
    ),
    Call(
        "taking the terminal from its session",
        RIGHTS,
        """
def take():
    os.setsid()
    return libc.ioctl(0, 0x540E, 1) == 0
return child(take) or call(153, 58) == 0
""",
    ),
    Call(
        "signals to processes outside: by number, group and descriptor",
        PIDS,
        """
def each():
    yield lambda: os.kill({victim}, 0)
    yield lambda: os.killpg({victim}, 0)
    yield lambda: os.pidfd_open({victim})
    yield lambda: call(129, 138, {victim}, 10, bytes(128)) == 0 or int("x")
    yield lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, {victim})
    yield lambda: resource.prlimit({victim}, resource.RLIMIT_CPU)
    yield lambda: os.sched_setaffinity({victim}, [0])
    yield lambda: os.setpriority(os.PRIO_PROCESS, {victim}, 19)
for action in each():
    try:
        action()
        return True
    except (OSError, ValueError):
        continue
""",
        open=True,
    ),
    Call(
        "the scheduling of other users' processes",
        PIDS,
        """
os.setpriority(os.PRIO_USER, 0, 19)
return False
""",
    ),
    Call(
        "watching and holding system files (dnotify, leases, fanotify)",
        FILTER,
        """
here = os.open("/usr/bin", os.O_RDONLY)
return fcntl.fcntl(here, 1026, 2) == 0 or call(300, 262, 0, 0) >= 0
""",
        open=True,
    ),
    Call(
        "kernel events and lists of sockets by netlink",
        FILTER,
        """
for protocol in (4, 15, 16):
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    except OSError:
        continue
""",
        open=True,
    ),
    Call(
        "a new network interface, address and route by netlink",
        RIGHTS,
        """
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
kind = struct.pack("HH8s", 12, 1, b"dummy") + b""
attributes = struct.pack("HH", 16, 18) + struct.pack("HH", 10, 1) + b"dummy\\0\\0\\0"
body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + attributes
link.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
return struct.unpack("i", link.recv(1000)[16:20])[0] == 0
""",
    ),
    Call(
        "pings",
        FILTER,
        """
for kind, protocol in ((socket.SOCK_DGRAM, 1), (socket.SOCK_RAW, 1), (socket.SOCK_RAW, 255)):
    try:
        return socket.socket(socket.AF_INET, kind, protocol)
    except OSError:
        continue
""",
    ),
    Call(
        "every other family of sockets",
        FILTER,
        """
for family in range(64):
    for kind in (1, 2, 3, 5):
        for protocol in (0, 1, 2):
            if family not in (1, 2, 10, 16):
                try:
                    return socket.socket(family, kind, protocol)
                except OSError:
                    continue
""",
    ),
    Call(
        "a connection that begins with data (TCP Fast Open)",
        NETWORK,
        """
one = socket.socket()
one.settimeout(5)
return one.sendto(b"x", 0x20000000, ("127.0.0.1", {tcp}))
""",
        open=False,
    ),
    Call(
        "a socket through /proc and through an open folder",
        MOUNTS,
        """
for place in ("/proc/1/root{sock}", "/proc/self/fd/%d/sock" % os.open("{world}", os.O_PATH)):
    try:
        return socket.socket(socket.AF_UNIX).connect(place) is None
    except OSError:
        continue
""",
        open=True,
    ),
    Call(
        "code and tables for sockets (BPF, TLS, netfilter)",
        FILTER,
        """
one = socket.socket()
none, mark = struct.pack("i", 0), struct.pack("i", 7)
for level, name, value in ((6, 31, b"tls"), (0, 64, bytes(96)), (1, 50, none), (1, 36, mark)):
    try:
        one.setsockopt(level, name, value)
        return True
    except OSError:
        continue
""",
    ),
)
