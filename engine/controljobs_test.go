package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestControlVerify(t *testing.T) {
	asked := VerifyOptions{}
	told := CheckProgress{Mirror: "h:1", Done: 5, Total: 9}
	want := []VerifyResult{
		{Volume: "db", Mirror: "h:1", CheckedBytes: 9, SkippedBytes: 1, Extents: []CheckedExtent{{4096, 65536}}, Seconds: 2.5, ResumedAt: 3},
		{Volume: "db", Mirror: "west", CheckedBytes: 9, Extents: []CheckedExtent{}},
	}
	live := &fakeLive{verifyFn: func(_ context.Context, o VerifyOptions, tell func(CheckProgress)) ([]VerifyResult, error) {
		asked = o
		tell(CheckProgress{Mirror: "h:1", Done: 4, Total: 9})
		tell(told) // at once: the one before is of no use any more
		return []VerifyResult{want[0], {Volume: "db", Mirror: "west", CheckedBytes: 9}}, nil
	}}
	control, _ := controlOf(t, live)
	var heard []CheckProgress
	got, err := Verify(t.Context(), control, "db", VerifyOptions{Mirror: "h:1", Rate: 1 << 40}, func(p CheckProgress) { heard = append(heard, p) })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got) + cmp.Diff([]CheckProgress{told}, heard) + cmp.Diff(VerifyOptions{Mirror: "h:1", Rate: 1 << 40}, asked); diff != "" {
		t.Error(diff)
	}
	if _, err := Verify(t.Context(), control, "db", VerifyOptions{}, nil); err != nil || asked != (VerifyOptions{}) {
		t.Errorf("asked %+v, %v", asked, err)
	}
}

func TestControlRepair(t *testing.T) {
	asked := RepairOptions{}
	want := []RepairResult{{Volume: "db", Mirror: "east", Blocks: 3, ComparedBytes: 9, ShippedBytes: 4, Extents: []CheckedExtent{{0, 4}}, Seconds: 1},
		{Volume: "db", Mirror: "west", Nothing: true, Extents: []CheckedExtent{}}}
	live := &fakeLive{repairFn: func(_ context.Context, o RepairOptions, _ func(CheckProgress)) ([]RepairResult, error) {
		asked = o
		return []RepairResult{want[0], {Volume: "db", Mirror: "west", Nothing: true}}, nil
	}}
	control, _ := controlOf(t, live)
	for _, o := range []RepairOptions{{}, {Mirror: "a&b"}, {All: true}, {DryRun: true}, {Mirror: "x", All: true, DryRun: true}} {
		got, err := Repair(t.Context(), control, "db", o, nil)
		if diff := cmp.Diff(want, got) + cmp.Diff(o, asked); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
	live.repairFn = func(context.Context, RepairOptions, func(CheckProgress)) ([]RepairResult, error) { return nil, nil }
	if got, err := Repair(t.Context(), control, "db", RepairOptions{}, nil); err != nil || got == nil || len(got) > 0 {
		t.Errorf("no mirror: %v, %v", got, err)
	}
}

func TestControlJobsKeepErrors(t *testing.T) {
	live := &fakeLive{}
	control, _ := controlOf(t, live)
	done := []VerifyResult{{Volume: "db", Mirror: "east", Extents: []CheckedExtent{}}}
	for kind := range kindNames {
		want := &Error{Kind: Kind(kind), Op: "try", On: "it", Err: errors.New("<no> & \"no\""), Next: "next"}
		live.verifyFn = func(context.Context, VerifyOptions, func(CheckProgress)) ([]VerifyResult, error) {
			return done, want
		}
		results, err := Verify(t.Context(), control, "db", VerifyOptions{}, nil)
		got, ok := errors.AsType[*Error](err)
		if !ok || got.Kind != want.Kind || got.Error() != want.Error() || got.Next != want.Next {
			t.Errorf("%v became %v", want, err)
		}
		if diff := cmp.Diff(done, results); diff != "" {
			t.Error(diff)
		}
	}
}

func TestControlJobsRefuse(t *testing.T) {
	control, _ := controlOf(t, &fakeLive{})
	ctx := t.Context()
	for name, want := range map[string]Kind{"nothing": KindState, "": KindUsage, "disk": KindState} {
		_, err := Verify(ctx, control, name, VerifyOptions{}, nil)
		wantKind(t, err, want)
		_, err = Repair(ctx, control, name, RepairOptions{}, nil)
		wantKind(t, err, want)
	}
	_, err := Verify(ctx, control, "db", VerifyOptions{Rate: -1}, nil)
	wantKind(t, err, KindUsage)
	for _, query := range []string{"verify?volume=db&rate=1M", "repair?volume=db&all=x", "repair?volume=db&dry_run=2"} {
		resp := post(t, control, query)
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", query, resp.Status)
		}
	}
	_, err = Verify(ctx, control+"x", "db", VerifyOptions{}, nil)
	wantKind(t, err, KindNetwork)
}

// What cannot be asked here says why, and what to do.
func TestControlJobsElsewhere(t *testing.T) {
	failed := &failedVolume{dir: "/state/db"}
	failed.set(&Error{Kind: KindDevice, Op: "open", On: "/db", Err: errors.New("gone"), Next: "find it"})
	for next, live := range map[string]liveVolume{"attach one first": &mirror{mirrorOptions: mirrorOptions{name: "db"}}, "find it": failed} {
		control, _ := controlOf(t, live)
		_, verifyErr := Verify(t.Context(), control, "db", VerifyOptions{}, nil)
		_, repairErr := Repair(t.Context(), control, "db", RepairOptions{}, nil)
		for _, err := range []error{verifyErr, repairErr} {
			wantKind(t, err, KindState)
			if e, ok := errors.AsType[*Error](err); !ok || e.Next != next {
				t.Errorf("%v", err)
			}
		}
	}
}

func TestControlJobEndsWithItsClient(t *testing.T) {
	began, ended := make(chan bool, 1), make(chan error, 1)
	live := &fakeLive{verifyFn: func(ctx context.Context, _ VerifyOptions, tell func(CheckProgress)) ([]VerifyResult, error) {
		tell(CheckProgress{Mirror: "east", Done: 1, Total: 2})
		began <- true
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}}
	control, closeControl := controlOf(t, live)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	heard := make(chan CheckProgress, 1)
	verify := func(ctx context.Context) {
		_, err := Verify(ctx, control, "db", VerifyOptions{}, func(p CheckProgress) { heard <- p })
		failed <- err
	}
	go verify(ctx)
	<-began
	if p := <-heard; p.Done != 1 { // while it goes on
		t.Errorf("%+v", p)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	go verify(t.Context())
	<-began
	closeControl()
	<-ended
	err := <-failed
	wantKind(t, err, KindNetwork)
	if !strings.Contains(err.Error(), errDaemonStops.Error()) {
		t.Error(err)
	}
}

// deafWriter is a client that is there and reads nothing.
type deafWriter struct{ *httptest.ResponseRecorder }

func (deafWriter) Write([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

func TestControlJobEndsWhenNobodyReads(t *testing.T) {
	var cause error
	live := &fakeLive{verifyFn: func(ctx context.Context, _ VerifyOptions, tell func(CheckProgress)) ([]VerifyResult, error) {
		tell(CheckProgress{Mirror: "east"})
		<-ctx.Done()
		cause = context.Cause(ctx)
		return nil, ctx.Err()
	}}
	s := &server{volumes: map[string]*volume{"db": {name: "db", live: live}}}
	s.answerVerify(deafWriter{httptest.NewRecorder()}, httptest.NewRequest(http.MethodPost, "/verify?volume=db", nil))
	if !errors.Is(cause, os.ErrDeadlineExceeded) {
		t.Error(cause)
	}
}

// Progress is told now and then, however often the work has news, and the time-outs of short requests do not
// end a long one.
func TestControlJobTakesLongerThanARequest(t *testing.T) {
	t.Parallel() // it waits most of the time
	if testing.Short() {
		t.Skip("waits for longer than a request may take")
	}
	live := &fakeLive{verifyFn: func(ctx context.Context, _ VerifyOptions, tell func(CheckProgress)) ([]VerifyResult, error) {
		for n := range int64(1000) {
			tell(CheckProgress{Mirror: "east", Done: n, Total: 1000})
			tell(CheckProgress{Mirror: "west", Done: n, Total: 1000})
			time.Sleep(time.Millisecond)
		}
		select { // nothing to tell for a while
		case <-time.After(controlTimeout + time.Second):
			return []VerifyResult{{Volume: "db"}}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	control, _ := controlOf(t, live)
	lines, last := 0, map[string]int64{}
	results, err := Verify(t.Context(), control, "db", VerifyOptions{}, func(p CheckProgress) { lines++; last[p.Mirror] = p.Done })
	if err != nil || len(results) != 1 {
		t.Errorf("%+v, %v", results, err)
	}
	if diff := cmp.Diff(map[string]int64{"east": 999, "west": 999}, last); diff != "" || lines > 50 {
		t.Errorf("%d lines, %s", lines, diff)
	}
}

// What curl sees.
func TestControlJobAnswersLines(t *testing.T) {
	live := &fakeLive{repairFn: func(_ context.Context, _ RepairOptions, tell func(CheckProgress)) ([]RepairResult, error) {
		tell(CheckProgress{Mirror: "east", Done: 1, Total: 2})
		return []RepairResult{}, nil
	}}
	control, _ := controlOf(t, live)
	resp := post(t, control, "repair?volume=db")
	blob, err := io.ReadAll(resp.Body)
	want := `{"progress":{"mirror":"east","done_bytes":1,"total_bytes":2}}` + "\n" + `{"results":[]}` + "\n"
	if err != nil || string(blob) != want || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("%v %v: %s", err, resp.Header, blob)
	}
	live.repairFn = func(context.Context, RepairOptions, func(CheckProgress)) ([]RepairResult, error) {
		return nil, &Error{Kind: KindState, Op: "a", On: "b", Err: errors.New("c"), Next: "d"}
	}
	blob, _ = io.ReadAll(post(t, control, "repair?volume=db").Body)
	if want := `{"error":{"kind":"state","op":"a","on":"b","error":"c","next":"d"}}` + "\n"; string(blob) != want {
		t.Errorf("%s", blob)
	}
}

// A daemon that is none, or breaks off, is not believed.
func TestControlJobAnswersThatMakeNoSense(t *testing.T) {
	progress := `{"progress":{"mirror":"east","done_bytes":1,"total_bytes":2}}` + "\n"
	for name, answer := range map[string]string{
		"nothing": "", "cut off": progress, "cut off in a line": progress + `{"results":[`, "no JSON": "hello\n",
		"wrong types": `{"results":5}` + "\n", "an unknown kind": `{"error":{"kind":"odd","error":"x"}}` + "\n",
		"an endless line": `{"results":[{"volume":"` + strings.Repeat("x", maxJobLine) + `"}]}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Verify(t.Context(), says(t, answer), "db", VerifyOptions{}, nil)
			wantKind(t, err, KindNetwork)
		})
	}
	// What a later version adds is passed over.
	got, err := Verify(t.Context(), says(t, progress+`{"more":5}`+"\n"+`{"results":[{"volume":"db","odd":1}],"more":6}`+"\n"), "db", VerifyOptions{}, nil)
	if err != nil || len(got) != 1 || got[0].Volume != "db" {
		t.Errorf("%+v, %v", got, err)
	}
}

// post sends a request as curl would.
func post(t *testing.T, control, query string) *http.Response {
	t.Helper()
	client := http.Client{Transport: controlTransport(control)}
	resp, err := client.Post("http://control/"+query, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// says is a control socket that answers each request with the same text.
func says(t *testing.T, answer string) string {
	t.Helper()
	control := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", control)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(nc)); err == nil {
				fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s", answer) // an error: it had enough
			}
			nc.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-served })
	return control
}
