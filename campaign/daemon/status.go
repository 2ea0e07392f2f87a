package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// Status is what a daemon tells; the part of it that counts here.
type Status struct {
	Node    struct{ Disconnects map[string]int64 } // since its start, by class
	Listen  string
	Volumes []Volume
}

// Volume is one of them.
type Volume struct {
	State, Error, Next string
	Epoch              int64
	Unproven           bool
	IndexNeeds         int64 `json:"index_needs_bytes"`
	Rot                []int64
	ReadOnly           *ReadOnly `json:"read_only"`
	Mirrors            []Peer
	Primary            *Peer
}

// ReadOnly says why a volume is that.
type ReadOnly struct {
	Class, Reason string
	Blocks        []int64
}

// Peer is a mirror as its primary tells of it, or the other way round.
type Peer struct {
	Name       string
	State      string
	Reason     string
	Committed  int64     `json:"committed_epoch"`
	Applied    int64     `json:"applied_epoch"`
	Needs      int64     `json:"needs_bytes"`
	Shipped    int64     `json:"shipped_bytes"`
	GivenUp    int64     `json:"given_up"`
	Retried    int64     `json:"retried_blocks"`
	Reconnects int64     `json:"reconnects"`
	Offered    int64     `json:"offered_bytes"`
	Lag        float64   `json:"lag_seconds"`
	RTT        float64   `json:"rtt_ms"`
	ReadOnly   *ReadOnly `json:"read_only"`
	Mismatches struct{ Wire, Source, Mirror int64 }
	Last       *Disconnect `json:"last_disconnect"`
}

// Disconnect is why a connection ended, or did not come about; in the history with all that failed after it for the
// same reason.
type Disconnect struct {
	Class, Error, At string
	Tries            int64
	Role             string // of the node that tells
	Established      bool   // there was a session
}

// Noticed are the counters that tell of a fault.
func (p *Peer) Noticed() int64 {
	return p.Retried + p.Mismatches.Wire + p.Mismatches.Source + p.Mismatches.Mirror
}

// Status asks it.
func (n *Node) Status(ctx context.Context) (st Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := n.http.Do(r)
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// Volume is the one volume of the daemon.
func (n *Node) Volume(ctx context.Context) (Volume, error) {
	_, v, err := n.Whole(ctx)
	return v, err
}

// Whole is what it tells of itself, and of its one volume.
func (n *Node) Whole(ctx context.Context) (Status, Volume, error) {
	st, err := n.Status(ctx)
	if err == nil && len(st.Volumes) != 1 {
		err = fmt.Errorf("%d volumes", len(st.Volumes))
	}
	if err != nil {
		return st, Volume{}, fmt.Errorf("status of %s: %w; its log: %s", n.State, err, n.Log.Tail())
	}
	return st, st.Volumes[0], nil
}

// History asks it for its disconnects, oldest first, and how many of each class it has counted.
func (n *Node) History(ctx context.Context) (all []Disconnect, counted map[string]int64, err error) {
	var h struct {
		Node    struct{ Disconnects map[string]int64 }
		History []Disconnect
	}
	a := n.Ask(ctx, "status", "--history", "--json")
	if a.Code != 0 {
		return nil, nil, fmt.Errorf("history of %s: %s", n.State, a)
	}
	err = json.Unmarshal([]byte(a.Stdout), &h)
	return h.History, h.Node.Disconnects, err
}
