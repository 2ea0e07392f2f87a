package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/blkmirror/blkmirror/e2e/stamp"
)

// web asks the pages of --http 127.0.0.1:0.
func (n *node) web(method, path string) (code int, body string) {
	n.t.Helper()
	var st struct{ HTTP string }
	if err := json.Unmarshal([]byte(n.ask("status", "--json").ok(n.t).stdout), &st); err != nil || st.HTTP == "" {
		n.t.Fatalf("status does not say where the metrics are: %v", err)
	}
	return page(n.t, method, "http://"+st.HTTP+path)
}

// page is what is at a URL.
func page(t testing.TB, method, url string) (code int, body string) {
	t.Helper()
	r, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// scrape reads all series. It knows of the format what these need: labels in alphabetical order, no time.
func (n *node) scrape() map[string]float64 {
	n.t.Helper()
	code, body := n.web("GET", "/metrics")
	if code != 200 {
		n.t.Fatalf("/metrics: %d %s", code, body)
	}
	series := map[string]float64{}
	for s := bufio.NewScanner(strings.NewReader(body)); s.Scan(); {
		line := s.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if _, twice := series[line[:max(0, at)]]; err != nil || twice {
			n.t.Fatalf("%q: %v, twice: %v", line, err, twice)
		}
		series[line[:at]] = value
	}
	return series
}

// healthy waits until /healthz says ok.
func (n *node) healthy() {
	n.t.Helper()
	until(n.t, "health", func() bool {
		code, body := n.web("GET", "/healthz")
		return code == 200 && body == "ok\n"
	})
}

// sick waits until /healthz names a problem, and status --check the same ones.
func (n *node) sick(problem string) {
	n.t.Helper()
	until(n.t, "/healthz to say "+problem, func() bool {
		code, body := n.web("GET", "/healthz")
		r := n.ask("status", "--check")
		return code == 503 && r.code == 7 && strings.Contains(body, problem) && strings.TrimSpace(body) == strings.ReplaceAll(strings.TrimSpace(r.stdout), "; v: ", "\nv: ")
	})
}

var classes = []string{"reset", "timeout", "refused", "unreachable", "dns", "tls", "auth", "version", "mtu", "integrity", "protocol", "peer-stopped", "local-stop"}

// disconnects are the counts of one mirror by class; "" is the volume's own. Each class has to be there.
func disconnects(t testing.TB, series map[string]float64, mirror, volume string) (counts map[string]float64, sum float64) {
	t.Helper()
	counts = map[string]float64{}
	for _, class := range classes {
		n, ok := series[fmt.Sprintf("blkmirror_disconnects_total{class=%q,mirror=%q,volume=%q}", class, mirror, volume)]
		if !ok {
			t.Errorf("class %s of %q of %q is not there", class, mirror, volume)
		}
		counts[class] = n
		sum += n
	}
	return counts, sum
}

// A pair is scraped while a writer runs, its connection is lost, and its mirror is away or behind.
func TestMetrics(t *testing.T) {
	p := newKeyedPair(t, 16*mib)
	end := time.Now().Add(30 * 24 * time.Hour).UTC().Format(time.DateOnly)
	keys(t, p.mirror.state, "trust", "west", idOf(t, p.primary.state), "--until", end).ok(t)
	keys(t, p.primary.state, "trust", "east", idOf(t, p.mirror.state), "--until", end).ok(t)
	keys(t, p.primary.state, "trust", "south", idOf(t, filepath.Join(p.dir, "other"))).ok(t)
	p.primary.line = append(p.primary.line, "--http", "127.0.0.1:0", "--key-lifetime", "20s", "--max-lag", "v=2s")
	p.mirror.line = append(p.mirror.line, "--http", "127.0.0.1:0")
	p.mirrorUp()
	p.primary.up()
	p.cut()
	p.primary.healthy()
	p.mirror.healthy()
	name := p.link.addr
	of := func(metric string) string { return fmt.Sprintf("blkmirror_%s{mirror=%q,volume=\"v\"}", metric, name) }

	first := p.primary.scrape()
	for _, at := range [][2]string{{"", ""}, {"", "v"}, {name, "v"}} {
		if counts, sum := disconnects(t, first, at[0], at[1]); sum != 0 {
			t.Errorf("at the start %v: %v", at, counts)
		}
	}
	for _, cause := range []string{"wire", "source", "mirror"} {
		if n, ok := first[fmt.Sprintf("blkmirror_mismatches_total{cause=%q,mirror=%q,volume=\"v\"}", cause, name)]; !ok || n != 0 {
			t.Errorf("mismatches of cause %s: %v, %v", cause, n, ok)
		}
	}
	for series, is := range map[string]func(float64) bool{
		`blkmirror_key_expiry_days{kind="peer",name="east"}`:  func(days float64) bool { return days > 29 && days <= 31 },
		`blkmirror_key_expiry_days{kind="peer",name="south"}`: func(days float64) bool { return math.IsInf(days, 1) },
		`blkmirror_key_expiry_days{kind="key",name=""}`:       func(days float64) bool { return days > -1.0/1440 && days <= 20.0/86400 },
		`blkmirror_volume_state{state="ok",volume="v"}`:       func(n float64) bool { return n == 1 },
		`blkmirror_size_bytes{volume="v"}`:                    func(n float64) bool { return n == 16*mib },
		`blkmirror_max_lag_seconds{volume="v"}`:               func(n float64) bool { return n == 2 },
		`blkmirror_problems`:                                  func(n float64) bool { return n == 0 },
		`go_goroutines`:                                       func(n float64) bool { return n > 0 },
		`process_resident_memory_bytes`:                       func(n float64) bool { return n > 1e6 },
		of("flow_window_bytes"):                               func(n float64) bool { return n > 0 },
		of("flow_limit_bytes_per_second"):                     func(n float64) bool { return n == 0 },
		of("rtt_seconds"):                                     func(n float64) bool { return n > 0 && n < 60 },
	} {
		if n, ok := first[series]; !ok || !is(n) {
			t.Errorf("%s is %v, %v", series, n, ok)
		}
	}
	if _, ok := p.mirror.scrape()[`blkmirror_mirror_state{mirror="",state="connected",volume="v"}`]; !ok {
		t.Error("the mirror does not tell of its connection")
	}

	s := stampedOn(p, 16*mib, stamp.Load{})
	for range 10 {
		s.written(100)
		next := p.primary.scrape()
		for series, n := range first {
			if strings.HasPrefix(series, "blkmirror_") && strings.Contains(series, "_total") && next[series] < n {
				t.Errorf("%s goes back from %v to %v", series, n, next[series])
			}
		}
		first = next
	}
	if first[of("shipped_bytes_total")] == 0 || first[`blkmirror_export_written_bytes_total{volume="v"}`] == 0 {
		t.Error("nothing was written or shipped")
	}

	wire := first[of("wire_bytes_total")]
	p.link.cut()
	until(t, "the loss to be counted", func() bool {
		now := p.primary.scrape()
		counts, sum := disconnects(t, now, name, "v")
		if now[of("wire_bytes_total")] < wire {
			t.Errorf("bytes on the wire go back from %v to %v", wire, now[of("wire_bytes_total")])
		}
		wire = now[of("wire_bytes_total")]
		return counts["reset"] == 1 && sum == 1
	})
	p.connected()
	if counts, sum := disconnects(t, p.primary.scrape(), name, "v"); counts["reset"] != 1 || sum != 1 {
		t.Errorf("after one loss: %v", counts)
	}
	s.settled()
	p.primary.healthy()
	p.link.hold()
	p.primary.sick("v: mirror " + name + " is lagging")
	p.link.pass()
	p.primary.healthy()
	p.link.to("")
	p.primary.sick("v: mirror " + name + " is connecting")
	p.mirror.sick("v: its primary ")
	p.link.to(p.mirror.addr)
	p.primary.healthy()
	p.mirror.healthy()
	s.finish()
}

// What somebody can do at the address of --http: ask, and nothing else.
func TestMetricsStrangers(t *testing.T) {
	dir := folder(t)
	sized(t, dir, "v", 4*mib)
	n := newNode(t, checked, filepath.Join(dir, "n"), "--volume", "v="+filepath.Join(dir, "v"), "--http", "127.0.0.1:0")
	n.up()
	n.healthy()
	for request, want := range map[[2]string]int{
		{"POST", "/metrics"}: 405, {"POST", "/cut?volume=v"}: 404, {"GET", "/status"}: 404, {"GET", "/../node-id"}: 404, {"HEAD", "/metrics"}: 200, {"GET", "/"}: 200,
	} {
		if code, body := n.web(request[0], request[1]); code != want && !(want == 404 && code/100 == 3) {
			t.Errorf("%v: %d %s", request, code, body)
		}
	}
	for series := range n.scrape() {
		if strings.HasPrefix(series, "blkmirror_key_expiry_days") {
			t.Errorf("%s without keys", series)
		}
	}
	_, status := n.web("GET", "/")
	if status != "blkmirror: /metrics /healthz\n" {
		t.Errorf("%q", status)
	}
	var st struct{ HTTP string }
	if err := json.Unmarshal([]byte(n.ask("status", "--json").ok(t).stdout), &st); err != nil {
		t.Fatal(err)
	}
	taken := newNode(t, checked, filepath.Join(dir, "other"), "--volume", "v="+filepath.Join(dir, "v2"), "--http", st.HTTP)
	taken.launch()
	taken.wait().fails(t, 3, "serve metrics on "+st.HTTP, "in use", "--http")
	bad := newNode(t, checked, filepath.Join(dir, "other"), "--volume", "v="+filepath.Join(dir, "v2"), "--http", "9117")
	bad.launch()
	bad.wait().fails(t, 2, "serve metrics on 9117", "HOST:PORT")

	for _, text := range []string{"", "GET /metrics HTTP/1.1\r\nX: ", strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 300), "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"} {
		nc, err := net.Dial("tcp", st.HTTP)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		go io.WriteString(nc, text)
	}
	n.healthy()
	began := time.Now()
	n.down()
	if took := time.Since(began); took > 9*time.Second { // the time-outs of those connections would have ended them
		t.Errorf("the stop took %v", took)
	}
}
