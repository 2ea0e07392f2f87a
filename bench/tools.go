package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/blkmirror/blkmirror/engine"
)

// tool is a program that copies. A server of its own, where one is needed, is started before the clock.
type tool interface {
	// missing names a program that is not installed.
	missing() string
	// prepare brings up what must run before the clock does.
	prepare(ctx context.Context, r *run) error
	// client is the command that the clock measures.
	client(r *run) []string
}

// run is one measurement of one tool.
type run struct {
	*runner
	scenario       *scenario
	source, target string
	profile        string // path prefix, empty: none
	server         *process
	address        string // of the server
}

// blkmirror is `serve` and `sync` of the binary at hand.
type blkmirror struct{ trustIndex, secure bool }

func (blkmirror) missing() string { return "" }

func (b blkmirror) prepare(ctx context.Context, r *run) error {
	if !r.scenario.tcp {
		return nil
	}
	if b.secure {
		if err := Introduce(r.stateOf("sync"), r.stateOf("node"), benchVolume); err != nil {
			return err
		}
	}
	node, err := StartNode(ctx, NodeOptions{Binary: r.options.Binary, State: r.stateOf("node"), Control: filepath.Join(r.sockets, "control.sock"),
		TLS: b.secure, Flags: []string{"--quiet", "--volume", benchVolume + "=" + r.target}, Profile: r.profileOf("serve")})
	if err != nil {
		return err
	}
	r.server, r.address = node.process, node.Address
	return nil
}

func (b blkmirror) client(r *run) []string {
	argv := []string{r.options.Binary, "sync", fmt.Sprintf("--insecure=%t", !b.secure), "--json", "--grow-ok", "--state", r.stateOf("sync")}
	if b.trustIndex {
		argv = append(argv, "--trust-index")
	}
	to := r.target
	if r.server != nil {
		to = "blk://" + r.address + "/" + benchVolume
	}
	return append(argv, "--", r.source, to)
}

// nbdcopy hashes nothing: it is the plain way to bring a disk to another machine.
type nbdcopy struct{}

func (nbdcopy) missing() string {
	for _, program := range []string{"nbdcopy", "nbdkit"} {
		if find(program) == "" {
			return program
		}
	}
	return ""
}

func (nbdcopy) prepare(ctx context.Context, r *run) error {
	if !r.scenario.tcp {
		return nil
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	if err := ensureSize(r.target, r.sizeOf(r.source)); err != nil {
		return err
	}
	ready := filepath.Join(r.sockets, "nbdkit.pid")
	os.Remove(ready)
	r.address = "127.0.0.1:" + port
	r.server, err = start(ctx, "", find("nbdkit"), "--foreground", "--exit-with-parent", "--pidfile", ready,
		"--ipaddr", "127.0.0.1", "--port", port, "file", r.target)
	if err != nil {
		return err
	}
	return r.server.await(ctx, startPoll, func() bool {
		_, err := os.Stat(ready) // written when it listens
		return err == nil
	})
}

func (nbdcopy) client(r *run) []string {
	to := r.target
	if r.server != nil {
		to = "nbd://" + r.address
	}
	return []string{find("nbdcopy"), "--flush", r.source, to}
}

// rsync runs locally in all scenarios, its processes joined by a socket pair: the best case for it.
type rsync struct{ delta bool }

func (rsync) missing() string {
	if find("rsync") == "" {
		return "rsync"
	}
	return ""
}

func (rsync) prepare(context.Context, *run) error { return nil }

func (t rsync) client(r *run) []string {
	argv := []string{find("rsync"), "--inplace", "--ignore-times"}
	if t.delta {
		argv = append(argv, "--no-whole-file")
	}
	if r.scenario.content == Sparse {
		argv = append(argv, "--sparse")
	}
	if r.options.SourceDevice != "" {
		argv = append(argv, "--copy-devices")
	}
	if r.options.TargetDevice != "" {
		argv = append(argv, "--write-devices")
	}
	return append(argv, r.source, r.target)
}

// toolVersion is the first line of what a program says about itself.
func toolVersion(ctx context.Context, argv ...string) string {
	path := find(argv[0])
	if path == "" {
		return "not installed"
	}
	out, _ := exec.CommandContext(ctx, path, argv[1:]...).Output()
	for i, b := range out {
		if b == '\n' {
			return string(out[:i])
		}
	}
	return string(out)
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// ensureSize creates an image that a server wants to find.
func ensureSize(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() == size {
		return err
	}
	return f.Truncate(size)
}

// syncReport reads what `sync --json` printed.
func syncReport(out []byte) (*engine.Report, error) {
	report := new(engine.Report)
	if err := json.Unmarshal(out, report); err != nil {
		return nil, fmt.Errorf("read the report of sync: %w", err)
	}
	return report, nil
}
