package cli

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/blkmirror/blkmirror/engine"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigErrorsNameLineAndKey(t *testing.T) {
	volume := func(lines ...string) string { return "[volume.a]\npath = 'p'\n" + strings.Join(lines, "\n") + "\n" }
	mirror := func(lines ...string) string {
		return volume(append([]string{"[[volume.a.mirror]]", "address = '127.0.0.1:1'", "[[volume.a.mirror]]"}, lines...)...)
	}
	tests := []struct{ name, text, says string }{
		{"unknown key", "state = 's'\n\nlisten_ = 'l'\n", `line 3: unknown key "listen_"`},
		{"unknown key in a volume", volume("size = 5"), `line 3: unknown key "volume.a.size"`},
		{"unknown table", "[volumes]\na = 'p'\n", `line 1: unknown key "volumes"`},
		{"state is a number", "\nstate = 5\n", "line 2: state: must be a text"},
		{"http is a number", "\nhttp = 9117\n", "line 2: http: must be a text"},
		{"insecure is a text", "state = 's'\ninsecure = 'yes'\n", "line 2: insecure: must be true or false"},
		{"volume is no table", "volume = 'x'\n", "line 1: volume: must be tables [volume.NAME]"},
		{"a volume is no table", "[volume]\na = 'x'\n", "line 2: volume.a: must be a table"},
		{"syntax", "state = \n", "line 1"},
		{"key twice", "state = 's'\nstate = 't'\n", "line 2"},
		{"no path", "state = 's'\n[volume.a]\n", "line 2: [volume.a] has no path"},
		{"empty path", "[volume.a]\npath = ''\n", "line 2: volume.a.path"},
		{"bad name", "[volume.'a/b']\npath = 'p'\n", `line 1: volume name "a/b" must be`},
		{"path is a number", "[volume.a]\npath = 5\n", "line 2: volume.a.path: must be a text"},
		{"export", volume("", "export = '/run/x'"), `line 4: volume.a.export: "/run/x": give unix:PATH or tcp:HOST:PORT`},
		{"export to the world", volume("export = 'tcp:192.0.2.1:1'"), "line 3: volume.a.export"},
		{"role", volume("role = 'master'"), "line 3: volume.a.role: \"master\": give primary or mirror"},
		{"interval", volume("interval = '1'"), "line 3: volume.a.interval"},
		{"interval as a number", volume("interval = 5"), "line 3: volume.a.interval"},
		{"interval as a truth", volume("interval = true"), "line 3: volume.a.interval: must be a text"},
		{"mode", volume("mode = 'sync'"), "line 3: volume.a.mode: \"sync\": sync is not built yet"},
		{"max_lag", volume("max_lag = 'x'"), "line 3: volume.a.max_lag"},
		{"block_size", volume("block_size = 5000"), "line 3: volume.a.block_size: \"5000\": give a power of two"},
		{"on_staging_full", volume("on_staging_full = 'x'"), "line 3: volume.a.on_staging_full"},
		{"on_reboot", volume("on_reboot = 'x'"), "line 3: volume.a.on_reboot"},
		{"verify_writes", volume("verify_writes = 'yes'"), "line 3: volume.a.verify_writes: \"yes\": give off or readback"},
		{"verify_writes as a truth", volume("verify_writes = true"), "line 3: volume.a.verify_writes: must be a text in quotes: off|readback"},
		{"scrub", volume("scrub = '1s'"), "line 3: volume.a.scrub: \"1s\": give weekly, daily, off, or a time of at least 1m0s"},
		{"on_mismatch", volume("on_mismatch = 'stop'"), "line 3: volume.a.on_mismatch: \"stop\": give continue or freeze"},
		{"staging_limit", volume("staging_limit = '10 miles'"), "line 3: volume.a.staging_limit"},
		{"rate", volume("rate = 'fast'"), "line 3: volume.a.rate: \"fast\": give bytes a second"},
		{"rate of nothing", volume("rate = 0"), "line 3: volume.a.rate: \"0\": nothing would move"},
		{"rate of next to nothing", volume("rate = '1K'"), "line 3: volume.a.rate: \"1K\": give at least 16.0 KiB"},
		{"rate at half a time", volume("rate = '1M@08:00'"), "line 3: volume.a.rate: \"1M@08:00\": give the time as FROM-TO"},
		{"rate as a truth", volume("rate = true"), "line 3: volume.a.rate: must be a text in quotes"},
		{"rate with an unknown key", volume("rate = [{limit = '1M', until = '18:00'}]"), "line 3: volume.a.rate: unknown key \"until\"; give from, to and limit"},
		{"rate without a limit", volume("rate = [{from = '08:00', to = '18:00'}]"), "line 3: volume.a.rate: give bytes a second"},
		{"rate without an end", volume("rate = [{from = '08:00', limit = '1M'}]"), "line 3: volume.a.rate: give both from and to"},
		{"rate at a wrong time", volume("rate = [{from = '8', to = '18:00', limit = '1M'}]"), "line 3: volume.a.rate: \"8\" is no time of the day such as 08:00"},
		{"rate of a mirror", volume("[[volume.a.mirror]]\naddress = 'h:1'\nrate = 'fast'"), "line 5: volume.a.mirror.rate: \"fast\": give bytes a second"},
		{"rate of a mirror with an unknown key", volume("[[volume.a.mirror]]\naddress = 'h:1'\nrate = [{limit = '1M', until = '18:00'}]"), "line 5: volume.a.mirror.rate: unknown key \"until\""},
		{"rate from a number", volume("rate = [{from = 8, to = 18, limit = '1M'}]"), "line 3: volume.a.rate: from must be a text"},
		{"congestion", volume("congestion = 'B B R'"), "line 3: volume.a.congestion: \"B B R\": give auto, default, or a name"},
		{"mirror as a text", volume("mirror = '127.0.0.1:1'"), "line 3: volume.a.mirror: must be tables [[volume.a.mirror]]"},
		{"mirror without address", mirror("name = 'x'"), "line 5: volume.a.mirror: has no address"},
		{"mirror with unknown key", mirror("addr = 'x'"), `line 6: unknown key "volume.a.mirror.addr"`},
		{"mirror with a number", mirror("address = 5"), "line 6: volume.a.mirror.address: must be a text"},
		{"mirror with a bad name", mirror("name = 'a b'"), "line 6: volume.a.mirror.name: \"a b\" must be"},
		{"mirror with a bad address", mirror("", "address = 'x'"), "line 7: volume.a.mirror.address: \"x\" is not HOST:PORT"},
		{"mirror twice", mirror("name = 'x'", "address = '127.0.0.1:1'"), "line 7: volume.a.mirror.address: mirror x is given twice"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := writeConfig(t, test.text)
			_, err := loadConfig(path)
			if err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("says %v, not %q", err, test.says)
			}
			if exitCode(err) != exitUsage {
				t.Errorf("exit %d", exitCode(err))
			}
		})
	}
	if _, err := loadConfig("/does/not/exist"); exitCode(err) != exitUsage {
		t.Error(err)
	}
}

func TestConfigHoldsAllThereIs(t *testing.T) {
	got, err := loadConfig(writeConfig(t, `
state = 's'
listen = 'l'
control = 'c'
http = ':9117'
insecure = true
[volume.all]
path = 'p'
role = 'primary'
export = 'unix:/run/x'
interval = '10ms'
mode = 'async'
max_lag = '5m'
block_size = '128KiB'
on_staging_full = 'bulk'
on_reboot = 'trust'
verify_writes = 'readback'
on_mismatch = 'freeze'
scrub = 'daily'
staging_limit = '10GiB'
rate = [{from = '22:00', to = '06:30', limit = '100M'}]
congestion = 'bbr'
[[volume.all.mirror]]
address = '127.0.0.1:1'
[[volume.all.mirror]]
name = 'east'
address = '[::1]:2'
rate = [{from = '08:00', to = '18:00', limit = '1M'}, {limit = '2M'}]
[[volume.all.mirror]]
name = 'west'
address = '[::1]:3'
rate = 3000000
[volume.numbers]
path = 'q'
interval = 0
block_size = 4096
staging_limit = 1000000000
rate = 1000000
[volume.plain]
path = 'r'
`))
	if err != nil {
		t.Fatal(err)
	}
	want := config{state: "s", listen: "l", control: "c", http: ":9117", insecure: true, volumes: map[string]engine.VolumeConfig{
		"all": {Path: "p", Role: "primary", Export: "unix:/run/x", Interval: 10 * time.Millisecond, MaxLag: 5 * time.Minute, BlockSize: 128 << 10,
			OnStagingFull: "bulk", OnReboot: "trust", StagingLimit: 10 << 30, VerifyWrites: "readback", OnMismatch: "freeze", Scrub: 24 * time.Hour,
			Rate: engine.Rates{{From: 22 * 60, To: 6*60 + 30, Limit: 100 << 20}}, Congestion: "bbr",
			Mirrors: []engine.MirrorConfig{{Name: "127.0.0.1:1", Address: "127.0.0.1:1"}, {Name: "east", Address: "[::1]:2", Rate: engine.Rates{{From: 8 * 60, To: 18 * 60, Limit: 1 << 20}, {Limit: 2 << 20}}},
				{Name: "west", Address: "[::1]:3", Rate: engine.Rates{{Limit: 3e6}}}}},
		"numbers": {Path: "q", Interval: 0, BlockSize: 4096, StagingLimit: 1e9, Rate: engine.Rates{{Limit: 1e6}}, MaxLag: time.Minute, OnStagingFull: "hold", OnReboot: "compare", VerifyWrites: "off", OnMismatch: "continue"},
		"plain":   {Path: "r", Interval: time.Second, MaxLag: time.Minute, OnStagingFull: "hold", OnReboot: "compare", VerifyWrites: "off", OnMismatch: "continue"},
	}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(config{})); diff != "" {
		t.Error(diff)
	}
	if empty, err := loadConfig(writeConfig(t, "")); err != nil || len(empty.volumes) != 0 {
		t.Error(empty, err)
	}
}

// parseServe reads flags as the command does.
func parseServe(t *testing.T, f serveFlags, flags ...string) serveFlags {
	t.Helper()
	for i := 0; i < len(flags); i += 2 {
		for _, s := range volumeSettings {
			if "--"+s.flag == flags[i] {
				if err := (&volumeFlag{s, &f.volumes}).Set(flags[i+1]); err != nil {
					t.Fatal(flags[i], err)
				}
			}
		}
	}
	return f
}

// Whatever the file can say of a volume, flags can.
func TestFlagsSayTheSameAsTheFile(t *testing.T) {
	file := serveFlags{state: "s", insecure: true, insecureSet: true, config: writeConfig(t, `
[volume.a]
path = 'p,=q'
role = 'mirror'
export = 'tcp:127.0.0.1:1'
interval = '0'
mode = 'async'
max_lag = '5m'
block_size = '4K'
on_staging_full = 'bulk'
on_reboot = 'trust'
verify_writes = 'readback'
on_mismatch = 'freeze'
scrub = 'daily'
staging_limit = '1G'
rate = [{from = '08:00', to = '18:00', limit = '20MiB/s'}, {limit = 1000000}]
congestion = 'cubic'
[[volume.a.mirror]]
address = '127.0.0.1:1'
[[volume.a.mirror]]
address = '127.0.0.1:2'
rate = [{from = '22:00', to = '06:00', limit = '5M'}, {limit = '3M'}]
`)}
	flags := parseServe(t, serveFlags{state: "s", insecure: true, insecureSet: true}, "--rate", "a/127.0.0.1:2=5M@22:00-06:00", "--rate", "a/127.0.0.1:2=3M", "--mirror", "a=127.0.0.1:1", "--volume", "a=p,=q", "--role", "a=mirror",
		"--export", "a=tcp:127.0.0.1:1", "--interval", "a=0", "--mode", "a=async", "--max-lag", "a=5m", "--block-size", "a=4K",
		"--on-staging-full", "a=bulk", "--on-reboot", "a=trust", "--staging-limit", "a=1G", "--verify-writes", "a=readback", "--on-mismatch", "a=freeze", "--scrub", "a=24h", "--mirror", "a=127.0.0.1:2",
		"--rate", "a=20MiB/s@08:00-18:00", "--rate", "a=1000000", "--congestion", "a=cubic")
	if len(flags.volumes) != len(volumeSettings)+4 {
		t.Errorf("%d of %d settings are compared", len(flags.volumes)-4, len(volumeSettings))
	}
	fromFile, _, err := file.options()
	if err != nil {
		t.Fatal(err)
	}
	fromFlags, _, err := flags.options()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fromFile.Volumes, fromFlags.Volumes); diff != "" {
		t.Error(diff)
	}
}

func TestFlagsOverrideConfig(t *testing.T) {
	path := writeConfig(t, `
state='s'
listen='l'
http='h'
insecure=false
[volume.a]
path='p'
[volume.b]
path='q'
interval='5s'
rate='1M'
[[volume.b.mirror]]
address='127.0.0.1:1'
`)
	f := parseServe(t, serveFlags{config: path, listen: "m", insecure: true, insecureSet: true}, "--volume", "b=r,=s", "--max-lag", "b=2m",
		"--mirror", "b=127.0.0.1:2", "--mirror", "b=127.0.0.1:3", "--rate", "b=2M", "--rate", "b=3M@22:00-06:00", "--volume", "c=t")
	got, _, err := f.options()
	a, b, c := newVolume(), newVolume(), newVolume()
	a.Path, b.Path, c.Path = "p", "r,=s", "t"
	b.Interval, b.MaxLag = 5*time.Second, 2*time.Minute
	b.Mirrors = []engine.MirrorConfig{{Name: "127.0.0.1:2", Address: "127.0.0.1:2"}, {Name: "127.0.0.1:3", Address: "127.0.0.1:3"}}
	b.Rate = engine.Rates{{Limit: 2 << 20}, {From: 22 * 60, To: 6 * 60, Limit: 3 << 20}}
	want := engine.ServerOptions{StateDir: "s", Listen: "m", HTTP: "h", Insecure: true, Volumes: map[string]engine.VolumeConfig{"a": a, "b": b, "c": c}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(engine.ServerOptions{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	f.http = "g"
	if o, _, err := f.options(); err != nil || o.HTTP != "g" {
		t.Errorf("--http: %q, %v", o.HTTP, err)
	}
	f.insecureSet = false
	if o, _, err := f.options(); err != nil || o.Insecure {
		t.Errorf("insecure = false: %v, %v", o.Insecure, err)
	}
	f = parseServe(t, serveFlags{config: path, insecure: true, insecureSet: true}, "--export", "x=unix:y")
	if _, _, err := f.options(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "volume x") {
		t.Errorf("a volume that nobody named: %v", err)
	}
	// What the file says of a mirror is said anew for that mirror alone.
	own := writeConfig(t, "state = 's'\n[volume.b]\npath = 'q'\nrate = '1M'\n[[volume.b.mirror]]\nname = 'x'\naddress = 'h:1'\nrate = '2M'\n[[volume.b.mirror]]\naddress = 'h:2'\nrate = '3M'\n")
	f = parseServe(t, serveFlags{config: own}, "--rate", "b/x=4M", "--rate", "b/x=5M@08:00-18:00", "--rate", "b=6M")
	got, _, err = f.options()
	mirrors := []engine.MirrorConfig{{Name: "x", Address: "h:1", Rate: engine.Rates{{Limit: 4 << 20}, {From: 8 * 60, To: 18 * 60, Limit: 5 << 20}}},
		{Name: "h:2", Address: "h:2", Rate: engine.Rates{{Limit: 3 << 20}}}}
	if diff := cmp.Diff(mirrors, got.Volumes["b"].Mirrors) + cmp.Diff(engine.Rates{{Limit: 6 << 20}}, got.Volumes["b"].Rate); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestSIGHUPReadsTheConfigAgain(t *testing.T) {
	path := writeConfig(t, "insecure = true\nstate = 's'\n[volume.a]\npath = 'p'\n")
	f := serveFlags{config: path}
	now, keys, err := f.options()
	if err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 10)
	now.Log = func(text string) { said <- text }
	hangup, reload := make(chan os.Signal), make(chan map[string]engine.VolumeConfig, 1)
	ended := make(chan struct{})
	go func() { defer close(ended); f.routineReload(t.Context(), now, keys, hangup, reload) }()
	t.Cleanup(func() { <-ended })

	again := func(text string) string {
		t.Helper()
		os.WriteFile(path, []byte(text), 0o600)
		hangup <- syscall.SIGHUP
		return <-said
	}
	if text := again("insecure = true\nstate = 's'\n[volume.a]\npath = 'p'\nspeed = 1\n"); !strings.Contains(text, `line 5: unknown key "volume.a.speed"`) {
		t.Errorf("a wrong file: %s", text)
	}
	select {
	case got := <-reload:
		t.Errorf("a wrong file changes %v", got)
	default:
	}
	if text := again("insecure = true\nstate = 's'\n[volume.a]\npath = 'p'\ninterval = '5s'\n"); !strings.Contains(text, "again") {
		t.Error(text)
	}
	// Not taken yet, and out of date by then.
	if text := again("insecure = true\nstate = 'other'\n[volume.a]\npath = 'p'\ninterval = '6s'\n"); !strings.Contains(text, "again") {
		t.Error(text)
	}
	if text := <-said; !strings.Contains(text, "new start") {
		t.Error(text)
	}
	if text := again("\n"); !strings.Contains(text, "no volume given") {
		t.Error(text)
	}
	if got := <-reload; got["a"].Interval != 6*time.Second || len(got) != 1 {
		t.Errorf("%v", got)
	}
	f.config = ""
	hangup <- syscall.SIGHUP
	if text := <-said; !strings.Contains(text, "no --config") {
		t.Error(text)
	}
}
