package engine

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Verify and repair take as long as they take, so their answers are lines, each a JSON object:
//
//	POST /verify?volume=[&mirror=][&rate=BYTES]             {"progress":CheckProgress}*  {"results":[VerifyResult…]}
//	POST /repair?volume=[&mirror=][&all=1][&dry_run=1][&from=mirror] {"progress":CheckProgress}*  {"results":[RepairResult…]}
//
// The last line has an "error" (a controlError) where the work ended early, and then results only of mirrors
// that were done before. An answer without a last line was cut off. Requests that make no sense are answered
// with another code than 200, as those of controlserver.go. The work ends when the client goes away, when it
// does not read, and when the daemon stops.

const (
	progressEvery = 500 * time.Millisecond // at most one line a mirror in that time
	maxJobLine    = maxAnswer              // bytes of a line that a client believes
)

// jobLine is one line of an answer: a progress, or, in the last line, the other two.
type jobLine[R any] struct {
	Progress *CheckProgress `json:"progress,omitempty"`
	Results  []R            `json:"results,omitzero"` // never nil in the last line of a success
	Error    *controlError  `json:"error,omitempty"`
}

func (s *server) answerVerify(w http.ResponseWriter, r *http.Request) {
	rate, err := strconv.ParseInt(cmp.Or(r.FormValue("rate"), "0"), 10, 64)
	if err != nil || rate < 0 {
		answerJSON(w, nil, badJob("verify", r, "bad rate", "give a rate in bytes a second, or none"))
		return
	}
	o := VerifyOptions{Mirror: r.FormValue("mirror"), Rate: rate}
	answerJob(s, w, r, func(ctx context.Context, v liveVolume, tell func(CheckProgress)) ([]VerifyResult, error) {
		results, err := v.verify(ctx, o, tell)
		for i := range results {
			results[i].Extents = listed(results[i].Extents)
		}
		return results, err
	})
}

func (s *server) answerRepair(w http.ResponseWriter, r *http.Request) {
	all, allErr := strconv.ParseBool(cmp.Or(r.FormValue("all"), "0"))
	dryRun, dryErr := strconv.ParseBool(cmp.Or(r.FormValue("dry_run"), "0"))
	if allErr != nil || dryErr != nil {
		answerJSON(w, nil, badJob("repair", r, "bad all or dry_run", "give all=1 and dry_run=1, or leave them away"))
		return
	}
	o := RepairOptions{Mirror: r.FormValue("mirror"), All: all, DryRun: dryRun, From: r.FormValue("from")}
	if o.From != "" && o.From != "primary" && o.From != "mirror" {
		answerJSON(w, nil, badJob("repair", r, "bad from", "give from=primary or from=mirror"))
		return
	}
	answerJob(s, w, r, func(ctx context.Context, v liveVolume, tell func(CheckProgress)) ([]RepairResult, error) {
		results, err := v.repair(ctx, o, tell)
		for i := range results {
			results[i].Extents = listed(results[i].Extents)
		}
		return results, err
	})
}

func badJob(op string, r *http.Request, what, next string) error {
	return &Error{Kind: KindUsage, Op: op, On: r.FormValue("volume"), Err: errors.New(what), Next: next}
}

// listed makes a list that JSON shows as empty and not as null.
func listed(e []CheckedExtent) []CheckedExtent {
	if e == nil {
		return []CheckedExtent{}
	}
	return e
}

// answerJob does the work of a request and tells meanwhile how far it is.
func answerJob[R any](s *server, w http.ResponseWriter, r *http.Request, do func(context.Context, liveVolume, func(CheckProgress)) ([]R, error)) {
	v, err := s.live(r.FormValue("volume"))
	if err != nil {
		answerJSON(w, nil, err)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	t := &jobTeller{w: w, cancel: cancel, end: make(chan struct{})}
	t.begin()
	var routine sync.WaitGroup
	routine.Go(t.routineTell)
	results, err := do(ctx, v, t.note)
	close(t.end)
	routine.Wait()

	last := jobLine[R]{Results: results}
	if err != nil {
		if _, told := errors.AsType[*Error](err); !told && ctx.Err() != nil {
			err = &Error{Kind: KindNetwork, Op: r.URL.Path[1:], On: r.FormValue("volume"), Err: context.Cause(ctx), Next: "say the same again"}
		}
		said := errorOf(err)
		last.Error = &said
	} else if results == nil {
		last.Results = []R{}
	}
	t.line(last)
}

// jobTeller writes the lines of one answer. A client that reads slowly gets fewer of them and never makes the
// work wait; one that does not read at all ends it.
type jobTeller struct {
	w      http.ResponseWriter
	cancel context.CancelCauseFunc
	end    chan struct{} // closed when the work is done

	mu     sync.Mutex
	latest []CheckProgress // of each mirror, and not written yet
}

// begin tells the client that its request is taken.
func (t *jobTeller) begin() {
	takeTime(t.w, 0)
	t.w.Header().Set("Content-Type", "application/x-ndjson")
	t.w.WriteHeader(http.StatusOK)
	t.flush()
}

// note is for the work: it keeps the newest of each mirror.
func (t *jobTeller) note(p CheckProgress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.latest, func(q CheckProgress) bool { return q.Mirror == p.Mirror })
	if i < 0 {
		t.latest = append(t.latest, p)
		return
	}
	t.latest[i] = p
}

// routineTell writes what was noted, until the work is done.
func (t *jobTeller) routineTell() {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-t.end:
			done = true
		case <-tick.C:
		}
		t.mu.Lock()
		latest := t.latest
		t.latest = nil
		t.mu.Unlock()
		for _, p := range latest {
			t.line(jobLine[struct{}]{Progress: &p})
		}
	}
}

// line writes one line. An error is of the client, who is away or does not read: nobody wants the work then.
func (t *jobTeller) line(v any) {
	takeTime(t.w, 0)
	if err := json.NewEncoder(t.w).Encode(v); err != nil {
		t.cancel(err)
		return
	}
	t.flush()
}

func (t *jobTeller) flush() {
	if err := http.NewResponseController(t.w).Flush(); err != nil {
		t.cancel(err)
	}
}

// verify of a volume that failed is refused, like all that is asked of it but to be opened again.
func (f *failedVolume) verify(context.Context, VerifyOptions, func(CheckProgress)) ([]VerifyResult, error) {
	return nil, f.refusal("verify")
}

func (f *failedVolume) repair(context.Context, RepairOptions, func(CheckProgress)) ([]RepairResult, error) {
	return nil, f.refusal("repair")
}

// Verify has mirrors of a volume compared with their primary, and ships nothing. A difference is no error:
// it is in the results, and its mirror is read-only then. tell is called with how far it is; it may be nil.
// Where there is an error as well, the results are those of mirrors that were done before.
func Verify(ctx context.Context, control, volume string, o VerifyOptions, tell func(CheckProgress)) ([]VerifyResult, error) {
	values := url.Values{"volume": {volume}}
	if o.Mirror != "" {
		values.Set("mirror", o.Mirror)
	}
	if o.Rate != 0 {
		values.Set("rate", strconv.FormatInt(o.Rate, 10))
	}
	return followDaemon[VerifyResult](ctx, control, "verify", values, tell)
}

// Repair has the blocks that a mirror of a volume holds in quarantine compared and brought. When it returns
// without an error the mirrors are no longer read-only, save with DryRun. For the rest as Verify.
func Repair(ctx context.Context, control, volume string, o RepairOptions, tell func(CheckProgress)) ([]RepairResult, error) {
	values := url.Values{"volume": {volume}}
	if o.Mirror != "" {
		values.Set("mirror", o.Mirror)
	}
	if o.All {
		values.Set("all", "1")
	}
	if o.DryRun {
		values.Set("dry_run", "1")
	}
	if o.From != "" {
		values.Set("from", o.From)
	}
	return followDaemon[RepairResult](ctx, control, "repair", values, tell)
}

// followDaemon sends one request and reads lines until the last one. The work has no time-out; that the
// request is taken has one.
func followDaemon[R any](ctx context.Context, control, path string, values url.Values, tell func(CheckProgress)) ([]R, error) {
	transport := controlTransport(control)
	transport.ResponseHeaderTimeout = controlTimeout
	resp, err := sendDaemon(ctx, control, http.MethodPost, path, values, &http.Client{Transport: transport})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxJobLine)
	for lines.Scan() {
		var line jobLine[R]
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, daemonError(control, fmt.Errorf("its answer makes no sense: %w", err))
		}
		switch {
		case line.Error != nil:
			return line.Results, line.Error.read(control)
		case line.Results != nil:
			return line.Results, nil
		case line.Progress != nil && tell != nil:
			tell(*line.Progress)
		}
	}
	return nil, daemonError(control, fmt.Errorf("its answer was cut off: %w", cmp.Or(lines.Err(), io.ErrUnexpectedEOF)))
}
