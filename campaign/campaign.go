// Package campaign turns over single bits in real daemons, at every place where one can, and judges what becomes
// of each: it has to be found, nothing wrong may be counted as good, and the documented way back has to lead to
// two equal images. `go run ./scripts/faults` runs it; docs/TESTING.md tells more.
//
// A trial uses a pair (a primary, its mirror, a proxy between them) that served the trials before it as well. It
// writes through the export, turns a bit over, takes a cut or a verify or starts a daemon anew, and looks at what
// the two say. Then it does what they say is to be done, compares both images by itself, and has verify do so.
//
//	build.go   the product's binary with the fault points of scripts/faults/testdata
//	daemon/    the daemons: their process, their status, their commands
//	proxy.go   frames between the two
//	pair.go    both, with the images
//	trial.go   one flip, from the first write to the verdict
//	wire.go    places on the way: memory and the wire
//	disk.go    places at rest: devices, index, staging, journals
//	table.go   the sums
package campaign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"
)

// Options of a campaign.
type Options struct {
	Root, Temp string // of the module; a folder for everything
	Trials     int    // at each place
	Only       []string
	Seed       uint64
	Log        io.Writer // what happens meanwhile
	Verbose    bool      // every trial that has something to tell
}

// place is where bits are turned over.
type place struct {
	name, title string
	number      string // of the list in docs/TESTING.md
	readBack    bool   // the mirror has verify_writes = "readback"
	try         func(*trial) error
}

// Names are the places.
func Names() (names []string) {
	for _, p := range places() {
		names = append(names, p.name+"\t"+p.title)
	}
	return names
}

func places() []*place { return slices.Concat(wirePlaces, diskPlaces) }

// Run runs all trials at all places, one after the other.
func Run(ctx context.Context, o Options) (*Table, error) {
	chosen := places()
	if len(o.Only) > 0 {
		chosen = slices.DeleteFunc(chosen, func(p *place) bool { return !slices.Contains(o.Only, p.name) && !slices.Contains(o.Only, p.number) })
		for _, name := range o.Only {
			if !slices.ContainsFunc(chosen, func(p *place) bool { return p.name == name || p.number == name }) {
				return nil, fmt.Errorf("there is no place %q", name)
			}
		}
	}
	binary, err := build(ctx, o.Root, o.Temp)
	if err != nil {
		return nil, err
	}
	t := new(Table)
	for _, p := range chosen {
		r := &row{place: p}
		t.rows = append(t.rows, r)
		if err := o.run(ctx, binary, r); err != nil {
			return t, err
		}
		fmt.Fprintf(o.Log, "%s\n", r)
	}
	return t, nil
}

// run makes the trials of one place.
func (o *Options) run(ctx context.Context, binary string, r *row) error {
	began := time.Now()
	rng := rand.New(rand.NewPCG(o.Seed, uint64(len(r.name))<<32|uint64(r.name[0])<<8|uint64(r.name[len(r.name)-1])))
	var p *pair
	defer func() {
		if p != nil {
			p.close()
		}
		r.took = time.Since(began)
	}()
	for i := range o.Trials {
		if p == nil {
			var err error
			if p, err = newPair(ctx, binary, o.Temp, r.readBack, rng); err != nil {
				return fmt.Errorf("%s: start: %w", r.name, err)
			}
		}
		t := &trial{pair: p, ctx: ctx, number: i}
		err := t.begin()
		if err == nil {
			err = r.try(t)
		}
		if err == nil {
			err = t.finish()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil && !t.equal {
			err = errors.New("the images are not equal in the end")
		}
		r.add(&t.result, err)
		if o.Verbose && t.note != "" {
			fmt.Fprintf(o.Log, "%s, trial %d: %s: %+v\n", r.name, i, t.note, t.result)
		}
		if err != nil || t.wronglyGood || !t.found && !t.harmless {
			fmt.Fprintf(o.Log, "%s, trial %d: %+v: %v\n", r.name, i, t.result, err)
			p.close() // the next one gets a pair in order
			p = nil
		}
	}
	return nil
}
