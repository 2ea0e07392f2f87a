package engine

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// A client on this machine may be the kernel itself, with a file system on the export. When memory is
// short it writes dirty pages there, and must not wait for us while we wait for it to free memory. So the
// process keeps what it needs in memory, and says that it flushes I/O: the kernel then lets its allocations
// succeed without writing to disks first (prctl(2), PR_SET_IO_FLUSHER).
//
// Both need rights, and the mark a binary without cgo, since it is each thread's own. Without them the
// export works, and the danger is told once.
func guardMemory(log func(string)) {
	// On fault: what is reserved and not used costs nothing.
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		log(fmt.Sprintf("memory is not locked (%v): a file system mounted on this machine's own export may hang while memory is short", err))
		return
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0); errno != 0 {
		log(fmt.Sprintf("the process is not marked as one that disks wait for (%v): a file system mounted on this machine's own "+
			"export may hang while memory is short; build with CGO_ENABLED=0 and run as root", errno))
	}
}
