package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// needRoot skips what only root can do.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for loop devices and mounts")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("needs loop devices: %v", err)
	}
}

// need skips where a tool is missing.
func need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
}

// tool runs a helper of the system and returns what it printed.
func tool(t testing.TB, line ...string) string {
	t.Helper()
	out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", line, err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop attaches a loop device to a file until the end of the test.
func loop(t testing.TB, file string, options ...string) string {
	t.Helper()
	needRoot(t)
	line := append([]string{"losetup", "--find", "--show"}, options...)
	dev := tool(t, append(line, file)...)
	// BLKROSET outlives an attachment: whoever had this device before may have left it.
	tool(t, "blockdev", "--setrw", dev)
	t.Cleanup(func() {
		tool(t, "blockdev", "--setrw", dev)
		tool(t, "losetup", "--detach", dev)
	})
	return dev
}

// mount mounts a device, or makes a file system without one, until the end of the test. What is returned
// unmounts it earlier.
func mount(t testing.TB, device, at string, options ...string) (unmount func()) {
	t.Helper()
	needRoot(t)
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, append(append([]string{"mount"}, options...), device, at)...)
	mounted := true
	unmount = func() {
		if mounted {
			// Whatever another test starts has the files of this process open until it is another program.
			until(t, "unmounting", func() bool { return exec.Command("umount", at).Run() == nil })
			mounted = false
		}
	}
	t.Cleanup(unmount)
	return unmount
}

// smallDisk makes a mounted ext4 file system on a loop device.
func smallDisk(t testing.TB, dir string, size string, options ...string) (at string, unmount func()) {
	t.Helper()
	needRoot(t)
	need(t, "mkfs.ext4")
	file := filepath.Join(dir, "disk-"+filepath.Base(size))
	tool(t, "truncate", "-s", size, file)
	tool(t, "mkfs.ext4", "-q", "-m", "0", file)
	at = file + ".mnt"
	return at, mount(t, loop(t, file), at, options...)
}

// nobody is the command line by which another, unprivileged user runs the binary. state is made writable
// for them.
func nobody(t testing.TB, state string) []string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	need(t, "setpriv")
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(state, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	line := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", checked}
	if out, err := exec.Command(line[0], append(line[1:], "version")...).CombinedOutput(); err != nil {
		t.Skipf("another user cannot run the binary in %s: %v: %s", work, err, out)
	}
	return line
}
