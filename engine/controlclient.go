package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/blkmirror/blkmirror/wire"
)

// FetchStatus asks the daemon behind a control socket. Like all of this file it returns an *Error: one
// of KindNetwork where no daemon answers, else what the daemon said.
func FetchStatus(ctx context.Context, control string) (Status, error) {
	return FetchVolume(ctx, control, "")
}

// FetchVolume asks for the status with only one of the volumes in it; "": all.
func FetchVolume(ctx context.Context, control, volume string) (Status, error) {
	values := url.Values{}
	if volume != "" {
		values.Set("volume", volume)
	}
	return askDaemon[Status](ctx, control, http.MethodGet, "status", values, 0)
}

// Cut takes a cut of a volume now. With wait it returns when every mirror has committed and applied it,
// or with an error of KindNetwork when timeout is over, which names the mirrors that are missing.
func Cut(ctx context.Context, control, volume string, wait bool, timeout time.Duration) (CutResult, error) {
	values := url.Values{"volume": {volume}, "timeout": {timeout.String()}}
	if wait {
		values.Set("wait", "1")
	}
	return askDaemon[CutResult](ctx, control, http.MethodPost, "cut", values, timeout)
}

// Pause stops shipping of a volume to its mirrors, or, at a mirror, taking it.
func Pause(ctx context.Context, control, volume string) error {
	return tellDaemon(ctx, control, "pause", url.Values{"volume": {volume}})
}

// Resume ends a pause, and lets a mirror that holds try again. overwrite names a mirror whose content may
// be replaced although its history is another one; "": none.
func Resume(ctx context.Context, control, volume, overwrite string) error {
	values := url.Values{"volume": {volume}}
	if overwrite != "" {
		values.Set("overwrite", overwrite)
	}
	return tellDaemon(ctx, control, "resume", values)
}

// Rebuild sets a volume's damaged journal aside and starts a new one, with everything in doubt.
func Rebuild(ctx context.Context, control, volume string) error {
	return tellDaemon(ctx, control, "rebuild", url.Values{"volume": {volume}})
}

func tellDaemon(ctx context.Context, control, path string, values url.Values) error {
	_, err := askDaemon[struct{}](ctx, control, http.MethodPost, path, values, commandTimeout)
	return err
}

// askDaemon sends one request and returns its answer, for which the daemon may take a while.
func askDaemon[T any](ctx context.Context, control, method, path string, values url.Values, takes time.Duration) (T, error) {
	var result T
	client := http.Client{
		Timeout: takes + controlTimeout,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", control)
		}},
	}
	fail := func(err error) (T, error) {
		return *new(T), &Error{Kind: KindNetwork, Op: "ask daemon on", On: control, Err: err,
			Next: "start `blkmirror serve`, or name its socket with --control or BLKMIRROR_CONTROL"}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://control/"+path+"?"+values.Encode(), nil)
	if err != nil {
		return fail(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	body := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxAnswer))
	if resp.StatusCode != http.StatusOK {
		var said controlError
		if err := body.Decode(&said); err != nil || !slices.Contains(kindNames[:], said.Kind) {
			return fail(fmt.Errorf("it answered %s", resp.Status))
		}
		return *new(T), &Error{Kind: Kind(slices.Index(kindNames[:], said.Kind)), Op: said.Op, On: said.On,
			Err: errors.New(said.Error), Next: said.Next}
	}
	if err := body.Decode(&result); err != nil {
		return fail(fmt.Errorf("its answer makes no sense: %w", err))
	}
	return result, nil
}

// Next is what a person can do about a disconnect of this class; "": nothing is known.
func (d DisconnectCause) Next() string { return nextByClass[wire.Class(d.Class)] }
