package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"

	"github.com/blkmirror/blkmirror/engine"
)

const (
	barInterval  = 200 * time.Millisecond
	lineInterval = 5 * time.Second
	rateWindow   = 10 * time.Second // rates are averaged over this much of the past
)

// progressView shows a sync under way on standard error: a bar on a terminal, else a line now and then.
type progressView struct {
	warnings io.Writer // where a warning does not break the bar
	end      chan struct{}
	ended    sync.WaitGroup
}

// startProgress starts one goroutine, which stop ends.
func (a *app) startProgress(p *engine.Progress, f syncFlags) *progressView {
	v := &progressView{warnings: a.stderr, end: make(chan struct{})}
	switch terminal := isTerminal(a.stderr); {
	case f.quiet || f.json && !terminal:
	case terminal:
		bars := mpb.New(mpb.WithOutput(a.stderr), mpb.WithRefreshRate(barInterval), mpb.WithWidth(32))
		v.warnings = bars
		v.ended.Go(func() { v.showBar(bars, p) })
	default:
		ticker := time.NewTicker(lineInterval)
		v.ended.Go(func() {
			defer ticker.Stop()
			v.showLines(a.stderr, p, ticker.C)
		})
	}
	return v
}

func (v *progressView) stop() {
	close(v.end)
	v.ended.Wait()
}

func (v *progressView) warn(text string) {
	fmt.Fprintf(v.warnings, "%s: warning: %s\n", name, text)
}

func (v *progressView) showLines(w io.Writer, p *engine.Progress, ticks <-chan time.Time) {
	m := newMeter()
	for {
		select {
		case <-v.end:
			return
		case now := <-ticks:
			m.add(now, p.Scanned.Load())
			fmt.Fprintf(w, "%s: %s of %s, %s\n", name, percent(done(p), p.Size.Load()), formatBytes(p.Size.Load()), m.describe(p))
		}
	}
}

func (v *progressView) showBar(bars *mpb.Progress, p *engine.Progress) {
	m := newMeter()
	var text sync.Map // the decorators run on the library's goroutine
	show := func(key string) decor.Decorator {
		return decor.Any(func(decor.Statistics) string {
			s, _ := text.Load(key)
			return fmt.Sprint(s)
		})
	}
	text.Store("left", "opening")
	text.Store("right", "")
	bar := bars.AddBar(0, mpb.PrependDecorators(show("left")), mpb.AppendDecorators(show("right")))
	ticker := time.NewTicker(barInterval)
	defer ticker.Stop()
	for {
		select {
		case <-v.end:
			bar.Abort(true) // the summary takes its place
			bars.Wait()
			return
		case now := <-ticker.C:
			size := p.Size.Load()
			if size == 0 {
				continue
			}
			m.add(now, p.Scanned.Load())
			bar.SetTotal(size, false)
			bar.SetCurrent(done(p))
			text.Store("left", percent(done(p), size))
			text.Store("right", m.describe(p))
		}
	}
}

func done(p *engine.Progress) int64 { return p.Scanned.Load() + p.Resumed.Load() }

// meter tells the rate over the last while. What an earlier run confirmed counts as done, not as speed.
type meter struct {
	samples []sample
}

type sample struct {
	at      time.Time
	scanned int64
}

func newMeter() *meter { return &meter{samples: []sample{{at: time.Now()}}} }

func (m *meter) add(now time.Time, scanned int64) {
	m.samples = append(m.samples, sample{now, scanned})
	for len(m.samples) > 2 && now.Sub(m.samples[0].at) > rateWindow {
		m.samples = m.samples[1:]
	}
}

func (m *meter) rate() float64 {
	if len(m.samples) < 2 {
		return 0
	}
	first, last := m.samples[0], m.samples[len(m.samples)-1]
	return float64(last.scanned-first.scanned) / last.at.Sub(first.at).Seconds()
}

func (m *meter) describe(p *engine.Progress) string {
	eta := "ETA unknown"
	if r := m.rate(); r > 0 {
		eta = "ETA " + (time.Duration(float64(p.Size.Load()-done(p))/r) * time.Second).String()
	}
	return fmt.Sprintf("%s/s, %s, shipped %s, skipped %s, zero %s", formatBytes(int64(m.rate())), eta,
		formatBytes(p.Shipped.Load()), formatBytes(p.Skipped.Load()), formatBytes(p.Zero.Load()))
}

// isTerminal tells whether a bar can be drawn: some pseudo-terminals are no columns wide.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil && size.Col > 0
}
