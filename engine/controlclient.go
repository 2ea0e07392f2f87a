package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
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

// FetchHistory asks for the last disconnects, of one volume or (with "") of all.
func FetchHistory(ctx context.Context, control, volume string) (History, error) {
	values := url.Values{}
	if volume != "" {
		values.Set("volume", volume)
	}
	return askDaemon[History](ctx, control, http.MethodGet, "history", values, 0)
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
	client := http.Client{Timeout: takes + controlTimeout, Transport: controlTransport(control)}
	resp, err := sendDaemon(ctx, control, method, path, values, &client)
	if err != nil {
		return result, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxAnswer)).Decode(&result); err != nil {
		return *new(T), daemonError(control, fmt.Errorf("its answer makes no sense: %w", err))
	}
	return result, nil
}

// controlTransport has one connection, to a control socket, for one request.
func controlTransport(control string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", control)
	}}
}

// sendDaemon sends one request. A refusal comes back as the error that the daemon told.
func sendDaemon(ctx context.Context, control, method, path string, values url.Values, client *http.Client) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://control/"+path+"?"+values.Encode(), nil)
	if err != nil {
		return nil, daemonError(control, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, daemonError(control, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var said controlError
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxAnswer)).Decode(&said); err != nil || said.kind() < 0 {
		return nil, daemonError(control, fmt.Errorf("it answered %s", resp.Status))
	}
	return nil, said.read(control)
}

// read makes an *Error of what the daemon told.
func (c controlError) read(control string) error {
	if c.kind() < 0 {
		return daemonError(control, fmt.Errorf("it tells an error of unknown kind %q: %s", c.Kind, c.Error))
	}
	return &Error{Kind: c.kind(), Op: c.Op, On: c.On, Err: errors.New(c.Error), Next: c.Next}
}

// daemonError is for a daemon that does not answer, or not as one.
func daemonError(control string, err error) error {
	return &Error{Kind: KindNetwork, Op: "ask daemon on", On: control, Err: err,
		Next: "start `blkmirror serve`, or name its socket with --control or BLKMIRROR_CONTROL"}
}
