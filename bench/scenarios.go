package bench

import (
	"fmt"
	"slices"
)

// scenario is one thing to measure, and who takes part.
type scenario struct {
	name, about string
	content     Content
	tcp         bool
	changed     int  // size of the pages that are changed before each run; 0: into an empty target
	huge        bool // an image 256 times the size with a quarter of the size in data, beside one that is just these data
	contenders  []contender
	goal        float64 // speed of the first contender, in those of the second; 0: none
}

// contender is one tool in one way of using it. The first of a scenario is the one that the others are
// compared with.
type contender struct {
	name  string
	tool  tool
	small bool // works on the small image of a huge scenario
}

const (
	changedShare = 0.01
	secureGoal   = 0.8 // of the speed without TLS
)

var (
	ours     = contender{name: "blkmirror", tool: blkmirror{}}
	indexed  = contender{name: "blkmirror --trust-index", tool: blkmirror{trustIndex: true}}
	secured  = contender{name: "blkmirror, TLS", tool: blkmirror{secure: true}}
	insecure = contender{name: "blkmirror --insecure", tool: blkmirror{}}
	nbd      = contender{name: "nbdcopy", tool: nbdcopy{}}
	rsyncAll = contender{name: "rsync --inplace", tool: rsync{}}
	rsyncDif = contender{name: "rsync --inplace --no-whole-file", tool: rsync{delta: true}}
)

var scenarios = slices.Concat(
	copies("tcp", "over loopback TCP into an empty target", true),
	copies("file", "file to file, into an empty target", false),
	[]scenario{
		delta("delta-4k", 4<<10, false), delta("delta-64k", 64<<10, false),
		delta("delta-4k-tcp", 4<<10, true), delta("delta-64k-tcp", 64<<10, true),
		{
			name: "tcp-tls", about: "incompressible, over loopback TCP into an empty target, with TLS and without", content: Random, tcp: true,
			contenders: []contender{secured, insecure}, goal: secureGoal,
		},
		{
			name: "huge-sparse", about: "a huge image with little data beside an image of just these data, over loopback TCP",
			content: Random, tcp: true, huge: true,
			contenders: []contender{
				ours, {name: "blkmirror, just the data", tool: blkmirror{}, small: true},
				nbd, {name: "nbdcopy, just the data", tool: nbdcopy{}, small: true},
			},
		},
	},
)

func copies(prefix, about string, tcp bool) []scenario {
	var all []scenario
	for _, kind := range []struct {
		name    string
		content Content
	}{{"incompressible", Random}, {"compressible", Text}, {"sparse", Sparse}} {
		all = append(all, scenario{name: prefix + "-" + kind.name, about: kind.name + ", " + about, content: kind.content,
			tcp: tcp, contenders: []contender{ours, nbd, rsyncAll}})
	}
	return all
}

func delta(name string, page int, tcp bool) scenario {
	where := "file to file"
	if tcp {
		where = "over loopback TCP"
	}
	return scenario{name: name, content: Mixed, tcp: tcp, changed: page,
		about:      fmt.Sprintf("re-sync %s after 1 %% of the pages of %d KiB changed", where, page>>10),
		contenders: []contender{ours, indexed, rsyncDif, rsyncAll}}
}

// ScenarioNames lists what Options.Scenarios may hold.
func ScenarioNames() []string {
	var names []string
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}
