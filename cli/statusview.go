package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/blkmirror/blkmirror/engine"
)

// printStatus writes a status for people.
func printStatus(w io.Writer, s engine.Status, now time.Time) {
	fmt.Fprintf(w, "node %s, %s %s, listening on %s\n", firstOf(s.Node.Name, s.Node.ID), name, s.Node.Version, s.Listen)
	for _, warning := range s.Node.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VOLUME\tSTATE\tROLE\tSIZE\tEPOCH\tDEVICE")
	for _, v := range s.Volumes {
		epoch := "-"
		if isLive(v) {
			epoch = fmt.Sprint(v.Epoch)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, v.State, v.Role, formatBytes(v.Size), epoch, v.Device)
	}
	t.Flush()
	for _, v := range s.Volumes {
		printTrouble(w, v)
		if isLive(v) {
			printLive(w, s.Node.Warnings, v, now)
		}
		for _, c := range v.Sessions {
			printSession(w, v, c)
		}
	}
}

func isLive(v engine.VolumeStatus) bool { return v.Role == "primary" || v.Role == "mirror" }

func printTrouble(w io.Writer, v engine.VolumeStatus) {
	r := v.ReadOnly
	if v.Error != "" && (r == nil || v.Error != r.Reason) { // not twice
		fmt.Fprintf(w, "\n%s: %s\n", v.Name, v.Error)
		printNext(w, v.Next)
	}
	if r != nil {
		fmt.Fprintf(w, "\n%s: %s\n", v.Name, readOnly(r))
		printNext(w, fmt.Sprintf("run `%s repair %s`", name, v.Name))
	}
}

// readOnly says why a volume or a mirror is read-only.
func readOnly(r *engine.ReadOnlyCause) string {
	text := fmt.Sprintf("read-only since %s: %s (class %s", r.Since, r.Reason, r.Class)
	switch len(r.Blocks) {
	case 0:
	case 1:
		text += fmt.Sprintf(", block %d", r.Blocks[0])
	default:
		text += fmt.Sprintf(", %d blocks, the first is %d", len(r.Blocks), r.Blocks[0])
	}
	return text + ")"
}

func printNext(w io.Writer, next string) {
	if next != "" {
		fmt.Fprintf(w, "  next: %s\n", next)
	}
}

// printLive writes what is known of a volume with a role, and of those that it has to do with, but for the warnings that
// are told already.
func printLive(w io.Writer, told []string, v engine.VolumeStatus, now time.Time) {
	peers, what := v.Mirrors, "MIRROR"
	if v.Role == "mirror" {
		peers, what = nil, "PRIMARY"
		if v.Primary != nil {
			peers = append(peers, *v.Primary)
		}
	}
	fmt.Fprintf(w, "\n%s:", v.Name)
	if v.Export != "" {
		fmt.Fprintf(w, " export %s,", v.Export)
	}
	if v.Role == "primary" {
		fmt.Fprintf(w, " %s, read %s, written %s", firstOf(v.Mode, "async"), formatBytes(v.ReadBytes), formatBytes(v.WrittenBytes))
	} else {
		fmt.Fprintf(w, " holds cut %d", v.Epoch)
	}
	if v.DeviceErrors > 0 {
		fmt.Fprintf(w, ", %d errors of the device", v.DeviceErrors)
	}
	if v.IndexDropped > 0 {
		fmt.Fprintf(w, ", index dropped %d times", v.IndexDropped)
	}
	if v.State == "comparing" {
		fmt.Fprintf(w, ", compared with its index: %s", percent(v.Compared, v.Size))
	}
	if v.Unproven {
		fmt.Fprint(w, ", unproven until the disk is compared with its index")
	}
	fmt.Fprintln(w)
	if len(peers) == 0 {
		fmt.Fprintf(w, "  no %s\n", strings.ToLower(what))
		return
	}
	printPeers(w, told, v.Name, what, peers, now)
}

func printPeers(w io.Writer, told []string, volume, what string, peers []engine.MirrorStatus, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "  %s\tSTATE\tLAG\tBYTES\tCOMMITTED\tNEEDS\tSTAGED\tSHIPPED\tON THE WIRE\tADDRESS\n", what)
	for _, m := range peers {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", m.Called(), m.State, engine.FormatSeconds(m.LagSeconds), formatBytes(m.LagBytes),
			m.CommittedEpoch, formatBytes(m.NeedsBytes), formatBytes(m.StagedBytes), formatBytes(m.ShippedBytes), formatBytes(m.WireBytes), m.Address)
	}
	t.Flush()
	for _, m := range peers {
		if r := m.ReadOnly; r != nil {
			fmt.Fprintf(w, "  %s is %s\n", m.Called(), readOnly(r))
			printNext(w, fmt.Sprintf("run `%s repair %s`", name, volume))
		}
		if m.Reason != "" && (m.ReadOnly == nil || m.Reason != m.ReadOnly.Reason) {
			fmt.Fprintf(w, "  %s is %s: %s\n", m.Called(), m.State, m.Reason)
		}
		for _, warning := range m.Warnings {
			if !slices.Contains(told, warning) {
				fmt.Fprintf(w, "  %s: warning: %s\n", m.Called(), warning)
			}
		}
		if c := m.Mismatches; c != (engine.MismatchCounts{}) {
			fmt.Fprintf(w, "  %s: checksums that did not match: %d for the connection, %d for the primary, %d for the mirror\n",
				m.Called(), c.Wire, c.Source, c.Mirror)
		}
		if m.RoomMissing > 0 {
			fmt.Fprintf(w, "  %s lacks %s of room for staging\n", m.Called(), formatBytes(m.RoomMissing))
		}
		printFlow(w, m.Called(), m.Flow)
		if m.Holes > 0 {
			fmt.Fprintf(w, "  %s has %d holes: pages that could not be read here\n", m.Called(), m.Holes)
		}
		if p := m.Probe; p != nil && !p.OK {
			fmt.Fprintf(w, "  %s: the next connection would fail, as of %s: %s: %s\n", m.Called(), ago(p.At, now), p.Class, p.Error)
			printNext(w, p.Next)
		}
		if d := m.LastDisconnect; d != nil {
			fmt.Fprintf(w, "  %s: last disconnect %s: %s: %s\n", m.Called(), ago(d.At, now), d.Class, d.Error)
			if m.State == "connecting" || m.State == "refused" {
				printNext(w, d.Next)
			}
		}
	}
}

// printFlow tells what holds a mirror's connection back.
func printFlow(w io.Writer, mirror string, f *engine.FlowStatus) {
	if f == nil {
		return
	}
	if f.Limit > 0 {
		fmt.Fprintf(w, "  %s: limited to %s/s now\n", mirror, formatBytes(f.Limit))
	}
	if f.Slowed {
		fmt.Fprintf(w, "  %s: slowed: a round trip takes %.0f ms under our load, %.0f ms without, more than %.0f ms is too much; %s/s get through\n",
			mirror, f.RTT, f.MinRTT, f.Threshold, formatBytes(f.Delivery))
	}
	if f.MTU != "" {
		fmt.Fprintf(w, "  %s: %s (mtu)\n", mirror, f.MTU)
	}
	if f.Refused != "" {
		fmt.Fprintf(w, "  %s: the kernel refused %s; %s is in use\n", mirror, f.Refused, firstOf(f.Congestion, "its default"))
	}
}

// ago tells how long ago a time is; the time itself where it cannot be read.
func ago(at string, now time.Time) string {
	then, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return at
	}
	return max(now.Sub(then), 0).Truncate(time.Second).String() + " ago"
}

func printSession(w io.Writer, v engine.VolumeStatus, c engine.SessionStatus) {
	fmt.Fprintf(w, "\n%s: %s of a sync with %s for %s: %s of %s, shipped %s, skipped %s, zero %s, on the wire %s",
		v.Name, c.Role, c.Peer, engine.FormatSeconds(c.Seconds), formatBytes(c.ScannedBytes), formatBytes(v.Size),
		formatBytes(c.ShippedBytes), formatBytes(c.SkippedBytes), formatBytes(c.ZeroBytes), formatBytes(c.WireBytes))
	if c.RetriedBlocks > 0 {
		fmt.Fprintf(w, ", %d blocks sent again", c.RetriedBlocks)
	}
	fmt.Fprintln(w)
}
