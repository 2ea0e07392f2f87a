package conformance

import (
	"errors"
	"strings"
	"testing"
)

func TestBadScenarios(t *testing.T) {
	const head, last = "name: x\n", "expect primary complete\n"
	cases := []struct {
		name, text   string
		line, column int
		says         string
	}{
		{"empty", "", 0, 1, "no name"},
		{"no name", last, 1, 1, "no name"},
		{"no outcome", head + "start primary\n", 2, 1, "expects nothing"},
		{"unknown step", head + "  dance wildly\n", 2, 3, `"dance" begins no step`},
		{"unknown word", head + "start the primary\n", 2, 7, `"the" does not stand here`},
		{"unknown node", head + "kill mirror and\tmirror2\n", 2, 17, "here comes primary or mirror"},
		{"too short", head + "wait status mirror\n", 2, 19, "ends too early: here comes a state"},
		{"ends early", head + "write 5\n", 2, 8, `the line ends too early: here comes "requests"`},
		{"too long", head + "rest now\n", 2, 6, "the end of the line"},
		{"no number", head + "write many requests\n", 2, 7, "a number from 1"},
		{"nought", head + "repeat 0 times\n", 2, 8, "a number from 1"},
		{"no size", head + "slow link to 5MB per second\n", 2, 14, "a size like"},
		{"no time", head + "wait soon\n", 2, 6, "a time like 300ms"},
		{"negative time", head + "wait -1s\n", 2, 6, "a time like 300ms"},
		{"huge size", head + "slow link to 99999999999GiB per second\n", 2, 14, "a size like"},
		{"no claim", head + "expect mirror pretty\n", 2, 15, "is-a-cut"},
		{"claims without and", head + "expect mirror equal unchanged\n", 2, 21, "one more"},
		{"claim missing", head + "expect mirror equal and\n", 2, 24, "ends too early"},
		{"second link", head + "cut link2\n", 2, 5, "here comes link"},
		{"capability not named", head + "pause mirror\n", 2, 1, `name "pause"`},
		{"unknown capability", "needs: wings\n", 1, 8, "no capability"},
		{"unknown header", "colour: red\n", 1, 1, "no header"},
		{"header twice", head + head, 2, 1, "twice"},
		{"header without value", "name:\n", 1, 1, "no value"},
		{"header behind a step", head + "rest\nsize: 1MiB\n", 3, 1, "head of the file"},
		{"header in a repeat", head + "repeat 2 times\nsize: 1MiB\n", 3, 1, "head of the file"},
		{"size of half a MiB", "size: 512KiB\n", 1, 7, "whole MiB"},
		{"three mirrors", "mirrors: 3\n", 1, 10, "one or two"},
		{"two mirrors unannounced", "mirrors: 2\n", 1, 10, "needs: mirrors"},
		{"repeat without end", head + last + "repeat 2 times\nrest\n", 3, 1, "has no end"},
		{"end without repeat", head + "end\n", 2, 1, "no repeat"},
		{"no text", head + "wr\xffite", 2, 1, "UTF-8"},
		{"columns are characters", head + "write ⑤ requests\n", 2, 7, "a number"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", c.text)
			var syntax *SyntaxError
			if !errors.As(err, &syntax) {
				t.Fatalf("error %v", err)
			}
			if syntax.Line != c.line || syntax.Column != c.column || !strings.Contains(syntax.Text, c.says) {
				t.Errorf("%v, want %d:%d: %s", err, c.line, c.column, c.says)
			}
		})
	}
}

func TestParse(t *testing.T) {
	s, err := Parse("f", "# why\nname: a  name # really\nneeds: mirrors root\noptional: status\nmirrors: 2\nsize: 8MiB\nlimit: 5s\n"+
		"start mirror2 # a step\nrepeat 2 times\n repeat 3 times\n\tkill mirror and mirror2\n end\n wait 1s to 2s\nend\nexpect status mirror away or behind\n")
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "a name" || s.Mirrors != 2 || s.Size != 8<<20 || s.Limit.Seconds() != 5 || len(s.Needs) != 2 || len(s.Steps) != 3 {
		t.Errorf("%+v", s)
	}
	inner := s.Steps[1].body[0].body[0]
	if inner.Line != 11 || inner.Text != "kill mirror and mirror2" || len(inner.args) != 2 {
		t.Errorf("%+v", inner)
	}
}

// Every file that is published is a scenario.
func TestPublishedScenarios(t *testing.T) {
	all, err := Load("../scripts/conformance/scenarios")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 15 {
		t.Errorf("%d scenarios", len(all))
	}
	names := map[string]bool{}
	for _, s := range all {
		if names[s.Name] {
			t.Errorf("two with the name %q", s.Name)
		}
		names[s.Name] = true
	}
}

func FuzzParse(f *testing.F) {
	f.Add("name: x\nneeds: mirrors\nmirrors: 2\nrepeat 2 times\nkill mirror and primary\nend\nexpect mirror equal and is-a-cut\n")
	f.Add("name: x\nwait 1s to 2s # ⑤\nexpect link carried less than 1KiB")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("f", text)
		if err != nil && s != nil {
			t.Error("an error and a scenario")
		}
	})
}
