package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/blkmirror/blkmirror/engine"
	"github.com/blkmirror/blkmirror/engine/doctor"
	"github.com/blkmirror/blkmirror/wire"
)

type doctorFlags struct {
	controlFlags
	time           time.Duration
	devices        words
	insecure, json bool
	keys           saidOfKeys
}

func (a *app) doctorCommand() *cli.Command {
	f := doctorFlags{time: engine.DefaultLoadTime}
	return &cli.Command{
		Name:      "doctor",
		Usage:     "find out why replication with another node does not work, or is slow",
		ArgsUsage: "HOST:PORT",
		Description: `
Takes about ten to thirty seconds. Looks at the name, every address, the handshake, keys, clocks, round
trips at rest and under load, throughput both ways, path MTU, resets, the kernels' socket limits, disks and
processors; each finding has a grade, its evidence and a next step. The last one says what replication to
that node is limited by. Two load tests are part of it: on a line that others use too, say --time 1s. Exit
code 0 where nothing is bad, 7 where something is.

The disks are those of --device, else of the volumes of the daemon on this machine, where one answers.`,
		UsageText: `
blkmirror doctor mirror.example:7417
blkmirror doctor --insecure --device /dev/vg0/db --json 127.0.0.1:7417`,
		Flags: append(append(f.flags(), keyFlags(&f.keys, "tls-")...),
			&cli.DurationFlag{Name: "time", Destination: &f.time, Value: f.time, Usage: "run each load test for `TIME`, 1s to 10s"},
			&cli.GenericFlag{Name: "device", Value: &f.devices, Usage: "read the disk or image `PATH` for its speed; may be repeated"},
			&cli.BoolFlag{Name: "insecure", Destination: &f.insecure, Usage: "plain TCP, on loopback only"},
			&cli.BoolFlag{Name: "json", Destination: &f.json, Usage: "print one JSON object"},
		),
		Action: func(c *cli.Context) error { return a.doctor(c.Context, c.Args().First(), f) },
	}
}

func (a *app) doctor(ctx context.Context, target string, f doctorFlags) error {
	o := engine.DoctorOptions{Target: target, Time: f.time, Devices: f.devices, History: func() []doctor.Disconnect { return f.history(ctx, target) }}
	if !f.insecure {
		dir, err := stateDir(f.state)
		if err != nil {
			return err
		}
		if o.Identity, err = f.keys.open(dir); err != nil {
			return err
		}
	}
	if len(o.Devices) == 0 {
		o.Devices = f.ownDisks(ctx)
	}
	if !f.json && isTerminal(a.stderr) {
		o.Tell = func(text string) { fmt.Fprintf(a.stderr, "%s: %s\n", name, text) }
	}
	r, err := engine.Doctor(ctx, o)
	if err != nil {
		return err
	}
	if f.json {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else {
		a.printDoctor(r)
	}
	if !r.OK {
		return &attentionError{exitState}
	}
	return nil
}

// ownDisks are those of the daemon on this machine; none where none answers.
func (f *doctorFlags) ownDisks(ctx context.Context) (paths []string) {
	control, err := f.find()
	if err != nil {
		return nil
	}
	s, err := engine.FetchStatus(ctx, control)
	if err != nil {
		return nil
	}
	for _, v := range s.Volumes {
		if v.Size > 0 {
			paths = append(paths, v.Device)
		}
	}
	return paths
}

func (a *app) printDoctor(r engine.DoctorReport) {
	worst := map[string]int{}
	for _, f := range r.Findings {
		worst[string(f.Grade)]++
		fmt.Fprintf(a.stdout, "%-4s  %-10s  %s\n", f.Grade, f.Check, f.Evidence)
		if f.Next != "" {
			fmt.Fprintf(a.stdout, "%s  next: %s\n", strings.Repeat(" ", 16), f.Next)
		}
	}
	fmt.Fprintf(a.stdout, "%s: %d bad, %d to look at, %d ok, in %s\n", r.Target, worst["bad"], worst["warn"], worst["ok"], engine.FormatSeconds(r.Seconds))
}

// history is what the daemon on this machine knows of disconnects from the target in the last day; nothing where none
// answers.
func (f *doctorFlags) history(ctx context.Context, target string) (all []doctor.Disconnect) {
	control, err := f.find()
	if err != nil {
		return nil
	}
	h, err := engine.FetchHistory(ctx, control, "")
	if err != nil {
		return nil
	}
	for _, d := range h.History {
		at, err := time.Parse(time.RFC3339, d.Last)
		if err == nil && d.Address == target && time.Since(at) < 24*time.Hour {
			all = append(all, doctor.Disconnect{Class: wire.Class(d.Class), At: at, Age: time.Duration(d.Seconds * float64(time.Second)), Bytes: d.Sent + d.Received})
		}
	}
	return all
}
