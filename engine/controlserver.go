package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"
)

var (
	errDaemonStops = errors.New("the daemon stops")
	errNotInTime   = errors.New("not every mirror has it in time")
)

// CutResult is what a cut came to. `cut --json` prints it: only ever added to.
type CutResult struct {
	Volume  string  `json:"volume"`
	Epoch   uint64  `json:"epoch"`  // the number of the cut
	Waited  bool    `json:"waited"` // every mirror has committed and applied it, or a later one
	Seconds float64 `json:"seconds"`
}

// controlError is an *Error on its way to a client.
type controlError struct {
	Kind  string `json:"kind"` // of kindNames
	Op    string `json:"op"`
	On    string `json:"on"`
	Error string `json:"error"`
	Next  string `json:"next"`
}

// kindNames are the kinds on the control socket: an interface, only ever added to.
var kindNames = [...]string{
	KindOther: "other", KindUsage: "usage", KindNetwork: "network", KindAuth: "authentication",
	KindIntegrity: "integrity", KindDevice: "device", KindState: "state",
}

// httpCodes are for curl; our own client looks at the error.
var httpCodes = map[Kind]int{
	KindUsage: http.StatusBadRequest, KindState: http.StatusConflict, KindNetwork: http.StatusGatewayTimeout,
}

func (s *server) controlRequests() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.answerStatus)
	mux.HandleFunc("GET /history", s.answerHistory)
	mux.HandleFunc("POST /cut", s.answerCut)
	mux.HandleFunc("POST /pause", s.command(func(v liveVolume, _ *http.Request) error { return v.pause() }))
	mux.HandleFunc("POST /resume", s.command(func(v liveVolume, r *http.Request) error { return v.resume(r.FormValue("overwrite")) }))
	mux.HandleFunc("POST /rebuild", s.command(func(v liveVolume, _ *http.Request) error { return v.rebuild() }))
	mux.HandleFunc("POST /verify", s.answerVerify)
	mux.HandleFunc("POST /repair", s.answerRepair)
	mux.HandleFunc("POST /scrub", s.answerScrub)
	return mux
}

func (s *server) answerStatus(w http.ResponseWriter, r *http.Request) {
	only := r.FormValue("volume")
	switch {
	case only == "":
		answerJSON(w, s.look(s.names), nil)
	case s.volumes[only] == nil:
		answerJSON(w, nil, noVolume("show volume", only))
	default:
		answerJSON(w, s.look([]string{only}), nil)
	}
}

func (s *server) nodeStatus() NodeStatus {
	return NodeStatus{ID: s.id, Name: hostName(), Version: s.Version, Disconnects: s.disconnects.count()}
}

func (s *server) answerHistory(w http.ResponseWriter, r *http.Request) {
	only := r.FormValue("volume")
	if only != "" && s.volumes[only] == nil {
		answerJSON(w, nil, noVolume("show history of", only))
		return
	}
	answerJSON(w, History{Node: s.nodeStatus(), History: s.disconnects.list(only)}, nil)
}

// answerCut may take as long as the request says. It ends early when the client goes away or the daemon
// stops: the request's context is of both.
func (s *server) answerCut(w http.ResponseWriter, r *http.Request) {
	began, volume := time.Now(), r.FormValue("volume")
	v, err := s.live(volume)
	if err != nil {
		answerJSON(w, nil, err)
		return
	}
	wait, waitErr := strconv.ParseBool(cmp.Or(r.FormValue("wait"), "0"))
	timeout, err := time.ParseDuration(cmp.Or(r.FormValue("timeout"), commandTimeout.String()))
	if waitErr != nil || err != nil || timeout <= 0 || timeout > maxControlWait {
		answerJSON(w, nil, &Error{Kind: KindUsage, Op: "cut", On: volume, Err: errors.New("bad wait or timeout"),
			Next: "give wait=1 and a timeout such as 60s, at most 24h"})
		return
	}
	takeTime(w, timeout)
	ctx, cancel := context.WithTimeoutCause(r.Context(), timeout, errNotInTime)
	defer cancel()
	number, err := v.cut(ctx, wait)
	if err != nil {
		err = waitError(ctx, volume, err)
	}
	answerJSON(w, CutResult{Volume: volume, Epoch: number, Waited: wait, Seconds: time.Since(began).Seconds()}, err)
}

// waitError says why a wait ended where the volume itself did not.
func waitError(ctx context.Context, volume string, err error) error {
	if _, told := errors.AsType[*Error](err); told || ctx.Err() == nil {
		return err
	}
	return &Error{Kind: KindNetwork, Op: "cut", On: volume, Err: context.Cause(ctx),
		Next: "see `blkmirror status " + volume + "`; the cut is taken, and mirrors get it when they can"}
}

// command makes a request of what is done to a live volume and answers nothing but success.
func (s *server) command(do func(liveVolume, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := s.live(r.FormValue("volume"))
		if err == nil {
			takeTime(w, commandTimeout)
			err = do(v, r)
		}
		answerJSON(w, struct{}{}, err)
	}
}

// live finds a volume that has a role.
func (s *server) live(name string) (liveVolume, error) {
	v := s.volumes[name]
	if v == nil {
		return nil, noVolume("find volume", name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.live == nil {
		return nil, &Error{Kind: KindState, Op: "use volume", On: name, Err: errors.New("is no live volume: it is neither primary nor mirror here"),
			Next: "give it an --export or a --mirror, or role = \"mirror\", and start the daemon again"}
	}
	return v.live, nil
}

func noVolume(op, name string) error {
	if name == "" {
		return &Error{Kind: KindUsage, Op: op, On: "without a name", Err: errors.New("no volume given"), Next: "name a volume"}
	}
	return &Error{Kind: KindState, Op: op, On: name, Err: errors.New("the daemon has no volume of this name"),
		Next: "see all with `blkmirror status`"}
}

// takeTime lets a request last longer than the server's own time-outs, which are for those that send or
// read slowly. The one for reading has to go as well: while a handler runs, the server reads on to learn
// that the client went away, and would take a time-out for that.
func takeTime(w http.ResponseWriter, timeout time.Duration) {
	c := http.NewResponseController(w)
	// An error here would mean a connection that knows no deadlines; ours is a unix socket.
	_ = c.SetReadDeadline(time.Time{})
	_ = c.SetWriteDeadline(time.Now().Add(timeout + controlTimeout))
}

// answerJSON sends a result or an error. What goes wrong meanwhile is the client's connection.
func answerJSON(w http.ResponseWriter, result any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		said := errorOf(err)
		w.WriteHeader(cmp.Or(httpCodes[said.kind()], http.StatusInternalServerError))
		result = said
	}
	_ = json.NewEncoder(w).Encode(result)
}

// errorOf is what a client is told about an error; read is its other half.
func errorOf(err error) controlError {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Op: "answer", On: "the request", Err: err}
	}
	return controlError{Kind: kindNames[e.Kind], Op: e.Op, On: e.On, Error: e.Err.Error(), Next: e.Next}
}

// kind is negative for a name that is none.
func (c controlError) kind() Kind { return Kind(slices.Index(kindNames[:], c.Kind)) }
