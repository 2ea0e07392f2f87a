package engine

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"github.com/blkmirror/blkmirror/wire"
)

// The metrics are served to whoever reaches the address of --http (docs/METRICS.md): they tell no data of a
// volume. So nothing is believed of who asks, and all that he can take has a limit.
//
//	GET /metrics    Prometheus
//	GET /healthz    200, or 503 with one line a problem
//	GET /           names the two

const (
	webHeaderTime  = 5 * time.Second
	webRequestTime = 10 * time.Second       // to send one, and to read its answer
	webIdleTime    = 2 * time.Minute        // between two of one connection: more than the usual pause between scrapes
	webHeaderBytes = 8 << 10                // net/http takes half as much more
	webPlaces      = 32                     // connections; others wait in the kernel
	webLast        = 500 * time.Millisecond // what answers have that are under way when the daemon stops
)

// web is the HTTP server.
type web struct {
	listener net.Listener
	http     *http.Server
	conns    sync.WaitGroup // one for each connection's goroutine
}

// listenWeb takes the address, and serves nobody yet. nil: none is wanted.
func (s *server) listenWeb() (*web, error) {
	if s.HTTP == "" {
		return nil, nil
	}
	l, err := wire.Listen(s.HTTP)
	if err != nil {
		return nil, &Error{Kind: KindNetwork, Op: "serve metrics on", On: s.HTTP, Err: err, Next: "choose another --http address or port, or end what uses it"}
	}
	s.strange.log = s.log
	w := &web{listener: netutil.LimitListener(l, webPlaces)}
	w.http = &http.Server{
		Handler: s.webPages(), ConnState: w.count, ErrorLog: log.New(&s.strange, "", 0), ReadHeaderTimeout: webHeaderTime, ReadTimeout: webRequestTime,
		WriteTimeout: webRequestTime, IdleTimeout: webIdleTime, MaxHeaderBytes: webHeaderBytes,
	}
	return w, nil
}

// routineWeb serves until ctx ends. Who is slow then is not waited for.
func (s *server) routineWeb(ctx context.Context) {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), webLast)
		defer cancel()
		if s.web.http.Shutdown(ctx) != nil {
			s.web.http.Close()
		}
	})
	s.log(fmt.Sprintf("metrics on http://%s/metrics", s.web.listener.Addr()))
	if err := s.web.http.Serve(s.web.listener); !errors.Is(err, http.ErrServerClosed) {
		s.log(fmt.Sprintf("metrics: %v", err))
	}
	if stop() {
		s.web.http.Close()
	} else {
		<-stopped
	}
	s.web.conns.Wait()
}

// count lets a stop wait for the goroutines of connections, and so for what they answer: the server itself does not,
// once it is closed. The first state comes before the goroutine, the last one at its end.
func (w *web) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		w.conns.Add(1)
	case http.StateClosed:
		w.conns.Done()
	}
}

func (s *server) webPages() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector(s.observe), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: log.New(&s.strange, "metrics: ", 0)}))
	mux.HandleFunc("GET /healthz", s.answerHealth)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answerText(w, http.StatusOK, "blkmirror: /metrics /healthz")
	})
	return mux
}

// answerHealth says what `status --check` does.
func (s *server) answerHealth(w http.ResponseWriter, _ *http.Request) {
	st := s.look(s.names)
	if problems := st.Problems(0); len(problems) > 0 {
		answerText(w, http.StatusServiceUnavailable, strings.Join(problems, "\n"))
		return
	}
	answerText(w, http.StatusOK, "ok")
}

// answerText sends a text of lines. What goes wrong meanwhile is the client's connection.
func answerText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = fmt.Fprintln(w, text)
}
