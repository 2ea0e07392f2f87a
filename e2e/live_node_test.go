package e2e

import (
	"encoding/json"
	"net"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// node is a daemon that can be killed and started again with the same command line.
type node struct {
	*proc          // the present process
	t              testing.TB
	binary         string
	line           []string
	state, control string
	addr           string // where it listens for other nodes, since the last start
}

// newNode prepares a daemon with a state directory; it is not started.
func newNode(t testing.TB, binary, state string, flags ...string) *node {
	t.Helper()
	host := ownAddress()
	if slices.Contains(flags, "--mirror") {
		host = "127.0.0.1" // a primary is knocked at where it dials from
	}
	line := append([]string{"serve", "--insecure", "--state", state, "--listen", host + ":0"}, flags...)
	return &node{t: t, binary: binary, line: line, state: state, control: filepath.Join(state, "control.sock")}
}

// launch starts the process and does not wait for it.
func (n *node) launch() {
	n.t.Helper()
	n.proc = launch(n.t, nil, append([]string{n.binary}, n.line...)...)
}

// up starts the process and waits until every volume's recovery is done, which is when the control socket
// answers.
func (n *node) up() {
	n.t.Helper()
	n.launch()
	n.ready()
	n.addr = n.live().Listen
}

func (n *node) ready() {
	n.t.Helper()
	until(n.t, "the control socket", func() bool {
		if n.ended() {
			n.t.Fatalf("%q ended: %s", n.line, n.err.String())
		}
		nc, err := net.Dial("unix", n.control) // one that a killed daemon left refuses
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
}

// down is a clean stop.
func (n *node) down() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	n.wait().ok(n.t)
}

// ask runs a client command against this daemon.
func (n *node) ask(args ...string) result {
	n.t.Helper()
	return launch(n.t, nil, append(append([]string{plain}, args...), "--control", n.control)...).wait()
}

// liveStatus is what `status --json` prints of live volumes.
type liveStatus struct {
	Node struct {
		Warnings []string `json:"warnings"`
	} `json:"node"`
	Listen  string       `json:"listen"`
	Volumes []liveVolume `json:"volumes"`
}

type liveVolume struct {
	Name       string     `json:"name"`
	State      string     `json:"state"`
	Role       string     `json:"role"`
	Size       int64      `json:"size"`
	Epoch      int64      `json:"epoch"`
	Unproven   bool       `json:"unproven"`
	IndexNeeds int64      `json:"index_needs_bytes"`
	Error      string     `json:"error"` // of a volume that failed
	Next       string     `json:"next"`
	Mirrors    []livePeer `json:"mirrors"`
	Primary    *livePeer  `json:"primary"`
}

type livePeer struct {
	State      string   `json:"state"`
	Committed  int64    `json:"committed_epoch"`
	Applied    int64    `json:"applied_epoch"`
	LagSeconds float64  `json:"lag_seconds"`
	LagBytes   int64    `json:"lag_bytes"`
	Needs      int64    `json:"needs_bytes"`
	Staged     int64    `json:"staged_bytes"`
	Shipped    int64    `json:"shipped_bytes"`
	Wire       int64    `json:"wire_bytes"`
	Reconnects int64    `json:"reconnects"`
	Peer       string   `json:"peer"`
	Key        string   `json:"key"`
	Reason     string   `json:"reason"`
	DaysLeft   *float64 `json:"key_days_left"`
	Disconnect *struct {
		Class, Error string
	} `json:"last_disconnect"`
	Flow *struct {
		Limit     int64   `json:"limit_bytes_per_second"`
		Pacing    int64   `json:"pacing_bytes_per_second"`
		Delivery  int64   `json:"delivery_bytes_per_second"`
		Window    int64   `json:"window_bytes"`
		RTT       float64 `json:"rtt_ms"`
		MinRTT    float64 `json:"min_rtt_ms"`
		Threshold float64 `json:"swell_threshold_ms"`
		Slowed    bool    `json:"slowed"`
		Segment   int     `json:"mss"`
		MTU       string  `json:"mtu"`
	} `json:"flow"`
}

func (n *node) live() liveStatus {
	n.t.Helper()
	r := n.ask("status", "--json").ok(n.t)
	var st liveStatus
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		n.t.Fatalf("status --json: %v\n%s", err, r.stdout)
	}
	return st
}

// volume is the status of the one volume that these tests use.
func (n *node) volume() liveVolume {
	n.t.Helper()
	for _, v := range n.live().Volumes {
		if v.Name == "v" {
			return v
		}
	}
	n.t.Fatal("status shows no volume v")
	return liveVolume{}
}

// peer is what a primary says of its one mirror.
func (n *node) peer() livePeer {
	n.t.Helper()
	v := n.volume()
	if len(v.Mirrors) != 1 {
		n.t.Fatalf("status shows %d mirrors: %+v", len(v.Mirrors), v)
	}
	return v.Mirrors[0]
}
