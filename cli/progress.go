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
)

const (
	barInterval  = 200 * time.Millisecond
	lineInterval = 5 * time.Second
	rateWindow   = 10 * time.Second // rates are averaged over this much of the past
)

// figures are what a view shows of the work at a moment.
type figures struct {
	size, done int64  // bytes; size 0: not known yet
	moved      int64  // bytes of which the speed is told
	more       string // what is told behind the speed
}

// progressView shows work under way on standard error: a bar on a terminal, else a line now and then.
type progressView struct {
	warnings io.Writer // where a warning does not break the bar
	end      chan struct{}
	ended    sync.WaitGroup
}

// startProgress starts one goroutine, which stop ends; none where nothing is to be shown.
func (a *app) startProgress(read func() figures, quiet bool) *progressView {
	v := &progressView{warnings: a.stderr, end: make(chan struct{})}
	switch {
	case quiet:
	case isTerminal(a.stderr):
		bars := mpb.New(mpb.WithOutput(a.stderr), mpb.WithRefreshRate(barInterval), mpb.WithWidth(32))
		v.warnings = bars
		v.ended.Go(func() { v.showBar(bars, read) })
	default:
		ticker := time.NewTicker(lineInterval)
		v.ended.Go(func() {
			defer ticker.Stop()
			v.showLines(a.stderr, read, ticker.C)
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

func (v *progressView) showLines(w io.Writer, read func() figures, ticks <-chan time.Time) {
	m := newMeter()
	for {
		select {
		case <-v.end:
			return
		case now := <-ticks:
			f := read()
			m.add(now, f.moved)
			fmt.Fprintf(w, "%s: %s of %s, %s\n", name, percent(f.done, f.size), formatBytes(f.size), m.describe(f))
		}
	}
}

func (v *progressView) showBar(bars *mpb.Progress, read func() figures) {
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
			f := read()
			if f.size == 0 {
				continue
			}
			m.add(now, f.moved)
			bar.SetTotal(f.size, false)
			bar.SetCurrent(f.done)
			text.Store("left", percent(f.done, f.size))
			text.Store("right", m.describe(f))
		}
	}
}

// meter tells the rate over the last while.
type meter struct {
	samples []sample
}

type sample struct {
	at    time.Time
	moved int64
}

func newMeter() *meter { return &meter{samples: []sample{{at: time.Now()}}} }

func (m *meter) add(now time.Time, moved int64) {
	m.samples = append(m.samples, sample{now, moved})
	for len(m.samples) > 2 && now.Sub(m.samples[0].at) > rateWindow {
		m.samples = m.samples[1:]
	}
}

func (m *meter) rate() float64 {
	if len(m.samples) < 2 {
		return 0
	}
	first, last := m.samples[0], m.samples[len(m.samples)-1]
	return float64(last.moved-first.moved) / last.at.Sub(first.at).Seconds()
}

func (m *meter) describe(f figures) string {
	eta := "ETA unknown"
	if r := m.rate(); r > 0 {
		eta = "ETA " + (time.Duration(float64(f.size-f.done)/r) * time.Second).String()
	}
	return fmt.Sprintf("%s/s, %s%s", formatBytes(int64(m.rate())), eta, f.more)
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
