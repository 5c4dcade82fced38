"""The sandbox's filter of system calls: refuses what no program there needs and what could bypass the namespaces.

A classic BPF program for seccomp(2), for x86-64 and ARM64. The numbers are from the kernel's arch/x86/entry/syscalls/
syscall_64.tbl and include/uapi/asm-generic/unistd.h. The choice follows the filters of Flatpak and Docker.
"""

import errno
import platform
import struct

from edge.errors import SandboxError

# Refused with EPERM; the numbers on x86-64 and on ARM64 (None: no such call).
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # The kernel's key rings: the sandbox inherits the user's session ring and could read it.
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # New namespaces and mounts.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Memory and files of other processes, such as pid 1 and the process that answers edge.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # Parts of the kernel with many past vulnerabilities, which programs do not need.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    # The machine itself. These need capabilities too.
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
}
# Refused with ENOSYS, so that programs use another call. The filter cannot read the flags of clone3 in memory. The last
# three allocate memory that no limit of a process or file system covers.
_MISSING: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
}
_CLONE, _IOCTL, _SOCKET, _SOCKETPAIR = (56, 220), (16, 29), (41, 198), (53, 199)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: insert input as if it was typed
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURES


_Line = tuple[int, int, int, int]
"""One `struct sock_filter`: code, jump if true, jump if false, operand."""


def seccomp_filter() -> bytes:
    """The filter for this machine, as an array of `struct sock_filter`. Raises SandboxError on other processors."""
    if not supported():
        raise SandboxError(
            f"the sandbox supports x86-64 and ARM64 only, and this is {platform.machine()}: use --review"
        )
    column, architecture = _ARCHITECTURES[platform.machine()]
    refuse, missing = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    program: list[_Line] = [
        (_LOAD, 0, 0, 4),  # the architecture: a 32-bit program numbers its calls differently
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, missing),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000),  # x32
        (_RETURN, 0, 0, missing),
    ]
    for names, answer in ((_REFUSED, refuse), (_MISSING, missing)):
        for numbers in names.values():
            if (number := numbers[column]) is not None:
                program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    for number, lines in _by_argument(column, refuse):
        program += [(_EQUAL, 0, len(lines), number), *lines]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in program)


def _by_argument(column: int, refuse: int) -> list[tuple[int, list[_Line]]]:
    """The calls that the filter allows with some arguments only: each call's number, and the lines that decide."""
    allow_or_refuse: list[_Line] = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, refuse)]
    refuse_or_allow = allow_or_refuse[::-1]
    return [
        (_CLONE[column], [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), *refuse_or_allow]),
        (
            _IOCTL[column],
            [
                _argument(1),  # the kernel reads only its lower 32 bits
                (_EQUAL, 1, 0, _TERMINAL_INPUT[0]),
                (_EQUAL, 0, 1, _TERMINAL_INPUT[1]),
                *refuse_or_allow,
            ],
        ),
        # Only families that the network namespace contains. AF_VSOCK reaches a virtual machine's host from any of them.
        (
            _SOCKET[column],
            [
                _argument(0),
                (_EQUAL, 5, 0, _UNIX),
                (_EQUAL, 4, 0, _INET),
                (_EQUAL, 3, 0, _INET6),
                (_EQUAL, 0, 3, _NETLINK),
                _argument(2),
                (_EQUAL, 0, 1, 0),  # NETLINK_ROUTE, which getifaddrs uses
                *allow_or_refuse,
            ],
        ),
        (_SOCKETPAIR[column], [_argument(0), (_EQUAL, 1, 0, _UNIX), *refuse_or_allow]),
    ]


def _argument(index: int) -> _Line:
    """Load the lower half of a call's argument; both architectures are little-endian."""
    return (_LOAD, 0, 0, 16 + 8 * index)
