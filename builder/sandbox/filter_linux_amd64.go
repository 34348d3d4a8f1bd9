package sandbox

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The filter is classic BPF over struct seccomp_data (seccomp(2)). It decides by
// system call number only, but for mknod, whose mode stands in a register.

const (
	auditArchX8664 = 0xc000003e // AUDIT_ARCH_X86_64, linux/audit.h
	x32Bit         = 0x40000000 // __X32_SYSCALL_BIT

	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16 // eight bytes each, low half first

	newListener = 1 << 3 // SECCOMP_FILTER_FLAG_NEW_LISTENER
)

// succeed are the calls that return 0 and do nothing.
var succeed = []uint32{
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETGROUPS, unix.SYS_SETFSUID, unix.SYS_SETFSGID,
	unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC, unix.SYS_SYNCFS, unix.SYS_SYNC_FILE_RANGE,
}

// asked are the calls that the supervisor answers.
var asked = []uint32{
	unix.SYS_CHOWN, unix.SYS_FCHOWN, unix.SYS_LCHOWN, unix.SYS_FCHOWNAT,
	unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR,
	unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
}

// absent are newer calls that would pass the filter by; programs fall back to
// the older ones when the kernel does not know them.
var absent = []uint32{463 /* setxattrat */, 466 /* removexattrat */}

func statement(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

// jump goes on with the next instruction if the condition holds, and past skip
// instructions if it does not.
func jump(code uint16, k uint32, skip uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | code | unix.BPF_K, K: k, Jf: skip}
}

// program is the filter.
func program() []unix.SockFilter {
	const load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	result := func(k uint32) unix.SockFilter { return statement(unix.BPF_RET|unix.BPF_K, k) }
	nosys := result(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
	p := []unix.SockFilter{
		statement(load, offsetArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: auditArchX8664, Jt: 1},
		nosys,
		statement(load, offsetNumber),
		jump(unix.BPF_JGE, x32Bit, 1),
		nosys,
	}
	each := func(numbers []uint32, then unix.SockFilter) {
		for _, number := range numbers {
			p = append(p, jump(unix.BPF_JEQ, number, 1), then)
		}
	}
	each(succeed, result(unix.SECCOMP_RET_ERRNO|0))
	each(asked, result(unix.SECCOMP_RET_USER_NOTIF))
	each(absent, nosys)
	for _, call := range []struct{ number, modeArgument uint32 }{{unix.SYS_MKNOD, 1}, {unix.SYS_MKNODAT, 2}} {
		p = append(p,
			jump(unix.BPF_JEQ, call.number, 6),
			statement(load, offsetArgs+8*call.modeArgument),
			statement(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.S_IFMT),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.S_IFCHR, Jt: 1},
			jump(unix.BPF_JEQ, unix.S_IFBLK, 1),
			result(unix.SECCOMP_RET_USER_NOTIF),
			result(unix.SECCOMP_RET_ALLOW),
		)
	}
	return append(p, result(unix.SECCOMP_RET_ALLOW))
}

// installFilter puts the filter on the calling thread and returns the file on
// which its notifications arrive.
func installFilter() (int, error) {
	filter := program()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, newListener, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return -1, &lacking{fmt.Errorf("installing the system call filter: %w", errno),
			"use Linux 5.11 or later with CONFIG_SECCOMP_FILTER, and no outer sandbox that forbids seccomp listeners"}
	}
	return int(fd), nil
}
