package paths

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/blkmirror/blkmirror/campaign/daemon"
	"golang.org/x/sys/unix"
)

// Hop is three network namespaces in a row, of which the middle one forwards:
//
//	LeftAddr left ──── middle ──── right RightAddr
//	          10.77.1.254    10.77.2.254
//
// Each lives as long as a process of ours whose standard input is a pipe to us: when we end, in whatever way, they go,
// and with them the interfaces. Nothing of them is seen in the machine's own namespace.
type Hop struct {
	holders [3]*exec.Cmd
	pipes   [3]io.Closer
}

// The places in a Hop.
const (
	Left = iota
	Middle
	Right
)

// The addresses of its ends.
const (
	LeftAddr  = "10.77.1.1"
	RightAddr = "10.77.2.1"
	Moved     = "10.77.1.2"
)

// NewHop makes one; it needs root. What is larger than mtu does not get through the middle, in either direction, and nobody
// is told: the interfaces there are small, which nobody beyond them sees, and the ICMP that says so is dropped. From
// 1500 on everything gets through; the ends' own packets are of up to 1500 bytes, or mtu where that is more.
func NewHop(ctx context.Context, mtu int) (*Hop, error) {
	if err := needRoot(); err != nil {
		return nil, err
	}
	h := new(Hop)
	if err := h.build(ctx, mtu); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

func (h *Hop) build(ctx context.Context, mtu int) error {
	for i := range h.holders {
		if err := h.hold(ctx, i); err != nil {
			return err
		}
	}
	pid := func(i int) string { return fmt.Sprint(h.holders[i].Process.Pid) }
	small, large := fmt.Sprint(mtu), fmt.Sprint(max(mtu, 1500))
	for _, c := range []struct {
		at   int
		line string
	}{
		{Middle, "ip link add left type veth peer name out netns " + pid(Left)},
		{Middle, "ip link add right type veth peer name out netns " + pid(Right)},
		{Left, "ip address add " + LeftAddr + "/24 dev out"},
		{Right, "ip address add " + RightAddr + "/24 dev out"},
		{Middle, "ip address add 10.77.1.254/24 dev left"},
		{Middle, "ip address add 10.77.2.254/24 dev right"},
		{Middle, "ip link set left mtu " + small + " up"},
		{Middle, "ip link set right mtu " + small + " up"},
		{Left, "ip link set out mtu " + large + " up"},
		{Right, "ip link set out mtu " + large + " up"},
		{Left, "ip link set lo up"},
		{Middle, "ip link set lo up"},
		{Right, "ip link set lo up"},
		{Left, "ip route add default via 10.77.1.254"},
		{Right, "ip route add default via 10.77.2.254"},
		{Middle, "sysctl -qw net.ipv4.ip_forward=1"},
		{Middle, "tc qdisc add dev left clsact"},
		{Middle, "tc qdisc add dev right clsact"},
		{Middle, "tc filter add dev left egress bpf direct-action bytecode"},
		{Middle, "tc filter add dev right egress bpf direct-action bytecode"},
	} {
		line := strings.Fields(c.line)
		if line[len(line)-1] == "bytecode" {
			line = append(line, dropUnreachable)
		}
		if err := h.do(ctx, c.at, line); err != nil {
			return err
		}
	}
	return nil
}

// Narrow makes the way to a place small from now on: what is larger than mtu does not get there any more.
func (h *Hop) Narrow(ctx context.Context, to, mtu int) error {
	way := map[int]string{Left: "10.77.1.0/24 dev left", Right: "10.77.2.0/24 dev right"}[to]
	return h.do(ctx, Middle, strings.Fields(fmt.Sprintf("ip route change %s mtu lock %d", way, mtu)))
}

// Cut has everything to a place vanish, without a word; the way back is as it was.
func (h *Hop) Cut(ctx context.Context, to int) error {
	return h.do(ctx, Middle, []string{"ip", "route", "add", "blackhole", map[int]string{Left: LeftAddr, Right: RightAddr}[to]})
}

// Mend ends Cut.
func (h *Hop) Mend(ctx context.Context, to int) error {
	return h.do(ctx, Middle, []string{"ip", "route", "del", "blackhole", map[int]string{Left: LeftAddr, Right: RightAddr}[to]})
}

// NotHere tells whether an error says that this machine cannot do such things.
func NotHere(err error) bool { return errors.Is(err, errNotHere) }

// dropUnreachable is classic BPF on Ethernet frames: where the type (at 12) is IPv4, the protocol (at 23) ICMP and its type (at
// 34) 3, "destination unreachable", the frame is dropped (2); all else passes (0).
const dropUnreachable = "8,40 0 0 12,21 0 4 2048,48 0 0 23,21 0 2 1,48 0 0 34,21 1 0 3,6 0 0 0,6 0 0 2,"

// hold starts the process that a namespace lives by.
func (h *Hop) hold(ctx context.Context, i int) error {
	cmd := exec.Command("unshare", "--net", "cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("%w: no network namespace: %v", errNotHere, err)
	}
	h.holders[i], h.pipes[i] = cmd, in
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	// The process begins in our namespace. Until it is cat, nothing may be done in what would be ours.
	return daemon.Until(ctx, "a network namespace", func() (bool, error) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
		if err != nil {
			return false, err
		}
		there, err := os.Readlink(h.namespace(i))
		return string(name) == "cat\n" && there != own, err
	})
}

func (h *Hop) namespace(i int) string {
	return fmt.Sprintf("/proc/%d/ns/net", h.holders[i].Process.Pid)
}

// Wrap is what a command has to be started with to run at a place.
func (h *Hop) Wrap(place int) []string {
	return []string{"nsenter", "--net=" + h.namespace(place), "--"}
}

// Reroute has what the left end sends leave from another address of it, Moved. Connections that stand are not touched.
func (h *Hop) Reroute(ctx context.Context) error {
	for _, line := range []string{"ip address add " + Moved + "/24 dev out", "ip route change default via 10.77.1.254 src " + Moved} {
		if err := h.do(ctx, Left, strings.Fields(line)); err != nil {
			return err
		}
	}
	return nil
}

// Unplug takes a place off the net: its address is gone, and nobody answers for it.
func (h *Hop) Unplug(ctx context.Context, place int) error {
	return h.do(ctx, place, []string{"ip", "link", "set", "out", "down"})
}

func (h *Hop) do(ctx context.Context, place int, line []string) error {
	line = append(h.Wrap(place), line...)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %q: %v: %s", errNotHere, line, err, out)
	}
	return nil
}

// In calls f in the namespace of a place; sockets that it makes stay there. What it has done by other goroutines is
// done in ours.
func (h *Hop) In(place int, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and no unlock: the thread ends with the goroutine, and nobody else gets to run in there
		ns, err := os.Open(h.namespace(place))
		if err == nil {
			err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), ns.Close())
		}
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// Close takes everything away.
func (h *Hop) Close() {
	for i, cmd := range h.holders {
		if cmd != nil {
			h.pipes[i].Close()
			cmd.Wait()
		}
	}
}
