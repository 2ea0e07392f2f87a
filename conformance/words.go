package conformance

import (
	"context"
	"slices"
	"strings"
)

// Capabilities are what not every tool has, or not everybody may. An adapter names those of its tool; root is
// known by ourselves.
var Capabilities = []string{
	"status",    // it says in which state a mirror is
	"pause",     // following can be stopped for a while
	"overwrite", // it refuses a mirror whose history does not fit, until a person decides
	"mirrors",   // a primary can have two mirrors
	"state",     // what it needs for itself lies in its state directory, and may run out of room
	"root",      // we may mount a small file system
}

// States are what an adapter may say of a mirror.
var States = []string{"away", "copying", "behind", "following", "holding", "paused", "refused"}

var nodeNames = []string{"primary", "mirror", "mirror2"}

// claims are what can be expected of a mirror's image.
var claims = []string{"is-a-cut", "not-older-than-last-look", "not-older-than-last-in-sync", "equal", "unchanged"}

// verb is a kind of step. Words of its form in capitals are values; one with an ellipsis stands for one or
// more, with "and" or "or" between them.
type verb struct {
	form       string
	capability string // that an adapter must have
	do         func(*run, context.Context, []any) error
}

// verbs are all steps that there are. docs/CONFORMANCE.md tells what they do.
var verbs []verb

func init() { // not at the declaration: repeat runs steps, so that it would refer to itself
	verbs = []verb{
		{"start NODE", "", (*run).start},
		{"launch NODE", "", (*run).launch},
		{"stop NODE", "", (*run).stop},
		{"kill NODE…", "", (*run).kill},

		{"write COUNT requests", "", (*run).write},
		{"write in background", "", (*run).background},
		{"rest", "", (*run).restStep},

		{"wait TIME", "", (*run).waitTime},
		{"wait TIME to TIME", "", (*run).waitAbout},
		{"wait COUNT writes", "", (*run).waitWrites},
		{"wait COUNT flips on LINK", "", (*run).waitFlips},
		{"wait in-sync", "", (*run).waitInSync},
		{"wait status MIRROR STATE…", "status", (*run).waitStatus},

		{"cut LINK", "", (*run).cutLink},
		{"reset LINK", "", (*run).resetLink},
		{"freeze LINK", "", (*run).freezeLink},
		{"freeze answers on LINK", "", (*run).freezeAnswers},
		{"restore LINK", "", (*run).restoreLink},
		{"slow LINK to SIZE per second", "", (*run).slowLink},
		{"flip bits on LINK every SIZE", "", (*run).flipBits},
		{"count bytes on LINK", "", (*run).countBytes},

		{"pause MIRROR", "pause", (*run).pause},
		{"resume MIRROR", "pause", (*run).resume},
		{"overwrite MIRROR", "overwrite", (*run).overwrite},

		{"snapshot NODE", "", (*run).snapshot},
		{"put back NODE", "", (*run).putBack},
		{"foreign-write MIRROR COUNT pages", "", (*run).foreignWrite},
		{"remember MIRROR", "", (*run).remember},
		{"limit state of NODE to SIZE", "state", (*run).limitState},
		{"fill state of NODE leaving SIZE", "state", (*run).fillState},
		{"empty state of NODE", "state", (*run).emptyState},

		{"expect MIRROR CLAIM…", "", (*run).expectMirror},
		{"expect status MIRROR STATE…", "status", (*run).expectStatus},
		{"expect primary complete", "", (*run).expectPrimary},
		{"expect LINK carried less than SIZE", "", (*run).expectCarried},

		{"repeat COUNT times", "", nil},
	}
}

// told is a word of a form for an error.
func told(word string) string {
	switch word {
	case "NODE":
		return "a node (primary or mirror)"
	case "MIRROR":
		return "a mirror"
	case "LINK":
		return "a link"
	case "COUNT":
		return "a number"
	case "SIZE":
		return "a size like 64KiB or 2MiB"
	case "TIME":
		return "a time like 300ms or 2s"
	case "STATE":
		return "a state (" + strings.Join(States, ", ") + ")"
	case "CLAIM":
		return "a claim (" + strings.Join(claims, ", ") + ")"
	}
	return `"` + word + `"`
}

func firstWords() []string {
	var out []string
	for _, v := range verbs {
		if first, _, _ := strings.Cut(v.form, " "); !slices.Contains(out, first) {
			out = append(out, first)
		}
	}
	return append(out, "end")
}
