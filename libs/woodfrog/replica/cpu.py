"""What a restored process has to ask the kernel for again."""

import ctypes

_SYS_ARCH_PRCTL = 158  # x86-64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XTILEDATA = 18


def permit_tiles() -> bool:
    """Asks for the use of AMX tiles; whether this CPU has them.

    oneDNN asks once. CRIU 4.1 does not bring the permission back, and without it the first tile ends the process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0)
