package cli

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// versionInfo is what `version --json` prints: an interface, only ever added to.
type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the version control system
	Time     string `json:"time,omitempty"`     // of that revision
	Modified bool   `json:"modified,omitempty"` // built with changes that are in no revision
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

func versionOf() versionInfo {
	v := versionInfo{Version: "unknown", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func (a *app) versionCommand() *cli.Command {
	var asJSON bool
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Destination: &asJSON, Usage: "print one JSON object"},
		},
		Action: func(*cli.Context) error {
			v := versionOf()
			if asJSON {
				return json.NewEncoder(a.stdout).Encode(v)
			}
			fmt.Fprintf(a.stdout, "%s %s, %s, %s/%s\n", name, v.Version, v.Go, v.OS, v.Arch)
			if v.Revision != "" {
				modified := ""
				if v.Modified {
					modified = ", modified"
				}
				fmt.Fprintf(a.stdout, "revision %s of %s%s\n", v.Revision, v.Time, modified)
			}
			return nil
		},
	}
}
