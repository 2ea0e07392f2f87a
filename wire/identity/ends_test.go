package identity

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// days of each End, by kind and name; "never".
func endsOf(n *testNode) map[string]string {
	told := map[string]string{}
	for _, e := range n.Ends() {
		left := "never"
		if !e.At.IsZero() {
			left = fmt.Sprintf("%.0f", e.At.Sub(n.now()).Hours()/24)
		}
		told[strings.TrimSpace(e.Kind+" "+e.Name)] = left
	}
	return told
}

func TestEnds(t *testing.T) {
	clock := newClock()
	want := func(n *testNode, entries ...string) {
		t.Helper()
		var got []string
		for k, v := range endsOf(n) {
			got = append(got, k+" "+v)
		}
		slices.Sort(got)
		if slices.Sort(entries); !slices.Equal(got, entries) {
			t.Errorf("ends %q, want %q", got, entries)
		}
	}
	plain := newNode(t, clock)
	want(plain, "key never")
	must(t, plain.Trust("east", randomID().String(), nil))
	must(t, plain.Trust("west", randomID().String(), []Grant{{As: AsMirror, Until: clock.now().Add(12 * days)}}))
	_, err := plain.Rotate(7 * days)
	must(t, err)
	want(plain, "key 7", "peer east never", "peer west 12")
	clock.pass(8 * days)
	want(plain, "key never", "peer east never", "peer west 4")

	rolling := newNode(t, clock, func(o *Options) { o.Lifetime = 60 * days })
	want(rolling, "key 60")
	clock.pass(41*days - certain)
	rolling.sure()          // the next one is made
	want(rolling, "key 20") // peers have a third of the lifetime to learn of it
	clock.pass(20 * days)   // nobody ticks: it is current all the same
	want(rolling, "key 60")

	authority := newAuthority(t, clock) // ends in 1000 days
	dir := t.TempDir()
	a := newNode(t, clock, authority.issue(t, dir, "a.example.org", clock.now().Add(30*days)))
	want(a, "key never", "certificate 30", "ca 1000")
	clock.pass(990 * days)
	if texts := a.Warnings(); !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, "of the CA in "+a.options.CA+" ends in 10 days") }) {
		t.Errorf("the end of the CA is not announced: %q", texts)
	}
	old, err := os.ReadFile(a.options.CA)
	must(t, err)
	newAuthority(t, clock).issue(t, dir, "a.example.org", clock.now().Add(60*days))
	next, err := os.ReadFile(a.options.CA)
	must(t, err)
	must(t, os.WriteFile(a.options.CA, slices.Concat(next, old), 0o600))
	a.Tick()
	want(a, "key never", "certificate 60", "ca 10")
	clock.pass(20 * days) // what has ended may stay in the file
	want(a, "key never", "certificate 40", "ca 980")
	clock.pass(1000 * days)
	want(a, "key never", "certificate -960", "ca -20")
}

// TestStateDoesNotWaitForFiles: whoever asks for the state of the certificates waits for no disk.
func TestStateDoesNotWaitForFiles(t *testing.T) {
	clock := newClock()
	dir := t.TempDir()
	a := newNode(t, clock, newAuthority(t, clock).issue(t, dir, "a.example.org", clock.now().Add(30*days)))
	must(t, os.Remove(a.options.CA))
	must(t, syscall.Mkfifo(a.options.CA, 0o600)) // a file that hangs: its open waits for a writer
	ticked := make(chan struct{})
	go func() {
		a.Tick()
		close(ticked)
	}()
	writer := make(chan *os.File)
	go func() { // opened once the reader is there, which hangs in its read from then on
		f, _ := os.OpenFile(filepath.Join(dir, filepath.Base(a.options.CA)), os.O_WRONLY, 0)
		writer <- f
	}()
	f := <-writer
	asked := make(chan int)
	go func() { asked <- len(a.Ends()) + len(a.Warnings()) }()
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Error("the state of the certificates waits for the disk")
	}
	f.Close()
	<-ticked
}
