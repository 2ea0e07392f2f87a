package engine

import (
	"testing"

	"github.com/blkmirror/blkmirror/journal"
)

// The sets of a checkpoint say what a mirror needs only if they were written after the last time that
// everything of it was put in doubt.
func TestFactsOfAMirrorThatIsTakenAnew(t *testing.T) {
	log, _, err := journal.OpenVolume(journal.OS, t.TempDir(), journal.VolumeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f := facts{log: log, now: journal.VolumeFacts{Size: mib, BlockSize: DefaultBlockSize, Role: journal.RolePrimary}}
	for _, step := range []struct {
		what    string
		do      func() error
		covered bool
		met     bool
	}{
		{"never here", func() error { f.now = f.covered(); return nil }, false, false},
		{"attached", func() error { return f.attached("m", [32]byte{}, 5, 5, false, false) }, false, true},
		{"a checkpoint", func() error { f.now = f.covered(); return nil }, true, true},
		{"attached again", func() error { return f.attached("m", [32]byte{}, 6, 6, false, false) }, true, true},
		{"everything in doubt", func() error { return f.attached("m", [32]byte{}, 3, 6, false, true) }, false, true},
		{"committed", func() error { return f.committed("m", 7, true) }, false, true},
		{"another checkpoint", func() error { f.now = f.covered(); return nil }, true, true},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := f.of("m").Attached; got != step.covered || f.uncovered() != (step.met && !step.covered) || f.met() != step.met {
			t.Errorf("%s: covered %t, uncovered %t, met %t", step.what, got, f.uncovered(), f.met())
		}
	}
}
