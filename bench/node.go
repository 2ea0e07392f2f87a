package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/blkmirror/blkmirror/engine"
)

// NodeOptions say how to start `blkmirror serve`.
type NodeOptions struct {
	Binary  string
	State   string   // directory
	Control string   // path of the control socket
	Listen  string   // "": any free port of 127.0.0.1
	Flags   []string // volumes and what is said of them
	TLS     bool     // the keys in State are used; else plain TCP
	Core    string   // pins the process to this core; "": not
	Profile string   // file for a CPU profile; "": none
}

// Node is a `blkmirror serve` as a child process.
type Node struct {
	*process
	Address string // where it listens
	control string
}

// StartNode returns when the node is ready: every volume is recovered by then.
func StartNode(ctx context.Context, o NodeOptions) (*Node, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	// A socket that a killed node left must not answer for the new one; nobody does there, but it is there.
	if err := os.Remove(o.Control); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	argv := slices.Concat(pinned(o.Core), []string{o.Binary, "serve", "--listen", o.Listen,
		"--state", o.State, "--control", o.Control, fmt.Sprintf("--insecure=%t", !o.TLS)}, o.Flags)
	p, err := start(ctx, o.Profile, argv...)
	if err != nil {
		return nil, err
	}
	n := &Node{process: p, control: o.Control}
	err = p.await(ctx, startPoll, func() bool {
		status, err := engine.FetchStatus(ctx, o.Control)
		n.Address = status.Listen
		return err == nil
	})
	if err == nil && n.Address == "" {
		err = errors.New("it ended at once")
	}
	if err != nil {
		p.stop(new(Usage))
		return nil, fmt.Errorf("start a node: %w", err)
	}
	return n, nil
}

// pinned is what stands before a command that is to run on one core only.
func pinned(core string) []string {
	if core == "" {
		return nil
	}
	return []string{find("taskset"), "--cpu-list", core}
}

// Volume asks for the status of one volume.
func (n *Node) Volume(ctx context.Context, volume string) (engine.VolumeStatus, error) {
	s, err := engine.FetchVolume(ctx, n.control, volume)
	if err != nil {
		return engine.VolumeStatus{}, err
	}
	if len(s.Volumes) != 1 {
		return engine.VolumeStatus{}, fmt.Errorf("%d volumes named %s", len(s.Volumes), volume)
	}
	return s.Volumes[0], nil
}

// AwaitVolume polls until the volume is as wanted, or the node ended, or ctx did.
func (n *Node) AwaitVolume(ctx context.Context, volume string, wanted func(engine.VolumeStatus) bool) (engine.VolumeStatus, error) {
	var last engine.VolumeStatus
	err := n.await(ctx, statusPoll, func() bool {
		v, err := n.Volume(ctx, volume)
		if err == nil {
			last = v
		}
		return err == nil && wanted(v)
	})
	return last, err
}

// Cut takes a cut and waits until every mirror has it.
func (n *Node) Cut(ctx context.Context, volume string) (engine.CutResult, error) {
	return engine.Cut(ctx, n.control, volume, true, cutTimeout)
}

// Stop is a clean stop. It returns an error where the node does not end with exit code 0.
func (n *Node) Stop() error {
	if err := n.stop(new(Usage)); err != nil {
		return err
	}
	return n.wait(new(Usage))
}

// Kill ends it as a crash would.
func (n *Node) Kill() {
	_ = n.cmd.Process.Kill() // it has ended already where this fails
	<-n.ended
}

// peak is the largest resident memory so far (VmHWM).
func (p *process) peak() int64 { return p.memory("VmHWM") }

// resetPeak has the peak begin anew, at the resident memory of now, which it returns.
func (p *process) resetPeak() int64 {
	_ = os.WriteFile(p.proc("clear_refs"), []byte("5"), 0) // else the peak is that since the start, and too much
	return p.memory("VmRSS")
}

func (p *process) proc(file string) string {
	return filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), file)
}

// memory is what the kernel says of a process under this key, in bytes.
func (p *process) memory(key string) int64 {
	blob, _ := os.ReadFile(p.proc("status"))
	for lines := bufio.NewScanner(bytes.NewReader(blob)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), key+":"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// cpuSeconds is the user and system time of a process so far.
func (p *process) cpuSeconds() float64 {
	const ticks = 100 // a second, on every Linux that Go knows
	blob, _ := os.ReadFile(p.proc("stat"))
	var seconds float64
	if fields := strings.Fields(string(blob[bytes.LastIndexByte(blob, ')')+1:])); len(fields) > 12 {
		for _, field := range fields[11:13] { // utime, stime
			n, _ := strconv.ParseFloat(field, 64)
			seconds += n / ticks
		}
	}
	return seconds
}
